"""A chat as its reader's template writes it, with places for what is no text.

In: messages whose texts have places between them. Out: token ids before, between and after the
places. Special tokens are the template's alone: those that a message spells are text. Knows nothing
of what goes into the places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .reader import Reader

Role = Literal["system", "user", "assistant"]
_MARK = re.compile("\ue000([0-9]+)\ue001")
"""A special token that the user spelled, in a rendered chat: its number in private characters."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a chat.

    Attributes:
        role: whose it is.
        texts: its text, in pieces; between one and the next is a place.
    """

    role: Role
    texts: tuple[str, ...]


def around_places(reader: Reader, messages: Sequence[Message], head: Tensor) -> list[Tensor]:
    """Token ids (t,) of what stands before, between and after the places, up to the answer.

    A reader without a chat template gets "Question: ... Answer: ...", with the question after the
    last place of its message.

    Args:
        reader: whose template it is.
        messages: the chat.
        head: (h,) first of all, where no template writes something before the first place.

    Raises:
        InputError: the template refuses these messages, for example two of one role in a row.
    """
    place = _place_for(messages)
    if reader.tokenizer.chat_template is None:
        first, *more = _plain(messages, place).split(place)
        return [torch.cat([head, reader.encode(first)]), *map(reader.encode, more)]
    specials = _special_tokens(reader)
    rendered = _rendered(reader, messages, specials, place)
    ids = [_template_ids(reader, text, specials) for text in rendered.split(place)]
    return ids if len(ids[0]) else [head, *ids[1:]]


def _place_for(messages: Sequence[Message]) -> str:
    """A mark that no message spells."""
    mark = "the-context-goes-here"
    while any(mark in text for message in messages for text in message.texts):
        mark += "-"
    return f"<<<{mark}>>>"


def _rendered(
    reader: Reader, messages: Sequence[Message], specials: Sequence[str], place: str
) -> str:
    chat = [
        {"role": each.role, "content": place.join(_marked(text, specials) for text in each.texts)}
        for each in messages
    ]
    try:
        rendered = reader.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"Messages follow one another as the reader's chat template allows, but it refuses "
            f"{roles} ({error}); change their order or leave some out."
        ) from error
    return str(rendered)


def _plain(messages: Sequence[Message], place: str) -> str:
    """Messages for a reader without a template."""
    whole = ""
    for message in messages:
        if message.role == "user":
            *before, asked = message.texts
            asked = "\n\nQuestion: " + asked.removeprefix("\n\n")
            whole += place.join([*before, asked])
        else:
            opening = "\nAnswer: " if message.role == "assistant" else "\n\n"
            whole += opening + place.join(message.texts)
    return f"{whole}\nAnswer:"


def _marked(text: str, specials: Sequence[str]) -> str:
    """Text of the user's with a mark for each special token that it spells."""
    for number, token in enumerate(specials):
        text = text.replace(token, f"\ue000{number}\ue001")
    return text


def _special_tokens(reader: Reader) -> list[str]:
    """The longest first: one may be part of another."""
    known = reader.tokenizer.added_tokens_decoder.values()
    return sorted((str(token) for token in known if token.special), key=len, reverse=True)


def _template_ids(reader: Reader, text: str, specials: Sequence[str]) -> Tensor:
    """Token ids of a rendered chat; what was marked is encoded as text."""
    pieces: list[Tensor] = []
    for place, piece in enumerate(_MARK.split(text)):
        if place % 2 == 0:
            pieces.append(reader.encode_template(piece))
        elif int(piece) < len(specials):
            pieces.append(reader.encode(specials[int(piece)]))
    return torch.cat(pieces)
