"""Requests before and during transcription: admission, upload, queue and metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from focusasr.api import Result, SegmentStream
from focusasr.audio.integrity import AudioError, CutOff, NoSuchPart
from focusasr.config import ServeConfig
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError

if TYPE_CHECKING:
    from starlette.datastructures import FormData
    from starlette.requests import Request

    from focusasr.transcription.result import Segment


MEGABYTE = 1_000_000
LARGEST_FIELD_BYTES = 65_536
MOST_FIELDS = 32
RETRY_SECONDS = 1  # until a client may retry
DRAIN_SECONDS = 5.0  # read from a rejected client, so that it gets the answer


class Refused(Exception):
    """A request that is rejected with a status and one line; `param` is the form field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @classmethod
    def of(cls, error: BaseException) -> Refused:
        """Return the answer to an exception of the recognizer; internal errors are printed and not sent."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, InputError):
            readable = isinstance(error, (CutOff, NoSuchPart)) or not isinstance(error, AudioError)
            status = 422 if readable else 415
            return cls(status, str(error), "file" if isinstance(error, AudioError) else None)
        if isinstance(error, MemoryError):
            return cls(503, "the memory of the server is full. Try again later, or send a shorter recording.")
        warn(f"focusasr: internal error: {type(error).__name__}: {error}")
        return cls(500, "internal error. The server has printed what failed.")


class Abandoned(Exception):
    """The client is gone, or its time is over."""


@dataclass
class Metrics:
    """Figures since the start, in Prometheus' text format."""

    audio_seconds: float = 0.0
    busy_seconds: float = 0.0  # with at least one request in transcription
    answers: Counter[int] = field(default_factory=Counter)  # requests by status
    _working: int = 0
    _since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def working(self) -> Iterator[Callable[[float], None]]:
        """Count a transcription in this block; yields a function to call with its seconds of audio."""

        def add(seconds: float) -> None:
            with self._lock:
                self.audio_seconds += seconds

        with self._lock:
            self._since = self._since if self._working else time.perf_counter()
            self._working += 1
        try:
            yield add
        finally:
            with self._lock:
                self._working -= 1
                self.busy_seconds += 0.0 if self._working else time.perf_counter() - self._since

    def render(self, under_way: int, queued: int) -> str:
        """Return all figures as text."""
        figures: list[tuple[str, str, dict[str, float]]] = [
            ("requests_total", "counter", {f'{{status="{key}"}}': self.answers[key] for key in sorted(self.answers)}),
            ("requests_under_way", "gauge", {"": under_way}),
            ("requests_queued", "gauge", {"": queued}),
            ("audio_seconds_total", "counter", {"": self.audio_seconds}),
            ("transcribe_seconds_total", "counter", {"": self.busy_seconds}),
        ]
        lines = []
        for name, kind, values in figures:
            lines.append(f"# TYPE focusasr_{name} {kind}")
            lines += [f"focusasr_{name}{label} {value:.10g}" for label, value in values.items()]
        return "\n".join(lines) + "\n"


class Gate:
    """Admits requests up to a total limit and a limit per client."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._clients: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Number of admitted requests."""
        return sum(self._clients.values())

    @contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """Count a request of a client in this block; Refused if there are too many."""
        if self._clients[client] >= self._config.max_client_requests:
            most = self._config.max_client_requests
            raise Refused(429, f"too many requests at a time from {client}: at most {most}. Wait for an answer first.")
        if self.under_way >= self._config.max_requests:
            most = self._config.max_requests
            raise Refused(503, f"the server is busy with {most} requests. Try again in a moment.")
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]


class Job:
    """One transcription; `events` gets its segments if requested, then its result or exception."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Segment | Result | BaseException] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.over = False  # whether the last event was received

    def check(self, seconds: float = 0.0) -> None:
        """Raise Abandoned if nobody needs the result any more; also the `progress` of a recognizer."""
        if self.cancelled.is_set():
            raise Abandoned

    async def ended(self) -> None:
        """Wait until the worker has finished the job, and drop its events."""
        while not self.over:
            self.over = isinstance(await self.events.get(), (Result, BaseException))


class Worker:
    """Threads that transcribe requests in their order of arrival; the recognizer batches what they do."""

    def __init__(self, metrics: Metrics, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, "focusasr worker")
        self._metrics = metrics
        self._queue: dict[Job, Future[None]] = {}  # jobs not started

    @property
    def queued(self) -> int:
        """Number of waiting jobs."""
        return len(self._queue)

    def start(self, work: Callable[[Job], Result | SegmentStream]) -> Job:
        """Queue a job; its events come to this event loop."""
        job, loop = Job(), asyncio.get_running_loop()

        def put(event: Segment | Result | BaseException) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(job.events.put_nowait, event)

        begin = threading.Event()  # once the job is in the queue, from which it removes itself
        self._queue[job] = self._pool.submit(self._run, work, job, put, begin)
        begin.set()
        return job

    def cancel(self, job: Job) -> None:
        """End a job, immediately if it has not started."""
        job.cancelled.set()
        future = self._queue.get(job)
        if future is not None and future.cancel():
            self._queue.pop(job, None)
            job.over = True

    def _run(
        self,
        work: Callable[[Job], Result | SegmentStream],
        job: Job,
        put: Callable[[Segment | Result | BaseException], None],
        begin: threading.Event,
    ) -> None:
        begin.wait()
        self._queue.pop(job, None)
        with self._metrics.working() as add:
            try:
                outcome: Any = _result(work, job, put)
                add(outcome.duration)
            except BaseException as error:
                outcome = error
        put(outcome)


def _result(work: Callable[[Job], Result | SegmentStream], job: Job, put: Callable[[Segment], None]) -> Result:
    job.check()
    outcome = work(job)
    if isinstance(outcome, Result):
        return outcome
    with outcome:
        for segment in outcome:
            job.check()
            put(segment)
        return outcome.result


class LiveSessions:
    """The threads of live sessions, and the end of all sessions when the server ends."""

    def __init__(self, most: int) -> None:
        self.pool = ThreadPoolExecutor(most, "focusasr live")
        self.ending = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, session: Coroutine[Any, Any, None]) -> None:
        """Run a session, which `end` waits for."""
        task = asyncio.ensure_future(session)
        self._running.add(task)
        try:
            await task
        finally:
            self._running.discard(task)
            task.cancel()

    async def end(self, seconds: float) -> None:
        """Let all sessions send their last texts, and wait for them."""
        self.ending.set()
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)


class Deadline:
    """The remaining time of a request."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    async def next(self, job: Job, gone: asyncio.Future[Any]) -> Any:
        """Return the next event of a job; Abandoned if the client is gone first, Refused if the time is over."""
        event = asyncio.ensure_future(job.events.get())
        left = max(0.0, self._end - time.monotonic())
        done, _ = await asyncio.wait({event, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if event in done:
            return event.result()
        event.cancel()
        if gone in done:
            raise Abandoned
        raise Refused(503, f"no transcript within {self._seconds:g} s. Try again later, or send a shorter recording.")


def in_time(send: Callable[[Any], Awaitable[None]], seconds: float) -> Callable[[Any], Awaitable[None]]:
    """Return ASGI's `send` with a time limit: Abandoned if the client does not read its answer."""

    async def limited(message: Any) -> None:
        try:
            await asyncio.wait_for(send(message), seconds)
        except asyncio.TimeoutError:
            raise Abandoned from None

    return limited


class Body:
    """The body of a request, and how much of it was received; `receive` is that of ASGI."""

    def __init__(self, receive: Callable[[], Awaitable[Any]], config: ServeConfig) -> None:
        self._receive = receive
        self._limit = int(config.max_upload_mb * MEGABYTE)
        self._received = 0
        self._complete = False

    @property
    def too_large(self) -> bool:
        """Whether the body exceeds the limit."""
        return self._received > self._limit

    async def receive(self) -> Any:
        """Return the next message."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read the rest of a rejected upload, within limits: a connection closed early would hide the answer."""
        self._received = 0

        async def read() -> None:
            while not self._complete and not self.too_large:
                await self.receive()

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), DRAIN_SECONDS)

    async def client_gone(self) -> None:
        """Return when the client closes its connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def read_form(request: Request, body: Body, config: ServeConfig) -> FormData:
    """Read a form with at most one file; Refused if it is invalid, too large, or too slow."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    too_large = Refused(413, f"the upload is larger than {config.max_upload_mb:g} MB. Send a smaller file.", "file")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "the body must be multipart/form-data with the recording as its file.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > config.max_upload_mb * MEGABYTE:
        raise too_large

    async def receive() -> Any:
        message = await body.receive()
        if body.too_large:
            raise too_large
        return message

    async def read() -> FormData:
        return await Request(request.scope, receive).form(
            max_files=1, max_fields=MOST_FIELDS, max_part_size=LARGEST_FIELD_BYTES
        )

    try:
        return await asyncio.wait_for(read(), config.upload_seconds)
    except HTTPException as error:
        raise Refused(422, f"the form cannot be read: {error.detail}") from None
    except ValueError as error:  # of python-multipart, from some versions of starlette
        raise Refused(422, f"the form cannot be read: {error}") from None
    except asyncio.TimeoutError:
        raise Refused(408, f"the upload took longer than {config.upload_seconds:g} s. Send a smaller file.") from None
