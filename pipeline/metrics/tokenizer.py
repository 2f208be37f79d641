"""Tokenise captions as the COCO evaluation does: Penn Treebank tokens in lower case, without punctuation.

The COCO toolkit runs Stanford's ``PTBTokenizer`` (CoreNLP 3.4.1, ``-preserveLines -lowerCase``) in Java and then drops
a list of punctuation tokens (Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server",
arXiv:1504.00325). ``tokenize_java`` runs that tokenizer; ``tokenize`` gives the same words without Java. Its rules were
derived from the Java tokenizer's output and reproduce its oddities ("(" becomes the word "-lrb-", "cannot" becomes two
words, "!!" is kept while "!" is dropped): the aim is equal scores, not better tokens.
"""

import re
from collections.abc import Sequence

from pipeline.metrics import java

# These keep a full stop that follows them. Single letters do too ("vitamin c.").
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr
    co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon
    inc ind insp intl jan jos jr jul jun kan ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs
    ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pptys pres prof profs pte ptes pty pvt rd rep reps rev rt
    sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc
    wm wyo
"""
_ABBREVIATIONS_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop"
_CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # in lower case these are ordinary words
_WITH_APOSTROPHE = (
    "c'mon d'ye e'er ev'ry li'l nat'l nor'easter ol' s'mores somethin' dunkin' cap'n 'cause 'em 'till 'til"
)


def _any_of(words: str) -> str:
    return "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True))


# The order matters: the Java lexer takes the longest match of all its rules, but a regular expression takes the first
# alternative that matches. {L} is a letter of any script, {A} a letter or a digit.
_TOKEN = re.compile(
    r"""
      </?[A-Za-z!?][^<>]*>                                            # <unk>
    | https?://[^\s<>"()]*[^\s<>"().,;:!?'{{}}|]
    | [A-Za-z0-9][\w.%+-]*@[\w-]+(?:\.[\w-]+)*                        # someone@somewhere.org
    | (?:[\w-]+\.)+(?:com|net|org|edu)\b(?:/[^\s<>"()]*[^\s<>"().,;:!?'])?
    | >?[:;=][-o']?(?:[()|]|[dDpP](?!{L}))                            # smileys
    | (?i:{with_apostrophe})
    | (?i:'t(?=is\b|was\b) | 'n' | 'n(?!{L}) | '[2-9]0s) | '\d\d(?!\S)
    | (?P<contraction>(?i:['’](?:s|m|d|ll|re|ve)|n['’]t)(?!{L}))
    | {L}*[^\W\d_nN](?=(?i:n['’]t)(?!{L}))                            # do|n't
    | {L}+(?=(?i:['’](?:s|m|d|ll|re|ve))(?!{L}))                      # he|'s
    | {L}+[aeiouyAEIOUY]['’][aeiouA-Z]{L}* | [dlonDLOA-HJ-XZ]['’]{L}{{2,}}  # ma'am, o'clock, D'Angelo
    | [djlDJL]['’] | [yY]['’](?={L})                                  # y'|all
    | [A-Z]+(?:&[A-Z]+)+                                              # AT&T
    | \d{{1,4}}[ -]\d{{1,4}}/\d{{1,4}}                                # 1 1/2
    | [A-Za-z0-9]+(?:-[A-Za-z]+){{0,2}}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){{0,2}}){{1,2}}  # black/white
    | {A}(?:{A}|[.,])*(?:-{A}+)+                                      # t-shirt, 4-wheeler, U.S.-based
    | [A-Za-z0-9]+(?:_[A-Za-z0-9]+)+
    | (?i:{abbreviations}|ph\.d|[A-Z])\.(?!{L}) | {L}{A}*\.(?=[,:;])
    | (?:{capitalised}|{upper})\.(?!{L})
    | (?i:{before_numbers})\.(?=\s*\d)
    | [A-Za-z](?:\.[A-Za-z])+\.(?!{L})                                # U.S.
    | {L}{A}*(?:[.!?]{L}{A}*)*                                        # a word; "dog.cat" is one too
    | [-+]?\d*(?:[.:,]\d+)+                                           # 1,000.50 and 8:30
    | \d+{L}{A}*                                                      # 3rd, 4x4
    | [-+]?\d+
    | \#[A-Za-z]+ | @[A-Za-z_]\w*
    | -{{5,}} | [!?]{{2,}} | \*+ | \#+ | _+ | << | >>
    | [¼½¾⅓⅔] | [^\s\w.,:;!?'`"‘’‛“”«»‹›…‒–—―\U00010000-\U0010ffff-]  # any other symbol; emoji are dropped
    """.format(
        L=r"[^\W\d_¼½¾⅓⅔]",
        A=r"[^\W_¼½¾⅓⅔]",
        with_apostrophe=_any_of(_WITH_APOSTROPHE),
        abbreviations=_any_of(_ABBREVIATIONS),
        capitalised=_any_of(_CAPITALISED_ABBREVIATIONS),
        upper=_any_of(_CAPITALISED_ABBREVIATIONS.upper()),
        before_numbers=_any_of(_ABBREVIATIONS_BEFORE_NUMBERS),
    ),
    re.VERBOSE,
)
_SPLIT = {
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
}
_REWRITTEN = str.maketrans(
    {
        **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
        **{"£": "#", "€": "$", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    }
)
# The tokens that the COCO toolkit drops. It lists the brackets too, but in upper case, which never occurs here.
_PUNCTUATION = {"!", "?", "-", "'", "`", "``", "''", "--", "...", ".", ",", ":", ";"}


def tokenize(caption: str) -> str:
    """The caption's words, joined by single spaces; "" if it has none."""
    words = []
    for match in _TOKEN.finditer(" ".join(caption.replace("\N{SOFT HYPHEN}", "").split())):
        token = match[0].lower()
        if match["contraction"]:
            token = token.replace("’", "'")
        # "1 1/2" is one word.
        words.append(_SPLIT.get(token) or token.translate(_REWRITTEN).replace(" ", "\N{NO-BREAK SPACE}"))
    return " ".join(words)


def tokenize_java(captions: Sequence[str]) -> list[str]:
    """``tokenize`` for many captions at once, by Stanford's own tokenizer in one Java process. Raises ``JavaError``."""
    return [" ".join(token for token in tokens if token not in _PUNCTUATION) for tokens in java.tokenize(captions)]
