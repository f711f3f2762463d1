"""New tokens -> text, as they come.

In: token ids in any portions, and strings at which a text ends. Out: pieces of text that never have
half a character, nor any of a stop string, and why the text ended. All pieces together are what the
reader decodes of all ids, up to the stop string; but for tokenizers that spell characters in bytes
and, where those turn out to be none, take back the characters before them: these stay. It knows
nothing of engines but what they give.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..generation import FinishReason
from ..reader import Reader
from .engines.base import NewTokens

_HALF = "\ufffd"
"""What tokenizers write for bytes that are no character, or not yet."""
_APART = 8
"""Of so many ids that have given no text yet, one more is awaited before they are decoded again."""


class Detokenizer:
    """The text of one answer.

    Attributes:
        finish_reason: why the text ended, None as long as it goes on. After a stop string it is
            "stop", and whatever is added then is no text: the engine can be told to end.
        num_tokens: ids that were added.
    """

    def __init__(self, reader: Reader, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise InputError(
                "A stop string has at least 1 character, but one of these is empty; leave it out."
            )
        self.finish_reason: FinishReason | None = None
        self._reader, self._stop = reader, tuple(stop)
        self._ids: list[int] = []
        self._start = self._end = 0  # ids whose text is needed to decode the next, and is known
        self._again = 0  # ids with which it is worth to decode again
        self._num_decoded = 0
        self._held = ""

    @property
    def num_tokens(self) -> int:
        """Token ids that were added."""
        return len(self._ids)

    def add(self, new: NewTokens) -> str:
        """The text that is certain now and was not before; often a few tokens late."""
        self._ids += new.token_ids
        if self.finish_reason is not None:
            return ""
        ended = new.finish_reason is not None
        self._held += self._rest() if ended else self._next()
        found = [(self._held.find(stop), len(stop)) for stop in self._stop if stop in self._held]
        if found:
            self.finish_reason = "stop"
            # The first to be complete, as if every character came alone, and of two the longer.
            return self._held[: min(found, key=lambda each: (sum(each), each[0]))[0]]
        self.finish_reason = new.finish_reason
        length = len(self._held) - (0 if ended else self._possible_stop())
        piece, self._held = self._held[:length], self._held[length:]
        return piece

    def _next(self) -> str:
        """Text of ids that end with a whole character.

        They are decoded together with those before them, since tokenizers treat a text's first
        token unlike others. Halves and special tokens may go on for ever: the more have come, the
        rarer they are decoded, so that an answer costs what it is long. (`DecodeStream` of the
        tokenizers library decodes them all for each new one, and keeps the last for itself.)
        """
        if len(self._ids) < self._again:
            return ""
        known = self._reader.decode(self._ids[self._start : self._end])
        text = self._reader.decode(self._ids[self._start :])
        if len(text) <= len(known) or text.endswith(_HALF):
            self._again = len(self._ids) + 1 + (len(self._ids) - self._end) // _APART
            return ""
        self._start, self._end = self._end, len(self._ids)
        self._num_decoded += len(text) - len(known)
        return text[len(known) :]

    def _rest(self) -> str:
        """What is left of the whole text, half characters as the tokenizer writes them."""
        return self._reader.decode(self._ids)[self._num_decoded :]

    def _possible_stop(self) -> int:
        """Characters at the end that a stop string may begin with."""
        text, stops = self._held, self._stop
        most = min(len(text), max(map(len, stops), default=0))
        lengths = (n for n in range(most, 0, -1) if any(s.startswith(text[-n:]) for s in stops))
        return next(lengths, 0)
