"""What every request passes on its way in and out.

In: an ASGI app. Out: the same behind keys, limits and time-outs, each request counted and logged.
A body that is too large or too slow is refused while it comes. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from contextlib import nullcontext
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CLIENT_LEFT, ApiError, api_error, response_of
from .keys import Client, Keys
from .limits import Slots
from .logs import fault_fields, log
from .metrics import Metrics
from .settings import ServeSettings, is_loopback

BYTES_PER_S = 16 * 1024
"""Of a body, that come at the least."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
)


class Gate:
    """Lets requests in.

    Args:
        app: that answers them.
        keys: that are known.
        slots: that requests take while they run.
        settings: time-outs.
        metrics: where they are counted.
        public: paths that need no key and take no slot.
        watching: paths that take no slot: they tell of a server that has none left.
        routes: of the app, in its order: where a request that is refused here would have gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        slots: Slots,
        settings: ServeSettings,
        metrics: Metrics,
        public: Iterable[str],
        watching: Iterable[str] = (),
        routes: Iterable[BaseRoute] = (),
    ) -> None:
        self.app, self.keys, self.slots = app, keys, slots
        self.settings, self.metrics = settings, metrics
        self.public, self.watching = frozenset(public), frozenset(watching)
        self.routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, _without_trace(send))
            return
        passage = _Passage(scope, send)
        try:
            await self._pass(scope, receive, passage)
        except Exception as error:
            await passage.fail(error, receive)
        except asyncio.CancelledError:  # the server stops, and the time for those that run is over
            if passage.status:
                raise
            await passage.fail(_stopping(), receive)
        finally:
            self._count(scope, passage)

    async def _pass(self, scope: Scope, receive: Receive, passage: _Passage) -> None:
        headers = Headers(scope=scope)
        if not self.keys.required:
            _check_local(headers)
            _check_own_page(scope["method"], headers)
        if scope["path"] in self.public:
            await self.app(scope, receive, passage.send)
            return
        client = self.keys.client(headers.get("authorization"))
        scope["state"].update(client=client)
        passage.client = client.name
        watching = scope["path"] in self.watching
        body = _Body(headers, receive, client, self.settings)  # none that is said to be too large
        with nullcontext() if watching else self.slots.taken(client):
            await self.app(scope, body.receive, passage.send)

    def _count(self, scope: Scope, passage: _Passage) -> None:
        route = self._route(scope)
        seconds = time.monotonic() - passage.start
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.metrics.requests.labels(method, route, passage.ended_as).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        log(
            "request",
            id=passage.id,
            client=passage.client,
            method=method,
            route=route,
            status=passage.ended_as,
            seconds=round(seconds, 4),
            **scope["state"].get("noted", {}),
            **(fault_fields(passage.fault) if passage.fault else {}),
        )

    def _route(self, scope: Scope) -> str:
        """The path of a request's route, its names in braces; "none" if there is no such route."""
        found = scope.get("route")
        if found is None:
            matches = [(each.matches(scope)[0], each) for each in self.routes]
            whole = (each for match, each in matches if match is Match.FULL)
            partial = (each for match, each in matches if match is Match.PARTIAL)  # another method
            found = next(whole, None) or next(partial, None)
        return getattr(found, "path", "") or "none"


def _without_trace(send: Send) -> Send:
    """Starlette tells why a start failed by all frames; the last line of these says it."""

    async def short(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            message = {**message, "message": message["message"].strip().rpartition("\n")[2]}
        await send(message)

    return short


def _stopping() -> ApiError:
    return ApiError(
        503,
        "This server stops; ask again when it is back.",
        code="stopping",
        headers={"Retry-After": "5"},
    )


_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _check_local(headers: Headers) -> None:
    """Without keys, a web page that the user visits must not be able to ask in the user's name."""
    for value in (f"//{headers.get('host', '')}", headers.get("origin") or "//localhost"):
        try:
            name = urlsplit(value).hostname
        except ValueError:
            name = None
        if name is None or not is_loopback(name):
            raise ApiError(
                403,
                "A server without keys answers requests of its own machine alone, to localhost and "
                "from pages of it; start it with --keys to be asked from elsewhere.",
                code="not_local",
            )


def _check_own_page(method: str, headers: Headers) -> None:
    """Nor must a page of this machine's other ports: a form needs no leave to be sent.

    Browsers say where a page is from, and pages cannot change that; whoever says nothing is none. A
    link of another page may lead here: what it gets, that page cannot read.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site == "same-origin":
        return
    if origin:
        own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    else:
        own = site in (None, "none") or method in _SAFE
    if not own:
        raise ApiError(
            403,
            "A server without keys answers its own page and programs, but this request is of "
            "another page; start it with --keys, and give one.",
            code="not_local",
        )


class _Passage:
    """One request: what has been answered, and when it began."""

    def __init__(self, scope: Scope, send: Send) -> None:
        scope.setdefault("state", {})
        self.scope, self._send = scope, send
        self.id = uuid.uuid4().hex
        self.start = time.monotonic()
        self.status, self.client = 0, ""
        self._fault: BaseException | None = None
        scope["state"].update(start=self.start)

    @property
    def fault(self) -> BaseException | None:
        """What the server is to blame for, if anything."""
        found: BaseException | None = self.scope["state"].get("failure", self._fault)
        return found

    @property
    def ended_as(self) -> int:
        """The status; of a stream that broke off, that of an answer with its error."""
        ended: int = self.scope["state"].get("ended_as", self.status or CLIENT_LEFT)
        return ended

    async def send(self, message: Message) -> None:
        """Sends, with headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = (b"x-request-id", self.id.encode())
            message = {**message, "headers": [*message["headers"], own, *_HEADERS]}
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        """Answers an error that nobody else has answered."""
        made = api_error(error)
        if made.status_code >= 500:
            self._fault = error
        if not self.status:
            await response_of(made)(self.scope, receive, self.send)


class _Body:
    """The body of a request, of which only so much comes, and not too slowly.

    Raises:
        ApiError: 413, its headers say that it is too large.
    """

    def __init__(
        self, headers: Headers, receive: Receive, client: Client, settings: ServeSettings
    ) -> None:
        self._receive, self._settings = receive, settings
        self._most, self._size, self._whole = client.limits.max_body_bytes, 0, False
        self._start = time.monotonic()
        length = headers.get("content-length", "")
        self._check(int(length) if length.isdecimal() and len(length) < 20 else 0)

    async def receive(self) -> Message:
        """The next part.

        Raises:
            ApiError: 413 or 408.
        """
        if self._whole:
            return await self._receive()
        allowed = self._settings.body_timeout_s + self._size / BYTES_PER_S
        try:
            with anyio.fail_after(max(0.0, self._start + allowed - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                f"The body of a request comes in {self._settings.body_timeout_s:g} seconds, and a "
                f"second more for every {BYTES_PER_S} bytes, but this one did not; send it again.",
                code="timeout",
                headers={"Connection": "close"},
            ) from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        self._check(self._size)
        return message

    def _check(self, size: int) -> None:
        if size > self._most:
            raise ApiError(
                413,
                f"The body of a request has {self._most} bytes at most, but this one has "
                "more; send less, for example a text in parts with append.",
                code="body_too_large",
            )
