"""Connections on which nothing comes are closed, and what is no HTTP is told so.

In: uvicorn's protocol, whose own time-out is for connections between requests alone. Out: one that
also ends those whose request begins and does not go on ("slow loris"), those that go on with a body
that was refused, and those on which nobody reads what is sent.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError, response_of

_NO_HTTP = "A request is whole HTTP/1.1, but this one is not; mend what sends it."


def patient_protocol(header_timeout_s: float, send_timeout_s: float) -> type[H11Protocol]:
    """The protocol with time-outs for the head of each request, and for taking what is sent."""

    class PatientProtocol(H11Protocol):
        """Closes a connection whose request takes too long to begin."""

        _waiting: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _refused = False
        """Whether what comes is the rest of a body that was answered before its end."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            self._read_again()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            # Not `close`, which waits for the client to read the rest.
            self._unread = self.loop.call_later(send_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._read_again()
            super().resume_writing()

        def _read_again(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._refused = False
                if self._waiting is None:
                    self._wait()
            elif not self._refused:
                self._wait_no_more()

        def on_response_complete(self) -> None:
            self._refused = self.conn.their_state is h11.SEND_BODY
            if self._refused:
                self._wait()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            """Of what is no HTTP, in the form of all errors; uvicorn would send plain text."""
            answer = response_of(ApiError(400, _NO_HTTP, code="invalid_http"))
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _wait(self) -> None:
            self._wait_no_more()
            self._waiting = self.loop.call_later(header_timeout_s, self._give_up)

        def _wait_no_more(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            self._waiting = None
            self.transport.close()

    return PatientProtocol
