"""Small corpora made here, one for each task, whose right attention is known.

Each maker draws sentences from a grammar and returns the source positions that matter: the clause
that decides a hypothesis, the words that a translated word renders, the words that a summary keeps.
The tasks are solvable, so a perfect model reaches 100.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .data import Corpus, Example


def corpus(task: str, seed: int = 0, train: int = 4000, valid: int = 200, test: int = 300) -> Corpus:
    """Distinct examples of `task`; the same for equal arguments."""
    draw = random.Random(f"{task} {seed}")
    maker = {"entailment": entailment, "translation": translation, "summarization": summarization}[task]
    seen, examples = set(), []
    while len(examples) < train + valid + test:
        example = maker(draw)
        if (example.source, example.target) not in seen:
            seen.add((example.source, example.target))
            examples.append(example)
    return Corpus(f"built-in {task}", examples[:train], examples[train : train + valid], examples[train + valid :])


class _Writer:
    """Collects words and remembers where each piece went."""

    def __init__(self):
        self.words = []

    def add(self, text: str) -> range:
        start = len(self.words)
        self.words += text.split()
        return range(start, len(self.words))


# ---------------------------------------------------------------- entailment

_BEINGS = ["man", "woman", "boy", "girl", "dog", "cat", "nurse", "farmer"]
_LOOKS = ["young", "old", "small", "tall", "tired", "happy", "quiet", "little"]
_DOINGS = ["sleeping", "running", "singing", "reading", "eating", "dancing"]
_PLACES = (
    "near the river", "in the park", "on the bridge", "by the window", "in a garden", "at the station", "under a tree",
    "on the beach",
)  # fmt: skip


def entailment(draw: random.Random) -> Example:
    """Three clauses about three beings; the hypothesis is about one being, present or not."""
    beings = draw.sample(_BEINGS, 4)
    doings = draw.sample(_DOINGS, 4)
    places = draw.sample(_PLACES, 3)
    premise, clauses = _Writer(), []
    for number in range(3):
        if number:
            premise.add(draw.choice((",", "while", "and")))
        look = draw.choice((*_LOOKS, ""))
        article = "an" if look == "old" else "a"
        clauses.append(premise.add(f"{article} {look} {beings[number]} is {doings[number]} {places[number]}"))
    premise.add(".")

    label = draw.choice(("entailment", "neutral", "contradiction"))
    about = draw.randrange(3)
    being, doing = beings[about], doings[about]
    if label == "contradiction":  # what another one does, so that words alone do not tell
        doing = draw.choice([other for other in doings if other != doing])
    if label == "neutral":  # someone of whom the premise says nothing
        being = beings[3]
    hypothesis = f"the {being} is {doing} ." if draw.random() < 0.5 else f"{doing} is what the {being} does ."
    gold = frozenset() if label == "neutral" else frozenset(clauses[about])
    return Example(tuple(premise.words), tuple(hypothesis.split()), label, (gold,))


# ---------------------------------------------------------------- translation

# English, German, gender.
_PERSONS = (
    ("man", "mann", "m"), ("woman", "frau", "f"), ("child", "kind", "n"), ("teacher", "lehrer", "m"),
    ("police officer", "polizistin", "f"), ("girl", "mädchen", "n"), ("fire fighter", "feuerwehrmann", "m"),
)  # fmt: skip
_THINGS = (
    ("train station", "bahnhof", "m"), ("swimming pool", "schwimmbad", "n"), ("soap bubble", "seifenblase", "f"),
    ("dog", "hund", "m"), ("cat", "katze", "f"), ("book", "buch", "n"), ("tree", "baum", "m"),
    ("bridge", "brücke", "f"), ("ice cream", "eis", "n"),
)  # fmt: skip
_QUALITIES = (("small", "klein"), ("big", "groß"), ("old", "alt"), ("new", "neu"), ("red", "rot"), ("green", "grün"))
# English, German, separable particle, the English word that the particle renders.
_VERBS = (
    ("is painting", "malt", None), ("is looking for", "sucht", None), ("is taking a picture of", "fotografiert", None),
    ("is carrying", "trägt", None), ("is taking care of", "pflegt", None), ("is looking at", "sieht", "an"),
    ("is picking up", "hebt", "auf"), ("is getting rid of", "entsorgt", None),
)  # fmt: skip
_ADVERBS = (("today", "heute"), ("right now", "gerade"), ("once again", "wieder"), ("this morning", "morgens"))
_REPORTS = (("says that", "sagt"), ("is sure that", "glaubt"), ("finds out that", "erfährt"))
_DEFINITE = {"nominative": {"m": "der", "f": "die", "n": "das"}, "accusative": {"m": "den", "f": "die", "n": "das"}}
_INDEFINITE = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
}
_AFTER_INDEFINITE = {"nominative": {"m": "er", "f": "e", "n": "es"}, "accusative": {"m": "en", "f": "e", "n": "es"}}


def translation(draw: random.Random) -> Example:
    """English to German: inflected articles and adjectives, verb second or last, phrases that become one word."""
    english = _Writer()

    def noun_phrase(nouns, case):
        english_noun, german_noun, gender = draw.choice(nouns)
        definite = draw.random() < 0.5
        quality = draw.choice(_QUALITIES) if draw.random() < 0.6 else None
        vowel = (quality[0] if quality else english_noun)[0] in "aeio"
        article = english.add("the" if definite else "an" if vowel else "a")
        adjective = english.add(quality[0]) if quality else range(0)
        noun = english.add(english_noun)
        german: list[tuple[str, Sequence[int]]] = [
            ((_DEFINITE if definite else _INDEFINITE)[case][gender], [*article, *noun])
        ]
        if quality:
            masculine_object = case == "accusative" and gender == "m"
            ending = ("en" if masculine_object else "e") if definite else _AFTER_INDEFINITE[case][gender]
            german.append((quality[1] + ending, adjective))
        return [*german, (german_noun, noun)]

    def clause(verb_last, verb_first=False):
        subject = noun_phrase(_PERSONS, "nominative")
        english_verb, german_verb, particle = draw.choice(_VERBS)
        place = english.add(english_verb)
        verb = [(german_verb, place)]
        rest = [(particle, place)] if particle else []
        thing = noun_phrase(_THINGS, "accusative")
        if verb_last:
            return subject + thing + ([(particle + german_verb, place)] if particle else verb)
        return (verb + subject if verb_first else subject + verb) + thing + rest

    form = draw.choice(("plain", "adverb", "report"))
    if form == "adverb":
        word, german_word = draw.choice(_ADVERBS)
        german = [(german_word, english.add(word)), *clause(verb_last=False, verb_first=True)]
    elif form == "report":
        german = noun_phrase(_PERSONS, "nominative")
        words, german_word = draw.choice(_REPORTS)
        place = english.add(words)
        german += [(german_word, place[:-1]), (",", place[-1:]), ("dass", place[-1:]), *clause(verb_last=True)]
    else:
        german = clause(verb_last=False)
    german.append((".", english.add(".")))
    words, gold = zip(*german, strict=True)
    return Example(tuple(english.words), words, gold=tuple(frozenset(positions) for positions in gold))


# ---------------------------------------------------------------- summarization

_COUNTRIES = (
    ("france", "french"), ("spain", "spanish"), ("china", "chinese"), ("sweden", "swedish"), ("brazil", "brazilian"),
    ("japan", "japanese"), ("turkey", "turkish"), ("poland", "polish"),
)  # fmt: skip
_CITIES = ["boston", "madrid", "osaka", "lagos", "lima", "oslo", "cairo", "delhi"]
_OFFICES = (
    ("prime minister", "premier"),
    ("head of state", "president"),
    ("central bank", "bank"),
    ("foreign minister", "minister"),
)
_BODIES = (
    ("police officers", "police"),
    ("the city council", "council"),
    ("the high court", "court"),
    ("public schools", "schools"),
)
_ACTS = (
    ("has put off", "delays"), ("has called for", "urges"), ("turned down", "rejects"),
    ("spoke out against", "condemns"), ("has agreed to", "accepts"), ("opened an inquiry into", "probes"),
    ("announced the end of", "ends"), ("is looking forward to", "awaits"),
)  # fmt: skip
# Source phrases in order, then each summary word with the number of the phrase that it renders.
_MATTERS = (
    (("a plan to cut", "taxes"), (("tax", 1), ("cut", 0))),
    (("the sale", "of two factories"), (("factory", 1), ("sale", 0))),
    (("the construction", "of a new airport"), (("airport", 1), ("construction", 0))),
    (("talks", "on trade"), (("trade", 1), ("talks", 0))),
    (("a strike", "by teachers"), (("teacher", 1), ("strike", 0))),
    (("the election", "in march"), (("march", 1), ("election", 0))),
    (("a ban", "on old cars"), (("car", 1), ("ban", 0))),
    (("the reform", "of pensions"), (("pension", 1), ("reform", 0))),
)
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday"]
_ASIDES = (
    "which took office last year",
    "which had been under pressure for weeks",
    "long seen as cautious",
    "once close to the government",
)
_TAILS = (
    "after hours of debate",
    "despite protests in the capital",
    "in the face of rising prices",
    "a week after the storm",
)


def summarization(draw: random.Random) -> Example:
    """A news sentence and its headline: who, the act in one word, the matter in two; the rest is left out.

    Each word of the headline renders one phrase of the sentence, and that phrase is its gold.
    """
    source, headline = _Writer(), []
    if draw.random() < 0.5:
        source.add(f"on {draw.choice(_DAYS)} ,")
    if draw.random() < 0.5:
        office, short = draw.choice(_OFFICES)
        country, adjective = draw.choice(_COUNTRIES)
        place = source.add(f"the {office}")
        headline += [(adjective, source.add(f"of {country}")), (short, place)]
    else:
        body, short = draw.choice(_BODIES)
        city = draw.choice(_CITIES)
        place = source.add(body)
        headline += [(city, source.add(f"in {city}")), (short, place)]
    if draw.random() < 0.5:
        source.add(f", {draw.choice(_ASIDES)} ,")
    act, short = draw.choice(_ACTS)
    headline.append((short, source.add(act)))
    phrases, rendered = draw.choice(_MATTERS)
    places = [source.add(phrase) for phrase in phrases]
    headline += [(word, places[phrase]) for word, phrase in rendered]
    if draw.random() < 0.5:
        source.add(draw.choice(_TAILS))
    if draw.random() < 0.5:
        source.add(f", officials said on {draw.choice(_DAYS)}")
    source.add(".")
    words, gold = zip(*headline, strict=True)
    return Example(tuple(source.words), words, gold=tuple(frozenset(positions) for positions in gold))
