"""Plain text -> questions about it, without a model.

In: documents, prose or code. Out: a context of a few paragraphs and several questions on it, whose
answers stand in it. What is drawn depends on the documents and the generator alone. The words and
sentences here are not those of the evaluation's tasks, which stay unseen. `facts` has the kinds
that hide something in a text; here are those that ask for what is there. Knows nothing of models
or tokens.
"""

from __future__ import annotations

import keyword
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from .facts import (
    Asked,
    Pair,
    key_value,
    key_value_in_code,
    paragraph_sentences,
    passkey,
    prose_paragraphs,
)

Kind = Callable[[str, random.Random], "Asked | None"]
"""Called with (excerpt, generator); None where the excerpt cannot be asked so."""

LEAST_CHARS = 600
"""The shortest excerpt that is drawn."""
_TRIES = 400
_FEWEST, _MOST = 2, 6
_REPEATED_WORDS = 60
_SENTENCE_WORDS = 50
_VERBS = (
    "(?:said|replied|asked|cried|answered|exclaimed|returned|whispered|murmured|added|continued"
    "|remarked|observed|shouted|muttered|inquired|demanded|repeated|suggested|declared|called)"
)
_NO_NAME = (
    "(?:He|She|They|It|We|You|Then|And|But|So|Now|One|Nobody|Everybody|Somebody|Someone|Everyone"
    "|Here|There|This|That|These|Those|What|Who|When|Where|Why|How|Not|Both|Another|Her|His|Their"
    "|My|The|Was|Is|Are|Were|Had|Has|Have|Did|Does|Could|Would|Should|Can|Will|If|As|Oh|Yes|Well)"
)
_COMMON = (
    "(?:because|nothing|perhaps|therefore|however|something|everything|anything|another|through"
    "|without|against|between|herself|himself|themselves|yourself|whether|towards|already|although"
    "|whatever|together|sometimes|certainly|besides|instead|neither|several|further|evidently)"
)
_TITLE = (
    "(?:Mr|Mrs|Miss|Ms|Dr|St|Rev|Hon|Capt|Mme|Mlle|Messrs|Sir|Lady|Lord|Captain|Colonel|Major"
    "|General|Uncle|Aunt|Father|Mother|Brother|Sister|Madame|Monsieur|Count|Countess|Prince"
    "|Princess|Professor|Judge|King|Queen|Don|Doctor|Squire|Inspector|Baron|Duke)"
)
_NAME = rf"(?!{_NO_NAME}\b)(?:{_TITLE}\.? )?(?!{_TITLE}\.)[A-Z]\w{{2,}}(?: (?:[A-Z]\. )?[A-Z]\w+)?"
_SPEAKER = re.compile(
    rf" (?:{_VERBS} (?P<after>{_NAME})|(?P<before>{_NAME}) {_VERBS})"
    r"(?=[.,;:]|\s[a-z])(?!\s(?:and|or)\b)"
)
_QUOTES = (
    re.compile(r"(?<!\S)\"([^\"\n]+[,.?!])\""),
    re.compile(r"(?<!\S)\u201c([^\u201c\u201d\n]+[,.?!])\u201d"),
    re.compile(r"(?<!\S)\u2018((?:(?!\u2019\s|[\u2018\n]).)+[,.?!])\u2019"),
    re.compile(r"(?<!\S)'((?:(?!'\s|\s'|\n).)+[,.?!])'"),
)
_DEF = re.compile(
    r"^(?P<indent>[ ]*)(?:async )?def (?P<name>\w+)"
    r"\((?P<parameters>[^()\n]*(?:\([^()\n]*\)[^()\n]*)*)\)[^\n]*:[ ]*$",
    re.MULTILINE,
)
_SCOPE = re.compile(r"^(?P<indent> *)(?P<what>async def|def|class) (?P<name>\w+)", re.MULTILINE)
_CODE = re.compile(r"\w\(|=|:$|^(?:return|raise|import|yield|assert|del|pass|break|#|@|[\])}])")
"""What a line of code has and a line of a docstring seldom does."""
_WORDS = re.compile(r"(?:\b[A-Za-z']{3,} ){4}")
"""What a line of a docstring has and a line of code seldom does."""


class Documents:
    """Whole texts, of which excerpts are drawn, of long ones more often.

    Args:
        texts: at least one, none of them empty.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(texts)
        self._ends = list(accumulate(map(len, self.texts)))

    def excerpt(self, rng: random.Random, context_chars: int) -> str:
        """A few paragraphs, of a drawn length of at most `context_chars`."""
        length = rng.randint(min(LEAST_CHARS, context_chars), context_chars)
        place = rng.randrange(self._ends[-1])
        number = bisect_right(self._ends, place)
        text = self.texts[number]
        return _cut(text, place - self._ends[number] + len(text), length)


def _cut(text: str, place: int, length: int) -> str:
    """From the paragraph after a place on, to the end of a paragraph, a line or a sentence."""
    if len(text) <= length:
        return text.strip("\n").rstrip()
    start = max(0, text.find("\n\n", min(place, max(0, len(text) - 2 * length))))
    piece = text[start : start + length]
    for mark in ("\n\n", "\n", ". ") if start + length < len(text) else ():
        end = piece.rfind(mark)
        if end > length // 2:
            return piece[: end + 1].strip("\n").rstrip()
    return piece.strip("\n").rstrip()


def make(
    kind: str,
    documents: Documents,
    *,
    is_code: bool,
    context_chars: int,
    rng: random.Random,
) -> Asked | None:
    """A context and questions of a kind; None where no excerpt can be asked so."""
    function = (CODE_KINDS if is_code else PROSE_KINDS)[kind]
    for _ in range(_TRIES):
        asked = function(documents.excerpt(rng, context_chars), rng)
        if asked is not None:
            return asked
    return None


def _some(context: str, pairs: list[Pair], rng: random.Random) -> Asked | None:
    """Some of the pairs; None where there are too few."""
    if len(pairs) < _FEWEST:
        return None
    chosen = rng.sample(pairs, min(len(pairs), rng.randint(_FEWEST, _MOST)))
    return Asked(context=context, pairs=tuple(chosen))


def next_sentence(excerpt: str, rng: random.Random) -> Asked | None:
    """The sentence after a given one."""
    pairs = [
        (rng.choice(_NEXT).format(what="sentence", given=f'"{first}"'), second)
        for paragraph in prose_paragraphs(excerpt)
        for first, second in _neighbours(paragraph)
        if excerpt.count(first) == 1
    ]
    return _some(excerpt, pairs, rng)


_NEXT = (
    "Which {what} comes right after this one: {given}?",
    "What is the {what} that follows {given}?",
    "After {given}, what is the next {what}?",
    "Give the {what} that stands directly after this {what}: {given}",
)


def _neighbours(paragraph: str) -> Iterable[tuple[str, str]]:
    found = paragraph_sentences(paragraph)
    return ((a, b) for a, b in zip(found, found[1:], strict=False) if _plain(a) and _plain(b))


def _plain(sentence: str) -> bool:
    """Whether a sentence is of a good length and not a part of a quotation."""
    quoted = any(mark in sentence for mark in '"\u201c\u201d\u2018') or sentence[-1] in "'\u2019"
    return sentence[0].isupper() and not quoted and 4 <= len(sentence.split()) <= 25


def next_line(excerpt: str, rng: random.Random) -> Asked | None:
    """The line of code after a given one."""
    lines = excerpt.split("\n")
    pairs = [
        (rng.choice(_NEXT).format(what="line of code", given=f"`{first.strip()}`"), second.strip())
        for first, second in zip(lines, lines[1:], strict=False)
        if _is_code_line(first, lines) and len(second.strip()) > 3
    ]
    return _some(excerpt, pairs, rng)


def _is_code_line(line: str, lines: list[str]) -> bool:
    """Whether a line is long enough, short enough and there only once."""
    text = line.strip()
    return (
        8 <= len(text) <= 100
        and "`" not in text
        and _CODE.search(text) is not None
        and _WORDS.search(text) is None
        and sum(text in other for other in lines) == 1
    )


def repeat(excerpt: str, rng: random.Random) -> Asked | None:
    """A paragraph, or its beginning, by its first words."""
    pairs = []
    for paragraph in prose_paragraphs(excerpt):
        begin = " ".join(paragraph.split(" ")[: rng.randint(4, 6)])
        what, answer = _repeated(paragraph)
        if answer and excerpt.count(begin) == 1 and not re.search(r"[\"\u201c\u201d]", begin):
            ask = rng.choice(_REPEAT).format(what=what, begin=f'"{begin}"')
            pairs.append((ask, answer))
    return _some(excerpt, pairs, rng)


_REPEAT = (
    "Repeat {what} that begins with {begin}.",
    "Copy {what} that begins with {begin}, word for word.",
    "Write out {what} beginning with {begin}.",
    "Quote {what} that begins with {begin}.",
)


def _repeated(paragraph: str) -> tuple[str, str]:
    """What is to be repeated, in words, and as it stands; empty if it is too long or short."""
    words = len(paragraph.split())
    if 8 <= words <= _REPEATED_WORDS:
        return "the paragraph", paragraph
    sentences = paragraph_sentences(paragraph)
    for count, what in ((2, "the first two sentences"), (1, "the first sentence")):
        begin = " ".join(sentences[:count])
        if len(sentences) > count and 8 <= len(begin.split()) <= _SENTENCE_WORDS:
            return f"{what} of the paragraph", begin
    return "", ""


def repeat_lines(excerpt: str, rng: random.Random) -> Asked | None:
    """Three lines of code, by the first."""
    lines = excerpt.split("\n")
    pairs = []
    for number in range(len(lines) - 2):
        answer = "\n".join(lines[number : number + 3]).strip()
        blank = any(not line.strip() for line in lines[number : number + 3])
        if not blank and len(answer) <= 240 and _is_code_line(lines[number], lines):
            ask = rng.choice(_REPEAT_LINES).format(begin=f"`{lines[number].strip()}`")
            pairs.append((ask, answer))
    return _some(excerpt, pairs, rng)


_REPEAT_LINES = (
    "Repeat the 3 lines of code that begin with {begin}.",
    "Copy the three lines of code from {begin} on.",
    "Write out 3 lines of the code, the first of which is {begin}.",
)


def who_said(excerpt: str, rng: random.Random) -> Asked | None:
    """The name of whoever says the quoted words, where at least two people speak."""
    pairs = []
    for quote, name in _speeches(excerpt):
        words = quote.split(" ")
        count = min(len(words), rng.randint(4, 12))
        given = " ".join(words[:count]).rstrip(",.;:-")
        if len(words) >= 4 and excerpt.count(given) == 1:
            dots = " ..." if count < len(words) else ""
            pairs.append((rng.choice(_WHO).format(given=f'"{given}{dots}"'), name))
    return _some(excerpt, pairs, rng) if len({name for _, name in pairs}) > 1 else None


_WHO = (
    "Who says {given}?",
    "Who speaks these words: {given}",
    "Whose words are these: {given}",
    "Name the person who says {given}.",
)


def _speeches(text: str) -> Iterable[tuple[str, str]]:
    """Words between quotation marks and the name that follows them with a verb of speaking."""
    for quotes in _QUOTES:
        for quote in quotes.finditer(text):
            speaker = _SPEAKER.match(text, quote.end())
            if speaker and '"' not in quote[1]:
                yield quote[1], speaker["after"] or speaker["before"]


def signature(excerpt: str, rng: random.Random) -> Asked | None:
    """Parameters of functions, their class and their neighbours."""
    names = [scope["name"] for scope in _SCOPE.finditer(excerpt)]
    pairs = []
    for match in _DEF.finditer(excerpt):
        parameters = match["parameters"].strip()
        if names.count(match["name"]) == 1:
            if parameters not in ("", "self", "cls") and len(parameters) <= 80:
                pairs.append((rng.choice(_PARAMETERS).format(name=match["name"]), parameters))
            pairs += _around(excerpt[: match.start()], match, rng)
    return _some(excerpt, pairs, rng)


_PARAMETERS = (
    "What are the parameters of the function `{name}`?",
    "Which parameters does `{name}` take?",
    "Give the parameter list of `{name}` as it is written.",
)
_CLASS = ("In which class is `{name}` defined?", "Which class has the method `{name}`?")
_BEFORE = (
    "Which function is defined right before `{name}`?",
    "After which function is `{name}` defined?",
)


def _around(before: str, match: re.Match[str], rng: random.Random) -> list[Pair]:
    """The class that a function stands in and the function before it, where they are sure."""
    pairs = []
    scopes = list(_SCOPE.finditer(before))
    last = scopes[-1] if scopes else None
    if last and last["indent"] == match["indent"] and last["what"] != "class":
        pairs.append((rng.choice(_BEFORE).format(name=match["name"]), last["name"]))
    outer = [line for line in before.split("\n") if re.match(r"\S", line)]
    owner = re.match(r"class (\w+)", outer[-1]) if outer else None
    if owner and len(match["indent"]) == 4:
        pairs.append((rng.choice(_CLASS).format(name=match["name"]), owner[1]))
    return pairs


def cloze(excerpt: str, rng: random.Random) -> Asked | None:
    """The word left out of a sentence."""
    pairs = []
    for paragraph in prose_paragraphs(excerpt):
        for sentence in filter(_plain, paragraph_sentences(paragraph)):
            pairs += _blanked(sentence, _content_words(sentence, excerpt), excerpt, _CLOZE, rng)
    return _some(excerpt, pairs, rng)


_CLOZE = (
    'Which word is missing in this sentence of the text: "{blanked}"',
    'Fill in the blank as the text has it: "{blanked}"',
    'What stands in place of ____ here: "{blanked}"',
    'Complete with one word from the text: "{blanked}"',
)
_CLOZE_LINE = (
    "Which name or number is missing in this line of the code: `{blanked}`",
    "Fill in the blank as the code has it: `{blanked}`",
    "What stands in place of ____ in this line: `{blanked}`",
)


def _content_words(sentence: str, text: str) -> list[re.Match[str]]:
    """Names and numbers inside a sentence; where there are none, long words used once."""
    words = list(re.finditer(r"(?<![\w'\u2019.*/-])\w+(?![\w'\u2019*/-]|\.\w)", sentence))[1:]
    no_name = re.compile(f"{_TITLE}|{_NO_NAME}")
    found = [word for word in words if re.fullmatch(r"[A-Z][a-z]{2,}|\d{2,}", word[0])]
    names = [word for word in found if not no_name.fullmatch(word[0])]
    long = [word for word in words if len(word[0]) >= 7 and text.count(word[0]) == 1]
    return names or [word for word in long if not re.fullmatch(_COMMON, word[0])]


def cloze_in_code(excerpt: str, rng: random.Random) -> Asked | None:
    """The name or number left out of a line of code."""
    lines = excerpt.split("\n")
    pairs = []
    for line in lines:
        if _is_code_line(line, lines) and len(line.split()) > 1:
            pairs += _blanked(line.strip(), _code_words(line.strip()), excerpt, _CLOZE_LINE, rng)
    return _some(excerpt, pairs, rng)


def _code_words(line: str) -> list[re.Match[str]]:
    """Names and numbers, none of a comment."""
    words = re.finditer(r"\b(?:[A-Za-z_]\w{2,}|\d{2,})\b", line.split("#")[0])
    return [word for word in words if not keyword.iskeyword(word[0]) and word[0] != "self"]


def _blanked(
    sentence: str,
    words: list[re.Match[str]],
    text: str,
    templates: tuple[str, ...],
    rng: random.Random,
) -> list[Pair]:
    """One word of a sentence as a question, if the text has only one that fits."""
    if not words:
        return []
    word = rng.choice(words)
    before, after = sentence[: word.start()], sentence[word.end() :]
    fitting = re.findall(rf"{re.escape(before)}(\w+){re.escape(after)}", text)
    question = rng.choice(templates).replace("{blanked}", f"{before}____{after}")
    return [(question, word[0])] if fitting == [word[0]] else []


PROSE_KINDS: Mapping[str, Kind] = {
    "key-value": key_value,
    "passkey": passkey,
    "next-sentence": next_sentence,
    "repeat": repeat,
    "who-said": who_said,
    "cloze": cloze,
}
"""Kinds of questions about prose."""
CODE_KINDS: Mapping[str, Kind] = {
    "key-value": key_value_in_code,
    "next-sentence": next_line,
    "repeat": repeat_lines,
    "signature": signature,
    "cloze": cloze_in_code,
}
"""Kinds of questions about code."""
