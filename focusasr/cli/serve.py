"""The command `serve`: transcription over HTTP, with OpenAI's interface and a page for browsers."""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusasr.cli.options import with_settings
from focusasr.config import DEFAULT_CHECKPOINT, DecodingConfig, RecordingConfig, ServeConfig
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.libraries import missing
from focusasr.runtime.process import restore_interrupts
from focusasr.runtime.settings import read_settings
from focusasr.transcription.recognizer import ModelChoice
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    from focusasr.cli.server import Server


ARENAS = -8  # glibc's M_ARENA_MAX
BACKLOG = 128  # connections in the accept queue
KEY_SIGNS = 8  # least length of an API key
LARGEST_MESSAGE = 1_000_000  # bytes of a live session's message
END_SECONDS = 30.0  # for the last texts of live sessions


@with_settings(ServeConfig, RecordingConfig, DecodingConfig, LongformConfig, SearchConfig)
def serve(
    given: dict[type, dict[str, Any]],
    choice: ModelChoice,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="FOCUSASR_API_KEY",
            help="key that clients must send (safer in the environment variable FOCUSASR_API_KEY)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Transcribe over HTTP, with OpenAI's interface and a page for browsers.

    Endpoints are POST /v1/audio/transcriptions and /v1/audio/translations, GET /v1/models, /health, /metrics, and / for
    browsers. The form also accepts channel, channels and audio_track. The WebSocket /v1/listen is for live audio: send
    a JSON object with any of rate, language, prompt, channel and api_key, then binary 16-bit PCM or WAV, then {"type":
    "end"}. It answers with the JSON lines of focusasr listen --json. An error closes it with 4000 plus the HTTP status.

    Requests of several clients are batched, and the others wait. No text depends on another request. Uploads
    are deleted after their transcription.
    After SIGTERM or Ctrl-C the server answers the pending requests, then ends.
    """
    from focusasr.api import Recognizer

    config = read_settings(ServeConfig, given.pop(ServeConfig))
    recording = given.pop(RecordingConfig)
    read_settings(RecordingConfig, recording)
    if api_key is not None and len(api_key) < KEY_SIGNS:
        raise UsageError(f"--api-key has {len(api_key)} characters. It must have at least {KEY_SIGNS}.")
    _require_libraries()
    _use_one_heap()
    from focusasr.cli.server import Server

    with _listening(config) as listener:
        options = {name: value for values in given.values() for name, value in values.items()}
        recognizer = Recognizer(choice, options)
        server = Server(recognizer, _name_of(choice.model, recognizer.path), config, api_key, recording)
        host, port = listener.getsockname()[:2]
        warn(f"focusasr: {server.model_id} at http://{f'[{host}]' if ':' in host else host}:{port}")
        if api_key is None and not _is_local(host):
            warn("focusasr: anybody in this network can use the server. Set FOCUSASR_API_KEY to require a key.")
        _run(server, listener, config)


def _use_one_heap() -> None:
    """Let all threads allocate from one heap: by default each gets its own in glibc, which keeps what was freed."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries
        ctypes.CDLL(None).mallopt(ARENAS, 1)


def _require_libraries() -> None:
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise missing(error.name or "uvicorn", "serve") from None


@contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    """Listen before the model is loaded, so that an address in use is rejected immediately."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        place = f"{config.host}:{config.port}"
        raise InputError(
            f"{place}: cannot listen ({error.strerror or error}). Choose another --host or --port."
        ) from None
    with listener:
        yield listener


def _is_local(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def _name_of(model: str | None, path: Path) -> str:
    """Return the name of the model for clients, without its path on disk."""
    if model is None or model == "default":
        return DEFAULT_CHECKPOINT
    return (path.stem if path.suffix == ".pt" else path.name) if Path(model).exists() else model


def _run(server: Server, listener: socket.socket, config: ServeConfig) -> None:
    """Serve until a signal comes, then answer pending requests; a second Ctrl-C ends the process immediately."""
    import uvicorn

    from focusasr.cli.server_app import make_app
    from focusasr.cli.server_protocol import timed_protocol

    class Graceful(uvicorn.Server):
        """uvicorn's server with status 0 after a signal, and with the last texts of live sessions."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for accepting in self.servers:
                accepting.close()
            await server.live.end(END_SECONDS)
            await super().shutdown(sockets)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
            yield

    restore_interrupts()
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the answer says what is wrong with a request
    settings = uvicorn.Config(
        make_app(server),
        http=timed_protocol(config.header_seconds),
        ws_max_size=LARGEST_MESSAGE,
        ws_per_message_deflate=False,  # audio does not shrink
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(config.timeout_seconds) + 1,
    )
    Graceful(settings).run(sockets=[listener])
