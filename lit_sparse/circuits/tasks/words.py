"""Words that the templates draw from: common English words, most of them single tokens in most vocabularies."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words("""
    Mary Anna Alice Emma Sarah Laura Lisa Julia Emily Rachel Jessica Amy Kate Jennifer Nancy Linda Susan Karen Barbara
    Elizabeth Margaret Maria Helen Sophie Grace Claire Victoria Charlotte Hannah Rebecca Diana Katherine Michelle
    Melissa Olivia Lucy Jane Christine Catherine Patricia
""")
MEN = _words("""
    John Tom James Robert Michael David Richard Daniel Paul Mark George Kevin Brian Edward Jason Jeff Ryan Jacob Eric
    Stephen Jonathan Scott Justin Benjamin Peter Andrew Joseph Thomas Charles Matthew Anthony Steven William Henry
    Jack Simon Adam Martin Patrick Frank
""")
PLACES = _words("store garden restaurant school hospital office house station park library market museum")
THINGS = _words("ring book drink computer necklace kiss bone letter ball key gift ticket")
ROLES = _words("""
    friend person student neighbor teacher writer singer cook player leader worker colleague guest partner
""")

EVENTS = _words("""
    war conflict battle dispute campaign expedition journey voyage trial strike siege reign project program mission
    construction negotiation investigation occupation operation partnership alliance marriage relationship study
    experiment effort work tour conference competition festival development expansion migration pilgrimage rebellion
    revolution invasion plague
""")
"""Nouns for events that last, in the manner of Hanna et al., arXiv 2305.00586."""

NOUNS = tuple(
    (word, word + "s")
    for word in _words("""
        key book teacher doctor student artist writer driver farmer table picture letter horse flower bird dog car house
        boat tree phone singer player author painting window chair plant
    """)
)
"""Singular and plural."""

VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
"""Singular and plural."""

ARGUMENTS = _words("""
    load size files last first shape color order value index path name user data text key code type state date time
    list point image model field node group label line page count length width height version level result source
    target message number period weight score price event region window table filter format limit mode
""")
"""Names of function arguments."""

SUBJECTS = _words("""
    oil column piece crime population unit dark water river music garden market history science energy family country
    winter summer morning paper letter metal stone glass fire forest island mountain ocean animal plant
""")
"""Words without a meaning for the code that they document."""

SEASONS = _words("spring summer autumn winter")
TIMES = _words("morning afternoon evening night")
WEATHER = _words("warm cold cool dry wet mild hot rainy")
SKIES = _words("blue grey white dark clear bright pale")
WINDS = _words("warm cold light soft strong gentle fresh")
MOODS = _words("quiet busy calm silent crowded peaceful")
"""Words for a town and its weather in a context."""
