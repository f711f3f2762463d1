"""Every setting of the server.

In: values from the command line. Out: frozen settings, checked. Knows nothing of what they steer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from ipaddress import ip_address

from ..errors import ConfigError

MIB = 1 << 20
_LEAST_PARSER_BYTES = 256 * MIB
"""With less the program that reads files does not start."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one key may ask for; a server without keys has one client."""

    max_body_bytes: int = 32 * MIB
    """Of one request, hence of an uploaded file too."""
    max_contexts: int = 1000
    """That it keeps."""
    max_text_bytes: int = 1024 * MIB
    """Of text that it keeps in all of them, in UTF-8; rows take many times as much."""
    max_concurrent: int = 128
    """Requests at the same time."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, *(each.name for each in dataclasses.fields(self)))


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How the server behaves."""

    model: str = "extensible"
    """The name that clients ask for."""
    k: int = 4
    """Tokens per row, as contexts are kept."""
    row_type: str = "bfloat16"
    """In which numbers."""
    expand: int | str = "auto"
    """Tokens of spans that are read raw beside rows, or "auto", where a request does not say."""
    max_new_tokens: int = 512
    """Where a request does not say; at most a quarter of the window."""
    max_requests: int = 256
    """Of all clients at the same time; more are told to come back."""
    max_queued: int = 16
    """Texts that wait for the embedder; more are told to come back."""
    max_parsing: int = 2
    """Files that are read at the same time."""
    parse_timeout_s: float = 120.0
    """For the text of a file; one that takes longer is refused."""
    max_document_bytes: int = 32 * MIB
    """Of the text of a file, in UTF-8, which may be far more than the file."""
    parse_memory_bytes: int = 2048 * MIB
    """For the same; on Linux alone."""
    request_timeout_s: float = 600.0
    """For an answer, from its request to its last token."""
    body_timeout_s: float = 30.0
    """In which the body of a request comes, and a second more for every 16 KiB of it."""
    header_timeout_s: float = 10.0
    """In which the head of a request comes."""
    send_timeout_s: float = 60.0
    """In which a client takes what is sent; one that does not read has left."""
    stop_timeout_s: float = 30.0
    """For requests that run when the server is stopped."""
    cache_bytes: int = 256 * MIB
    """Of rows of long messages, which clients send again with every turn."""
    index_bytes: int = 64 * MIB
    """Of words of contexts, kept for the spans of the next question."""
    limits: Limits = field(default_factory=Limits)
    """Of keys that have none of their own."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_new_tokens", "max_requests", "max_queued", "max_parsing", "k")
        if not self.model.strip() or not self.model.isprintable():
            raise ConfigError(
                "The name that clients ask for can be seen and typed, but it is "
                f"{self.model!r}; give another."
            )
        check_at_least(self, 1, "max_document_bytes")
        check_at_least(self, 0, "index_bytes")
        names = ("parse", "request", "body", "header", "send", "stop")
        check_at_least(self, 0.01, *(f"{name}_timeout_s" for name in names))
        check_at_least(self, _LEAST_PARSER_BYTES, "parse_memory_bytes")


def check_at_least(settings: object, least: float, *names: str) -> None:
    """Raises ConfigError unless these settings are numbers and not too small."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise ConfigError(
                f"{name} is a number of {least} or more, but it is {value!r}; give a larger one."
            )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
