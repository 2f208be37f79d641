"""Names of models that people can say, such as ``quiet-otter``: for pages and conversations, beside the version.

A name is computed from the version wherever it is shown, and never stored: nothing may refer to a model by it. Another
word in one of the lists therefore changes the names of all models.
"""

import hashlib

_ADJECTIVES = """
able agile amber ample ancient arctic autumn avid azure bold brave breezy bright brisk bronze busy calm candid
careful cheerful clever coastal copper coral cosy crimson crisp curious dapper daring deep eager early earnest
eastern elegant emerald exact faithful fearless festive fleet floral fluent frank fresh frosty gallant gentle giant
gifted glad golden graceful grand happy hardy hearty helpful honest humble icy indigo ivory jolly jovial keen kind
lively lofty loyal lucid lucky lunar maple mellow merry mighty misty modest mossy neat nimble noble northern orange
patient placid polar polite proud purple quick quiet rapid ready regal robust royal rustic sandy scarlet serene
silent silver simple sincere smooth snowy solar southern stable steady sturdy sunny swift tall tidy tranquil trusty
upbeat valiant velvet violet vivid warm western winter wise witty young zesty
"""

_NOUNS = """
albatross antelope badger beaver bison bluebird buffalo bumblebee butterfly camel canary caribou chamois cheetah
chinchilla chipmunk cicada condor cormorant cricket cuckoo curlew dolphin donkey dormouse dragonfly eagle egret
eland falcon ferret finch firefly flamingo fox gazelle gecko gibbon giraffe goose grouse hamster hawk hedgehog heron
hoopoe hornbill hummingbird ibex ibis iguana impala jackdaw jaguar kestrel kingfisher kiwi koala lark lemming lemur
leopard linnet lion llama lobster lynx macaw magpie manatee marmot marten meerkat mongoose moose narwhal newt
nightingale nuthatch ocelot octopus okapi oriole osprey otter owl oyster panda parrot partridge pelican penguin
pheasant plover porcupine puffin quail rabbit raccoon raven reindeer robin salmon sandpiper seal sparrow squirrel
starling stork swallow swan tapir tern thrush tiger toucan trout turtle walrus warbler weasel whale wolf wombat
woodpecker wren yak zebra
"""


ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()


def spoken_name(version: str) -> str:
    """An adjective and an animal, always the same ones for a version.

    There are almost 17,000 pairs: among the fifteen models that a page lists, two have one name in one store of 160.
    """
    first, second = divmod(int.from_bytes(hashlib.sha256(version.encode()).digest()[:8]), len(NOUNS))
    return f"{ADJECTIVES[first % len(ADJECTIVES)]}-{NOUNS[second]}"
