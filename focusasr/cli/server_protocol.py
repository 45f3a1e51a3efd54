"""HTTP connections with a time limit for the head of each request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = b"the head of the request is late. Send it at once.\n"


def timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol for HTTP/1.1 that closes a connection whose next request does not begin in time.

    A request has begun when its head is complete. The rest of a request that was answered has the same limit.
    """

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _watch(self) -> None:
            answered = self.cycle is not None and self.cycle.response_complete
            upgraded = self.transport.get_protocol() is not self
            if upgraded or not (answered or self.conn.their_state is h11.IDLE):
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            """Answer a head that is late with status 408, and close."""
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE:
                headers = [("connection", "close"), ("content-length", str(len(LATE)))]
                answer = (h11.Response(status_code=408, headers=headers), h11.Data(data=LATE), h11.EndOfMessage())
                for event in answer:
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return TimedProtocol
