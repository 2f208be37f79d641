"""The English words that error analysis and neutral wording recognize: colours, people, animals, visible objects.

They were chosen by hand from captions of everyday photographs. Words that are not listed are ignored. Nouns are listed
in the singular, which ``singular`` returns.
"""

import re
from collections.abc import Mapping


def singular(word: str) -> str:
    """The singular of a noun in lower case, by rules and a list of irregular nouns; a verb loses its final s, too."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def join_compounds(text: str) -> str:
    """The text with compounds that differ in meaning from their parts ("hot dog") replaced by a single word."""
    return _COMPOUND.sub(lambda found: _COMPOUNDS[found[1]], text)


def _by_word(groups: Mapping[str, str]) -> dict[str, str]:
    return {word: name for name, words in groups.items() for word in words.split()}


_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "guys": "person",  # of any gender
    "gentlemen": "gentleman",
    "policemen": "policeman",
    "firemen": "fireman",
    "fishermen": "fisherman",
    "buses": "bus",
    "geese": "goose",
    "calves": "calf",
    "leaves": "leaf",
    "skis": "ski",
    "woods": "woods",
}

_COMPOUNDS = {
    "group of": "several",
    "couple of": "several",
    "pair of": "several",
    "crowd of": "several",
    "team of": "several",
    "pack of": "several",
    "herd of": "several",
    "flock of": "several",
    "hot dog": "hotdog",
    "ice cream": "icecream",
    "jet ski": "jetski",
    "teddy bear": "toy",
    "polar bear": "bear",
    "bull dog": "bulldog",
    "pit bull": "pitbull",
    "guinea pig": "guineapig",
    "sea gull": "seagull",
    "monkey bar": "playground",
    "jungle gym": "playground",
    "horse shoe": "horseshoe",
    "dirt bike": "motorcycle",
    "motor bike": "motorcycle",
    "skate board": "skateboard",
    "snow board": "snowboard",
    "surf board": "surfboard",
    "swimming pool": "pool",
    "pool table": "table",
    "wheel chair": "wheelchair",
    "fire hydrant": "hydrant",
    "fire truck": "truck",
    "water bottle": "bottle",
    "white water": "water",
    "baseball cap": "cap",
    "baseball hat": "hat",
    "ball cap": "cap",
    "cell phone": "phone",
    "ping pong": "pingpong",
    "hot air balloon": "balloon",
    "car seat": "seat",
    "bus stop": "stop",
}

_COMPOUND = re.compile(rf"\b({'|'.join(_COMPOUNDS)})s?\b")

GENDERS = _by_word(
    {
        "male": "man boy gentleman male father dad brother son groom husband policeman fisherman fireman",
        "female": "woman girl lady female mother mom sister daughter bride wife",
    }
)
"""The gender of a person, by the singular noun."""

CHILDREN = frozenset(["boy", "girl", "son", "daughter"])
"""Those of ``GENDERS`` that are children."""

PRONOUNS = _by_word({"male": "he him his himself", "female": "she her hers herself"})
"""The gender, by pronoun."""

CROWDS = frozenset(["crowd", "family", "group", "couple", "audience", "band", "everyone"])
"""Singular words for several people."""

NUMERALS = frozenset(["two", "three", "four", "five", "six", "seven", "eight", "several", "many", "some", "few"])
"""Words that precede several of a thing."""

UNCOUNTABLE = frozenset(["another", "other", "others", "both", "each", "one", "ones"])
"""Words that refer to more of something already named, as in "a dog chases another"."""

SHADES = _by_word(
    {
        "black": "black",
        "white": "white",
        "gray": "gray grey silver",
        "red": "red maroon",
        "blue": "blue navy turquoise teal aqua",
        "green": "green",
        "yellow": "yellow",
        "orange": "orange",
        "pink": "pink",
        "purple": "purple violet",
        "brown": "brown tan beige khaki gold golden blond blonde",
    }
)
"""The colour that a word names; colours that are easily confused count as one."""

_THINGS = {
    "person": (
        "man woman boy girl child kid person baby toddler infant lady guy gentleman teenager teen adult "
        "youth human newborn crowd family couple group player rider surfer skier skater swimmer climber runner hiker "
        "biker cyclist bicyclist motorcyclist snowboarder skateboarder worker dancer performer singer musician "
        "guitarist artist driver racer athlete wrestler fisherman policeman fireman officer soldier cowboy clown "
        "mother father mom dad brother sister son daughter husband wife bride groom friend student spectator onlooker "
        "pedestrian gymnast goalie batter pitcher catcher cheerleader jockey kayaker diver vendor tourist "
        "audience band everyone opponent referee trainer wakeboarder dude jogger skydiver teammate daredevil",
        "male female boxer team class he she someone somebody anyone his her him himself herself self hand arm leg "
        "face others skateboarding snowboarding skiing surfing climbing riding bicycling cycling",
    ),
    "dog": (
        "dog puppy pup canine hound greyhound poodle terrier retriever labrador lab collie sheepdog shepherd bulldog "
        "pitbull husky beagle doberman dachshund dalmatian spaniel chihuahua mutt pooch pug dane rottweiler "
        "schnauzer corgi",
        "animal boxer",
    ),
    "cat": ("cat kitten kitty feline", "animal"),
    "horse": ("horse pony stallion mare foal bronco", "animal jockey rodeo polo horseback bull"),
    "cow": ("cow bull calf cattle ox buffalo", "animal rodeo"),
    "sheep": ("sheep lamb", "animal goat"),
    "goat": ("goat", "animal sheep"),
    "bird": (
        "bird pigeon seagull gull duck swan goose eagle parrot flamingo pelican hawk owl dove penguin",
        "animal",
    ),
    "elephant": ("elephant", "animal"),
    "camel": ("camel llama", "animal"),
    "monkey": ("monkey ape", "animal"),
    "rabbit": ("rabbit bunny", "animal"),
    "deer": ("deer", "animal"),
    "ocean": ("ocean sea", "wave surf surfer surfing surfboard beach shore coast bay tide"),
    "beach": ("beach shore seashore seaside shoreline coast", "sand sandy ocean sea tide wave"),
    "pool": ("pool", "diver diving inflatable"),
    "lake": ("lake pond lagoon reservoir", "bay river"),
    "river": ("river stream creek brook", "rapid kayak rafting lake waterfall"),
    "water": (
        "water",
        "ocean sea lake pond lagoon river stream creek brook pool puddle fountain wave surf splash splashing swim "
        "swimming swimmer kayak kayaker kayaking canoe boat raft rafting rapid waterfall sprinkler hose surfer "
        "surfing surfboard wet bath bathtub snorkel dive diving diver waterski wakeboard float rain wade wading "
        "underwater sail spray beach shore tide dock bay ski jetski",
    ),
    "snow": (
        "snow ice snowball",
        "snowy snowboarder snowboarding snowboard ski skier skiing sled sledding winter snowsuit snowmobile skating "
        "icy cold hockey rink skate skater",
    ),
    "grass": ("grass lawn", "grassy field yard park meadow garden pasture backyard hill green"),
    "field": (
        "field pasture meadow",
        "grass grassy lawn park yard pitch soccer football baseball cricket rugby game clearing",
    ),
    "forest": ("forest woods tree jungle", "wood wooded leaf trail branch log"),
    "mountain": (
        "mountain cliff peak summit",
        "mountainside mountaintop rock rocky boulder climber climbing hill hillside canyon slope ridge overlook",
    ),
    "rock": ("rock boulder stone", "rocky climber climbing gravel mountain cliff"),
    "mud": ("mud", "muddy dirt dirty puddle"),
    "sand": ("sand dune desert", "sandy beach shore"),
    "street": (
        "street road highway sidewalk crosswalk",
        "city car traffic pavement paved path curb intersection parade bus urban town downtown alley",
    ),
    "building": (
        "building house skyscraper store shop church",
        "city wall window tower downtown home urban town roof brick restaurant storefront structure street",
    ),
    "fence": ("fence", "fenced gate railing chain barrier enclosure"),
    "bench": ("bench", "seat"),
    "chair": ("chair seat couch sofa stool", "wheelchair bench sit sits sitting seated"),
    "bed": ("bed", "mattress sleep sleeping blanket pillow"),
    "table": ("table desk counter", "picnic eat eating dinner meal restaurant food"),
    "stair": ("stair step staircase stairway", "stoop"),
    "bridge": ("bridge", "dock pier"),
    "ramp": ("ramp halfpipe", "skate skateboard skateboarder bmx jump slope"),
    "tent": ("tent canopy", ""),
    "flag": ("flag banner", ""),
    "balloon": ("balloon", ""),
    "flower": ("flower tulip rose daisy blossom", "garden plant floral"),
    "fountain": ("fountain", "sprinkler spray water jet"),
    "fire": ("fire campfire flame bonfire", "burning"),
    "trampoline": ("trampoline", "bouncing inflatable bounce"),
    "playground": ("playground", "slide swing"),
    "slide": ("slide", "sliding slid playground"),
    "swing": ("swing", "swinging swung playground rope"),
    "puddle": ("puddle", "water mud muddy"),
    "bubble": ("bubble", ""),
    "ball": (
        "ball football basketball baseball volleyball softball",
        "soccer tennis golf cricket rugby lacrosse pingpong bowling pitch pitcher batter toy dodgeball",
    ),
    "frisbee": ("frisbee disc disk", "toy"),
    "stick": ("stick branch", "log twig wood pole"),
    "toy": ("toy doll", "stuffed ball frisbee plastic bone"),
    "rope": ("rope leash", "cord cable harness line string tether"),
    "racket": ("racket racquet", "tennis"),
    "hurdle": ("hurdle obstacle", "agility course bar jump pole beam"),
    "tire": ("tire", "wheel"),
    "guitar": ("guitar", "guitarist instrument band musician music"),
    "drum": ("drum", "drummer instrument band"),
    "microphone": ("microphone", "sing singing singer karaoke"),
    "phone": ("phone cellphone telephone", ""),
    "book": ("book newspaper magazine", "read reading"),
    "computer": ("computer laptop", ""),
    "umbrella": ("umbrella parasol", ""),
    "bag": ("bag backpack purse suitcase luggage", "sack"),
    "bottle": ("bottle", "drink drinking beer wine"),
    "cup": ("cup mug", "drink drinking glass coffee bottle"),
    "cigarette": ("cigarette cigar", "smoke smoking"),
    "food": ("food cake pizza sandwich hotdog meal candy fruit", "eat eating ate dinner lunch snack bread lollipop"),
    "bike": ("bike bicycle", "bicyclist cyclist biker cycling bmx biking motorcycle motorbike tricycle unicycle cycle"),
    "motorcycle": ("motorcycle motorbike", "bike biker motocross motorcyclist atv cycle"),
    "skateboard": ("skateboard", "skateboarder skater skateboarding board skate boarder"),
    "snowboard": ("snowboard", "snowboarder snowboarding board boarder"),
    "surfboard": ("surfboard", "surf surfer surfing board wave wakeboard boogie"),
    "scooter": ("scooter", ""),
    "boat": (
        "boat canoe kayak raft ship sailboat rowboat",
        "paddle sail sailing row rowing kayaker canoeing rafting kayaking ferry yacht waterski",
    ),
    "car": ("car truck van jeep suv taxi bus", "vehicle traffic driver automobile race racing atv"),
    "cart": ("cart wagon stroller carriage", "shopping"),
    "sled": ("sled sledge", "sledding tube sleigh"),
    "train": ("train", "subway railroad railway"),
    "plane": ("plane airplane jet", ""),
}
"""For each object the words that name it, and other words (objects, activities) that imply it or are confused with it.
Clothes and common backgrounds (wall, sky) are not listed, because human captions seldom mention them."""

NAMES = _by_word({thing: naming for thing, (naming, _) in _THINGS.items()})
"""The object that a singular word names."""

SUPPORTED = {
    thing: frozenset(singular(word) for word in f"{naming} {company}".split())
    for thing, (naming, company) in _THINGS.items()
}
"""For each object the singular words that support it: with one of them in a reference, it is not hallucinated."""

COUNTED = frozenset(["person", "dog", "cat", "horse", "cow", "goat", "bird", "elephant", "camel", "monkey", "rabbit"])
"""People and animals whose number a caption shows; not those whose plural equals the singular."""

ANIMALS = frozenset([*(COUNTED - {"person"}), "sheep", "deer"])
