"""The HTTP interface: OpenAI's audio endpoints, a page, health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from focusasr.api import Result
from focusasr.cli.server import Server
from focusasr.cli.server_form import Task, check_model, read_task
from focusasr.cli.server_live import LiveEndpoint
from focusasr.cli.server_queue import (
    RETRY_SECONDS,
    Abandoned,
    Body,
    Deadline,
    Job,
    Refused,
    in_time,
    read_form,
)
from focusasr.transcription.result import Segment

PAGE = {"/": "page.html", **{f"/{name}": name for name in ("page.js", "microphone.js", "page.css")}}
PAGE_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Audio:
    """The endpoint of transcriptions, or of translations into English."""

    def __init__(self, server: Server, task: str) -> None:
        self._server, self._task = server, task

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; in any case its upload is closed and its place is freed."""
        server, body = self._server, Body(receive, self._server.config)
        request, send = Request(scope, body.receive), in_time(send, self._server.config.upload_seconds)
        try:
            server.check_origin(request)
            server.check_key(request)
            with server.gate.admitted(request.client.host if request.client else "unknown"):
                form = await read_form(request, body, server.config)
                try:
                    await self._answer(
                        request,
                        body,
                        read_task(form, self._task, server.model_id, server.config.max_audio_seconds),
                        send,
                    )
                finally:
                    await form.close()
        except (ClientDisconnect, Abandoned):
            server.metrics.answers[499] += 1  # nginx's status for a client that is gone
        except Refused as refusal:
            if refusal.status != 408:  # its time is over
                await body.drain()
            await self._refuse(refusal, request, send)

    async def _refuse(self, refusal: Refused, request: Request, send: Any) -> None:
        self._server.metrics.answers[refusal.status] += 1
        await refused(refusal)(request.scope, request.receive, send)

    async def _answer(self, request: Request, body: Body, task: Task, send: Any) -> None:
        server = self._server
        job = server.worker.start(lambda job: server.work(task, job))
        gone, deadline = asyncio.ensure_future(body.client_gone()), Deadline(server.config.timeout_seconds)
        try:
            event = await self._next(deadline, job, gone)  # no status is sent yet
            if task.stream:
                await self._stream(event, task, lambda: self._next(deadline, job, gone), send)
            else:
                await render(event, task, self._task)(request.scope, request.receive, send)
            server.metrics.answers[200] += 1
        except Refused as refusal:
            await self._refuse(refusal, request, send)
        finally:
            gone.cancel()
            server.worker.cancel(job)
            await job.ended()  # the job may still read the upload

    async def _next(self, deadline: Deadline, job: Job, gone: asyncio.Future[Any]) -> Segment | Result:
        event = await deadline.next(job, gone)
        if isinstance(event, BaseException):
            job.over = True
            raise event if isinstance(event, Abandoned) else Refused.of(event)
        if isinstance(event, Result):
            job.over = True
            if event.duration > self._server.config.max_audio_seconds:
                raise self._server.too_long()
        return event

    async def _stream(self, event: Segment | Result, task: Task, following: Callable[[], Any], send: Any) -> None:
        """Send events: a delta for each segment, then the whole text or an error."""
        head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        verbose = task.response_format == "verbose_json"
        first = True
        try:
            while isinstance(event, Segment):
                await send(_event(delta_of(event, first, verbose)))
                first = not event.text.strip() and first
                event = await following()
            await send(_event(done_of(event, task, self._task)))
        except Refused as refusal:  # the status is sent already
            await send(_event(error_body(refusal)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def render(result: Segment | Result, task: Task, kind: str) -> Response:
    """Return the answer in the requested format."""
    assert isinstance(result, Result)
    if task.response_format == "json":
        return JSONResponse({"text": result.text.strip(), "usage": _usage(result)})
    if task.response_format == "verbose_json":
        return JSONResponse(verbose(result, task, kind))
    if task.response_format == "text":
        return PlainTextResponse(result.text.strip() + "\n")
    content_type = "text/vtt" if task.response_format == "vtt" else "application/x-subrip"
    return Response(result.render(task.response_format), media_type=f"{content_type}; charset=utf-8")


def verbose(result: Result, task: Task, kind: str) -> dict[str, Any]:
    """Return OpenAI's verbose JSON: the text, its language and length, and segments or words with their times."""
    from focusasr.text.whisper_tokenizer import LANGUAGE_CODES

    names = {code: name for name, code in LANGUAGE_CODES.items()}
    language = names.get(result.language or "", result.language or "unknown")
    answer = {"task": kind, "language": language, "duration": result.duration, "text": result.text.strip()}
    if "segment" in task.granularities:
        segments = result.to_dict()["segments"]
        answer["segments"] = [{name: one[name] for name in one if name != "words"} for one in segments]
    if task.words:
        answer["words"] = [_word(word) for word in result.words]
    if result.warnings:
        answer["warnings"] = result.warnings
    return {**answer, "usage": _usage(result)}


def _usage(result: Result) -> dict[str, Any]:
    return {"type": "duration", "seconds": result.duration}


def _word(word: dict[str, Any]) -> dict[str, Any]:
    return {"word": word["word"].strip(), "start": word["start"], "end": word["end"]}


def delta_of(segment: Segment, first: bool, with_times: bool) -> dict[str, Any]:
    """Return the event of a segment; the joined texts of all deltas are the text of the recording."""
    text = segment.text.strip()
    delta = text if first or not text else segment.text if segment.text[:1].isspace() else f" {text}"
    event: dict[str, Any] = {"type": "transcript.text.delta", "delta": delta}
    if with_times:
        words = [_word(word) for word in segment.words or ()]
        event["segment"] = {"id": segment.id, "start": segment.start, "end": segment.end, "text": text, "words": words}
    return event


def done_of(event: Segment | Result, task: Task, kind: str) -> dict[str, Any]:
    """Return the last event of a stream, with all fields for verbose JSON, and with subtitles."""
    assert isinstance(event, Result)
    done = {"type": "transcript.text.done", "text": event.text.strip()}
    if task.response_format == "verbose_json":
        done |= {**verbose(event, task, kind), "srt": event.render("srt"), "vtt": event.render("vtt")}
    return done


def _event(body: dict[str, Any]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {json.dumps(body)}\n\n".encode(), "more_body": True}


def error_body(refusal: Refused) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def refused(refusal: Refused) -> JSONResponse:
    """Return the answer to a rejected request."""
    headers = {"Retry-After": str(RETRY_SECONDS)} if refusal.status in (429, 503) else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(refusal), refusal.status, headers)


def make_app(server: Server) -> Starlette:
    """Return the ASGI application of a server."""
    owner = {"id": server.model_id, "object": "model", "created": 0, "owned_by": "focusasr"}

    async def models(request: Request) -> Response:
        server.check_key(request)
        return JSONResponse({"object": "list", "data": [owner]})

    async def model(request: Request) -> Response:
        server.check_key(request)
        check_model(request.path_params["name"], server.model_id)
        return JSONResponse(owner)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": server.model_id})

    async def metrics(request: Request) -> Response:
        server.check_key(request)
        return PlainTextResponse(server.metrics.render(server.gate.under_way, server.worker.queued))

    async def page(request: Request) -> Response:
        name = PAGE[request.url.path]
        content = (files("focusasr.cli") / "page" / name).read_text(encoding="utf-8")
        return Response(content, media_type=f"{PAGE_TYPES[name.rpartition('.')[2]]}; charset=utf-8", headers=SAFE)

    async def on_refused(request: Request, error: Exception) -> Response:
        return refused(Refused.of(error))

    async def on_unknown(request: Request, error: Any) -> Response:
        return refused(Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))

    routes = [
        Route("/v1/audio/transcriptions", Audio(server, "transcribe"), methods=["POST"]),
        Route("/v1/audio/translations", Audio(server, "translate"), methods=["POST"]),
        WebSocketRoute("/v1/listen", LiveEndpoint(server)),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/metrics", metrics),
        *(Route(path, page) for path in PAGE),
    ]
    origins = [server.config.cors_origin] if server.config.cors_origin else []
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["Authorization"]
    )
    handlers: Any = {Refused: on_refused, 404: on_unknown, 405: on_unknown}
    return Starlette(routes=routes, middleware=[cors] if origins else [], exception_handlers=handlers)
