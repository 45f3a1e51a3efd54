"""What all requests of a server share: its recognizer, queue, limits and figures."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import HTTPConnection

from focusasr.api import Recognizer
from focusasr.audio.source import Source
from focusasr.cli.server_form import Task
from focusasr.cli.server_queue import Gate, Job, LiveSessions, Metrics, Refused, Worker
from focusasr.config import ServeConfig


class Server:
    """A recognizer with its queue, its limits and its figures."""

    def __init__(
        self,
        recognizer: Recognizer,
        model_id: str,
        config: ServeConfig,
        api_key: str | None = None,
        recording: dict[str, Any] | None = None,
    ) -> None:
        self.recognizer, self.model_id, self.config = recognizer, model_id, config
        self.recording = recording or {}  # track and channels of all requests that choose none
        self._key = api_key.encode() if api_key else None
        self.metrics, self.gate = Metrics(), Gate(config)
        self.live = LiveSessions(config.max_requests)
        self.worker = Worker(self.metrics, config.max_batch)

    def check_key(self, request: HTTPConnection, key: str = "") -> None:
        """Reject a request without the key, in constant time; `key` is one that came without a header."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given if scheme.lower() == "bearer" else key
        if self._key is None or secrets.compare_digest(given.encode(), self._key):
            return
        raise Refused(401, "a valid API key is required, as the header 'Authorization: Bearer KEY'.", None, "api_key")

    def check_origin(self, request: HTTPConnection) -> None:
        """Reject requests that a browser sends from a page of another site."""
        origin = request.headers.get("origin")
        own = origin is None or origin.partition("://")[2] == request.headers.get("host")
        if not own and origin != self.config.cors_origin:
            raise Refused(403, f"pages of {origin!r:.80} may not use this server. Start it with --cors-origin.")

    def work(self, task: Task, job: Job) -> Any:
        """Transcribe in the worker's thread; as a stream of segments if requested."""
        self._check_length(task.source)
        options = {**self.recording, **task.options, **({"word_timestamps": True} if task.words else {})}
        if task.stream:
            return self.recognizer.segments(task.source, **options)
        return self.recognizer.transcribe(task.source, progress=job.check, **options)

    def _check_length(self, source: Source) -> None:
        from focusasr.audio.load import probe_seconds

        if (probe_seconds(source) or 0.0) > self.config.max_audio_seconds:
            raise self.too_long()

    def too_long(self) -> Refused:
        """Return the error for a recording that is too long."""
        most = self.config.max_audio_seconds
        return Refused(
            413, f"the recording is longer than {most:g} s. Send a shorter one, or send it in parts.", "file"
        )
