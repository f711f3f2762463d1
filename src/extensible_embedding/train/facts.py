"""Facts hidden in a text, and questions for them.

In: an excerpt of prose or code. Out: the excerpt with invented facts between its sentences or
lines, or a list of invented keys and values without a text, and a question for each. The sentences
are not those of the evaluation's tasks.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Pair = tuple[str, str]
"""(question, answer)."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A context and what is asked about it."""

    context: str
    pairs: tuple[Pair, ...]


def _listed(words: str) -> list[str]:
    return words.split()


_ADJECTIVES = _listed(
    "amber ashen bitter blue brass brisk broad calm cedar chalky copper coral crimson crooked "
    "curly dusty eager early emerald faded fragrant frosty gentle glad golden grey hollow humble "
    "icy ivory jade jolly lilac linen little lonely mellow mossy narrow nimble northern oaken old "
    "olive pale patient pewter plain plum polished quiet rusty sandy scarlet silent silver slate "
    "slender smoky southern stout striped sturdy sunny tall tawny tidy velvet violet wandering "
    "western wicker wild wooden woollen young"
)
_NOUNS = _listed(
    "anchor anvil apron arch badger barge barrel basket bell bellows bench boat bridge bucket "
    "cabinet candle canal cart cellar chapel chest clock cloak compass cottage cradle crane desk "
    "drum engine falcon ferry fiddle flute fountain garden gate glove granary hammer harbour hare "
    "harp hedgehog heron inn kettle kiln kite ladder lantern ledger lighthouse loom magpie mirror "
    "mill orchard otter owl pavilion piano pigeon plough pump quarry raven saddle sail schooner "
    "sparrow spindle stable statue stove swallow telescope tent tower trunk tunnel turbine vault "
    "viola wagon well wharf windmill workshop wren"
)
_WORDS = _listed(
    "almanac apricot basalt beacon birch bonfire bramble cavern cinnamon clover cobalt comet "
    "cypress dolphin driftwood ember fathom feather fennel fern galleon ginger glacier hazel "
    "hickory horizon indigo jasmine juniper lagoon lavender magnet maple marble meadow meteor "
    "mosaic nutmeg oasis obsidian orchid osprey papyrus parsley pebble pepper pine plateau prism "
    "quartz ribbon saffron sapphire sequoia summit tamarind thicket thistle timber topaz tulip "
    "turnip twilight vanilla walnut willow zephyr zinnia"
)
_FIRST_NAMES = _listed(
    "Ada Agnes Alban Anselm Beatrix Bertram Cedric Clarissa Cosmo Dorothea Edwin Elspeth Felix "
    "Gideon Greta Harriet Hugo Imogen Ingrid Jasper Leopold Lionel Magnus Matilda Nadia Octavia "
    "Oswald Petra Quentin Rosalind Rupert Selma Silas Tabitha Tobias Ursula Viktor Wilfred Yvonne"
)
_LAST_NAMES = _listed(
    "Abernathy Ainsworth Barlow Birchall Castellan Cheswick Dalgleish Draycott Eastman Fairburn "
    "Falk Garrick Gresham Halloran Hartnell Ingleby Kessler Lockhart Lindqvist Marchbanks Merrow "
    "Nordahl Oakes Ormond Penhallow Quayle Ravenhill Rosen Selwyn Strand Thackeray Tolland Upshaw "
    "Vance Vickery Waldron Whitlock Yarrow Zeller"
)
_MONTHS = _listed(
    "January February March April May June July August September October November December"
)


def _number(rng: random.Random) -> str:
    digits = rng.randint(4, 7)
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def _hex(rng: random.Random) -> str:
    """Four to eight digits, at least one of which is a letter."""
    digits = "".join(rng.choices("0123456789abcdef", k=rng.randint(4, 8)))
    return digits if not digits.isdigit() else digits[:-1] + rng.choice("abcdef")


def _word(rng: random.Random) -> str:
    return rng.choice(_WORDS)


def _name(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST_NAMES)} {rng.choice(_LAST_NAMES)}"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1500, 2090)}"


_VALUES: dict[str, Callable[[random.Random], str]] = {
    "number": _number,
    "hex": _hex,
    "word": _word,
    "name": _name,
    "date": _date,
}
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "number": (
        "registration number", "invoice number", "catalogue number", "locker number",
        "ticket number", "account number", "weight in grams", "price in crowns", "meter reading",
        "policy number", "inventory number", "length in inches",
    ),
    "hex": ("serial code", "checksum", "build tag", "device id", "seal code", "shelf mark"),
    "word": ("call sign", "code name", "watchword", "nickname", "label", "project name"),
    "name": ("owner", "keeper", "buyer", "designer", "inspector", "finder", "caretaker"),
    "date": (
        "date of purchase", "launch date", "last repair date", "delivery date", "expiry date",
        "founding date", "next inspection date",
    ),
}  # fmt: skip
_FACTS = (
    "The {attribute} of the {subject} is {value}.",
    "As for the {subject}, its {attribute} is {value}.",
    "It is on record that the {attribute} of the {subject} is {value}.",
    "The list gives {value} as the {attribute} of the {subject}.",
    "The {subject} is entered with {value} as its {attribute}.",
    "Let it be known that {value} is the {attribute} of the {subject}.",
    "For the {subject}, the {attribute} is {value}.",
    "A clerk wrote down {value} for the {attribute} of the {subject}.",
    "(Note on the {subject}: {attribute} {value}.)",
    "Everybody agrees that the {subject} has the {attribute} {value}.",
)
_FACT_QUESTIONS = (
    "{what} is the {attribute} of the {subject}?",
    "According to the text, {What} is the {attribute} of the {subject}?",
    "Give the {attribute} of the {subject}.",
    "Look up the {attribute} of the {subject}.",
    "The text names the {subject}. {what} is its {attribute}?",
    "{what} is given as the {attribute} of the {subject}?",
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A sentence to hide, and what asks for it."""

    sentence: str
    question: str
    value: str


def _facts(count: int, text: str, rng: random.Random) -> list[Fact]:
    """Facts of as many subjects, half of the time all of one attribute."""
    subjects: dict[str, None] = {}
    while len(subjects) < count:
        subject = f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
        if subject not in text:
            subjects[subject] = None
    fixed = _attribute(rng) if rng.random() < 0.5 else None
    taken: set[str] = set()
    return [_fact(subject, fixed or _attribute(rng), text, taken, rng) for subject in subjects]


def _attribute(rng: random.Random) -> tuple[str, str]:
    """(what its values are, its name)."""
    kind = rng.choice(list(_ATTRIBUTES))
    return kind, rng.choice(_ATTRIBUTES[kind])


def _fact(
    subject: str, attribute: tuple[str, str], text: str, taken: set[str], rng: random.Random
) -> Fact:
    kind, name = attribute
    value = _fresh(_VALUES[kind], text, taken, rng)
    what = "Who" if kind == "name" else "What"
    words = {"subject": subject, "attribute": name, "value": value, "what": what}
    return Fact(
        sentence=rng.choice(_FACTS).format(**words),
        question=rng.choice(_FACT_QUESTIONS).format(What=what.lower(), **words),
        value=value,
    )


def _fresh(
    draw: Callable[[random.Random], str], text: str, taken: set[str], rng: random.Random
) -> str:
    """A value that neither the text nor another fact has."""
    value = draw(rng)
    while value in taken or value in text:
        value = draw(rng)
    taken.add(value)
    return value


def key_value(excerpt: str, rng: random.Random) -> Asked | None:
    """Facts between sentences; sometimes a JSON object or lines of keys and values instead."""
    variant = rng.random()
    if variant < 0.4:
        room = max(len(excerpt) // 2, 200)  # keys and codes take twice the tokens of prose
        return _json_object(room, rng) if variant < 0.2 else _lines(room, rng)
    return _hidden(_facts(rng.randint(4, 8), excerpt, rng), excerpt, rng)


def key_value_in_code(excerpt: str, rng: random.Random) -> Asked | None:
    """Facts in comments between lines of code."""
    facts = _facts(rng.randint(4, 8), excerpt, rng)
    places = [match.start() for match in re.finditer(r"^[^\n]+", excerpt, re.MULTILINE)]
    return _insert(facts, excerpt, places, _comment, rng)


def _hidden(facts: list[Fact], excerpt: str, rng: random.Random) -> Asked | None:
    return _insert(facts, excerpt, _sentence_starts(excerpt), lambda fact, _: f"{fact} ", rng)


def _comment(fact: str, after: str) -> str:
    return f"{' ' * (len(after) - len(after.lstrip(' ')))}# {fact}\n"


def _insert(
    facts: list[Fact],
    text: str,
    places: list[int],
    form: Callable[[str, str], str],
    rng: random.Random,
) -> Asked | None:
    """The text with each fact at a place of its own; None where it has too few."""
    if len(places) < len(facts):
        return None
    for place, fact in zip(sorted(rng.sample(places, len(facts)))[::-1], facts, strict=True):
        text = text[:place] + form(fact.sentence, text[place:]) + text[place:]
    pairs = [(fact.question, fact.value) for fact in facts]
    return Asked(context=text, pairs=tuple(rng.sample(pairs, len(pairs))))


_SECRETS = (
    ("The secret code is {value}.", "What is the secret code?"),
    ("Keep this to yourself: the door opens with {value}.", "What opens the door?"),
    ("The password for tonight is {value}.", "What is the password for tonight?"),
    ("Whoever is asked at the gate must say {value}.", "What must be said at the gate?"),
    ("Important: type {value} to unlock the safe.", "What must be typed to unlock the safe?"),
    ("Do not forget the hidden code, {value}.", "Which hidden code is not to be forgotten?"),
    ("The combination of the strongbox is {value}.", "What is the combination of the strongbox?"),
    ("The alarm is switched off with {value}.", "With what is the alarm switched off?"),
    ("Our agents know each other by the sign {value}.", "By which sign do agents know each other?"),
    ("{value} is the access code, and nobody else knows it.", "Give the access code."),
    ("Write this down, it unlocks the terminal: {value}.", "What unlocks the terminal?"),
    ("If they want a token, answer {value}.", "What is to be answered if they want a token?"),
    ("To enter the archive, one needs the key phrase {value}.", "Which key phrase is needed?"),
    ("The confidential key of this text is {value}.", "What is the text's confidential key?"),
    ("The one thing worth learning by heart here is {value}.", "What is to be learnt by heart?"),
)
_ANY_SECRET = (
    "A secret is hidden in the text. What is it?",
    "There is a code in the text that does not belong there. Which?",
    "Find the secret value that somebody slipped into the text.",
    "Which secret does the text give away?",
)


def passkey(excerpt: str, rng: random.Random) -> Asked | None:
    """One secret, and a fact or two that are none."""
    taken: set[str] = set()
    value = _fresh(_VALUES[rng.choice(("number", "hex", "word"))], excerpt, taken, rng)
    sentence, question = rng.choice(_SECRETS)
    secret = Fact(sentence=sentence.format(value=value), question=question, value=value)
    asked = _hidden([secret, *_facts(rng.randint(1, 2), excerpt, rng)], excerpt, rng)
    if asked is None or rng.random() < 0.5:
        return asked
    return Asked(context=asked.context, pairs=(*asked.pairs, (rng.choice(_ANY_SECRET), value)))


def _entries(room: int, entry_chars: int, rng: random.Random) -> dict[str, str]:
    """Random keys, words or codes, and random values, as many as there is room for."""
    by_word, kind = rng.random() < 0.5, rng.choice(("number", "hex", "word"))
    found: dict[str, str] = {}
    for _ in range(min(max(4, room // (20 + entry_chars)), 60)):
        key = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}" if by_word else _hex(rng)
        found[key] = _VALUES[kind](rng)
    return found


def _json_object(room: int, rng: random.Random) -> Asked:
    """A JSON object, without prose."""
    entries = _entries(room, 8, rng)
    text = json.dumps(entries, indent=rng.choice((None, 1, 2)))
    return _asked_entries(text, entries, _JSON_QUESTIONS, rng)


_JSON_QUESTIONS = (
    'Which value does the object give for "{key}"?',
    'What stands under the key "{key}"?',
    'Look up "{key}" in the JSON. What does it hold?',
    'Give the value that belongs to "{key}".',
)
_LINE_FORMS = (
    ("line {key}: the value is {value}", ("What is the value of line {key}?",)),
    ("entry {key} holds {value}", ("What does entry {key} hold?", "Look up entry {key}.")),
    ("{key} = {value}", ("What is {key} equal to?", "Give the value of {key}.")),
    ("row {key} | {value}", ("What stands in row {key}?", "Give what row {key} has.")),
    ("{key} -> {value}", ("What does {key} point to?", "Where does the arrow of {key} lead?")),
    ("record {key}: {value}", ("Give the value of record {key}.", "What is record {key}?")),
    ("The item {key} is marked {value}.", ("How is the item {key} marked?",)),
    ("{key},{value}", ("What stands after {key}?", "Which value does {key} have in the table?")),
)


def _lines(room: int, rng: random.Random) -> Asked:
    """Lines of keys and values, without prose."""
    form, questions = rng.choice(_LINE_FORMS)
    entries = _entries(room, len(form), rng)
    text = "\n".join(form.format(key=key, value=value) for key, value in entries.items())
    return _asked_entries(text, entries, questions, rng)


def _asked_entries(
    text: str, entries: dict[str, str], questions: tuple[str, ...], rng: random.Random
) -> Asked:
    keys = rng.sample(list(entries), min(len(entries), rng.randint(2, 8)))
    pairs = tuple((rng.choice(questions).format(key=key), entries[key]) for key in keys)
    return Asked(context=text, pairs=pairs)


_PARAGRAPH = re.compile(r"(?:^|(?<=\n\n))[A-Z\"'\u201c\u2018(][^\n]{60,}(?=\n\n|$)")
_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]?[A-Z0-9])")
_ABBREVIATED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Mme|Mlle|Prof|Rev|Hon|Capt|Col|Gen|Esq|Fig|No|Vol|Sec|Eq|cf|vs"
    r"|al|etc|viz|approx|e\.g|i\.e)|\b[A-Z])\.$"
)


def prose_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of one line that begin and end as prose does."""
    return (match[0] for match in _PARAGRAPH.finditer(text) if _is_prose(match[0]))


def _is_prose(paragraph: str) -> bool:
    """Whether it ends as a sentence does and has neither formulas nor links."""
    ended = paragraph.rstrip("\"'\u201d\u2019)]").endswith((".", "!", "?"))
    return ended and not re.search(r"[\\$|{}<>]|\]\(|://", paragraph)


def paragraph_sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph, without the blanks between them."""
    starts = [*_starts(paragraph), len(paragraph)]
    return [paragraph[a:b].strip() for a, b in zip(starts, starts[1:], strict=False)]


def _starts(paragraph: str) -> list[int]:
    ends = _END.finditer(paragraph)
    later = [end.end() for end in ends if not _ABBREVIATED.search(paragraph[: end.start() + 1])]
    return [0, *later]


def _sentence_starts(text: str) -> list[int]:
    """Where sentences of prose begin."""
    return [
        match.start() + start
        for match in _PARAGRAPH.finditer(text)
        if _is_prose(match[0])
        for start in _starts(match[0])
    ]
