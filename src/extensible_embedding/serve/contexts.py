"""The contexts that clients keep, in a store.

In: a client, a name, a text. Out: what the store has of it. Whatever a call returned is on the disk
and stays there if the process is killed. Rows are made in the embedder's thread, one text at a
time. Knows nothing of HTTP but the errors that it raises.

A client's contexts are named `client:name` in the store, so that clients never meet; contexts
without a colon, put there by other means, are shared: all may read them, nobody may change them.
Without keys there is one client, and its names are those of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..context import Context
from ..embedder import ExtensibleEmbedder
from ..errors import BusyError
from ..store.manifest import Manifest
from ..store.names import check_name, is_name, name_key
from ..store.reading import lazy_context
from ..store.store import ContextStore
from .errors import ApiError
from .keys import Client
from .settings import ServeSettings
from .workers import Worker

_BETWEEN = ":"
_MOMENT_S = 0.2
"""That a deletion waits for others, before it queues behind the text that is being read."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A context as its client knows it."""

    name: str
    shared: bool
    """Whether it is there for all, and not the client's own."""
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A part of a context's text."""

    text: str
    start_byte: int
    end_byte: int
    text_bytes: int
    """Of the whole text."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a client keeps."""

    contexts: int
    max_contexts: int
    tokens: int
    rows: int
    text_bytes: int
    max_text_bytes: int


class Library:
    """Contexts of all clients.

    Args:
        store: where they are.
        embedder: makes their rows.
        settings: at which k, and how many.
        looking: thread that looks things up, and removes.
        embedding: thread that changes the store otherwise.
    """

    def __init__(
        self,
        store: ContextStore,
        embedder: ExtensibleEmbedder,
        settings: ServeSettings,
        looking: Worker,
        embedding: Worker,
    ) -> None:
        self.store, self.embedder, self.settings = store, embedder, settings
        self._hasty = ContextStore(store.place.name, wait_s=_MOMENT_S)
        self._looking, self._embedding = looking, embedding

    async def add(
        self,
        client: Client,
        name: str,
        text: str,
        *,
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Kept:
        """Keeps a text.

        Raises:
            ApiError: there is such a context, the client keeps too many or too much, or too many
                texts wait.
            InputError: the name, the text or its metadata is not usable.
            StorageError: the disk refuses.
        """

        def job(progress: Callable[[int, int], None]) -> Kept:
            stored_name = _own(client, check_name(name))
            there = stored_name in self.store
            if there and not replace:
                raise ApiError(
                    409,
                    f"A name stands for one context, but {name!r} is taken; append to it, replace "
                    "it, or give another name.",
                    code="context_exists",
                    param="name",
                )
            self._check_room(client, text, is_new=not there, instead_of=stored_name)
            stored = self.store.add(
                stored_name,
                text,
                self.embedder,
                k=self.settings.k,
                row_type=self.settings.row_type,
                title=title or name,
                metadata=metadata,
                replace=replace,
                progress=progress,
            )
            return Kept(name=name, shared=False, manifest=stored.manifest)

        return await self._embedding.run_stoppable(job, client)

    async def append(self, client: Client, name: str, text: str) -> Kept:
        """Goes on with a context; raises as `add`, and ApiError where there is none."""

        def job(progress: Callable[[int, int], None]) -> Kept:
            self._check_own(client, name)
            self._check_room(client, text)
            stored = self.store.append(_own(client, name), text, self.embedder, progress=progress)
            return Kept(name=name, shared=False, manifest=stored.manifest)

        return await self._embedding.run_stoppable(job, client)

    async def delete(self, client: Client, name: str) -> None:
        """Removes a context; raises as `append`.

        Without waiting for a text that is being read, unless that is this context's.
        """

        def job(store: ContextStore) -> None:
            self._check_own(client, name)
            store.delete(_own(client, name))

        try:
            await self._looking.run(lambda: job(self._hasty), client, first=True)
        except BusyError:
            await self._embedding.run(lambda: job(self.store), client, first=True)

    async def all(self, client: Client) -> list[Kept]:
        """All that a client may read, by name."""
        return await self._looking.run(
            lambda: sorted(self._all(client), key=lambda k: k.name), client
        )

    async def show(self, client: Client, name: str) -> Kept:
        """One of them.

        Raises:
            ApiError: there is none of that name.
        """
        return await self._looking.run(lambda: self._find(client, name), client)

    async def text(self, client: Client, name: str, start_byte: int, num_bytes: int) -> TextPart:
        """Whole characters of one of them, of these bytes.

        Raises as `show`, and CheckpointError if it is damaged.
        """
        return await self._looking.run(
            lambda: _part(self._opened(client, name).text().encode(), start_byte, num_bytes),
            client,
        )

    async def usage(self, client: Client) -> Usage:
        """What a client keeps itself."""

        def job() -> Usage:
            own = self._kept_by(client)
            return Usage(
                contexts=len(own),
                max_contexts=client.limits.max_contexts,
                tokens=sum(each.num_tokens for each in own),
                rows=sum(each.num_rows for each in own),
                text_bytes=sum(each.text_bytes for each in own),
                max_text_bytes=client.limits.max_text_bytes,
            )

        return await self._looking.run(job, client)

    def open(self, client: Client, names: Sequence[str]) -> list[Context]:
        """Contexts to read, whose rows come when k is known; to be called in the reading thread.

        Raises:
            ApiError: there is none of that name, or it is empty.
            CheckpointError: one is damaged.
        """
        return [lazy_context(self._opened(client, name)) for name in names]

    def _opened(self, client: Client, name: str) -> Any:
        kept = self._find(client, name)
        if not kept.manifest.num_tokens:
            raise ApiError(
                409,
                f"A context is read when it holds text, but {name!r} is empty; append some.",
                code="context_empty",
                param="name",
            )
        return self.store.open(kept.manifest.name)

    def _all(self, client: Client) -> Iterator[Kept]:
        for manifest in self.store.manifests():
            owner, between, name = manifest.name.partition(_BETWEEN)
            if not client.name:
                yield Kept(name=manifest.name, shared=False, manifest=manifest)
            elif not between:
                yield Kept(name=manifest.name, shared=True, manifest=manifest)
            elif owner == client.name:
                yield Kept(name=name, shared=False, manifest=manifest)

    def _find(self, client: Client, name: str) -> Kept:
        """The client's own, or else the shared one of that name."""
        for stored_name in _readable(client, name):
            if stored_name in self.store:
                manifest = self.store.manifest(stored_name)
                return Kept(name=name, shared=stored_name != _own(client, name), manifest=manifest)
        raise _unknown(name)

    def _check_own(self, client: Client, name: str) -> None:
        if not is_name(name) or self._find(client, name).shared:
            raise ApiError(
                403,
                f"A context is changed by the key that made it, but {name!r} is there for all; "
                "make one of your own.",
                code="context_shared",
                param="name",
            )

    def _kept_by(self, client: Client) -> list[Manifest]:
        return [each.manifest for each in self._all(client) if not each.shared]

    def _check_room(
        self, client: Client, text: str, *, is_new: bool = False, instead_of: str = ""
    ) -> None:
        """Raises ApiError unless the client may keep this text, too.

        Exact, since the thread that asks is the one that adds; what is removed makes room.
        """
        own, limits = self._kept_by(client), client.limits
        if is_new and len(own) >= limits.max_contexts:
            raise ApiError(
                403,
                f"A key keeps {limits.max_contexts} contexts at most, and it has as many; delete "
                "one.",
                code="too_many_contexts",
            )
        same = name_key(instead_of) if instead_of else None
        kept = sum(each.text_bytes for each in own if name_key(each.name) != same)
        if kept + len(text.encode()) > limits.max_text_bytes:
            raise ApiError(
                403,
                f"A key keeps {limits.max_text_bytes} bytes of text at most, and with this text it "
                f"would have {kept + len(text.encode())}; delete a context, or send less.",
                code="too_much_text",
            )


def _part(whole: bytes, start_byte: int, num_bytes: int) -> TextPart:
    text = whole[start_byte : start_byte + num_bytes].decode(errors="ignore")
    start = min(start_byte, len(whole))
    while start < len(whole) and whole[start] & 0xC0 == 0x80:
        start += 1
    return TextPart(
        text=text,
        start_byte=start,
        end_byte=start + len(text.encode()),
        text_bytes=len(whole),
    )


def _own(client: Client, name: str) -> str:
    return f"{client.name}{_BETWEEN}{name}" if client.name else name


def _readable(client: Client, name: str) -> Iterator[str]:
    """Names in the store, in the order in which they are looked for."""
    if not is_name(name):
        return
    yield _own(client, name)
    # A name that merely looks like one with a colon has the same key as one that has it.
    if client.name and _BETWEEN not in name_key(name):
        yield name


def _unknown(name: str) -> ApiError:
    return ApiError(
        404,
        f"A context is one that you or all may read, but there is no {name[:100]!r}; list them "
        "with GET /v1/contexts.",
        code="context_not_found",
        param="name",
    )
