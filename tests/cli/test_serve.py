"""The server as a process: OpenAI's client, every limit, clients that vanish, and an orderly end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from focusasr.config import DEFAULT_CHECKPOINT, ServeConfig
from tests.helpers.http_server import FORM, PATH, Server, form, half_an_upload, wait_for

REASON = "the server needs the extra serve: starlette, uvicorn, websockets and python-multipart"
for library in ("starlette", "uvicorn", "python_multipart", "websockets"):
    pytest.importorskip(library, reason=REASON)

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "data" / "sample.flac"
KEY = "a key for tests"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server(key=KEY)
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def recognizer() -> focusasr.Recognizer:
    return focusasr.load(device="cpu")


@pytest.fixture(scope="module")
def clip() -> bytes:
    return SAMPLE.read_bytes()


@pytest.fixture(scope="module")
def long_clip() -> bytes:
    """Return two minutes of speech as FLAC."""
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    packed = io.BytesIO()
    soundfile.write(packed, np.tile(np.concatenate([samples, np.zeros(2 * rate, np.float32)]), 20), rate, format="FLAC")
    return packed.getvalue()


@pytest.fixture
def client(server: Server) -> Any:
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0)


def test_openai_client_reads_every_format(client: Any, recognizer: focusasr.Recognizer, heard: str) -> None:
    def ask(response_format: str, **options: Any) -> Any:
        with SAMPLE.open("rb") as file:
            return client.audio.transcriptions.create(
                file=file, model="whisper-1", response_format=response_format, **options
            )

    expected = recognizer.transcribe(SAMPLE, word_timestamps=True)
    assert ask("json").text == heard
    assert ask("text") == f"{heard}\n"
    for suffix in ("srt", "vtt"):
        assert ask(suffix) == recognizer.transcribe(SAMPLE).render(suffix)
    plain = ask("verbose_json", language="en", prompt="spelling", temperature=0)
    assert (plain.text, plain.language, plain.words) == (heard, "english", None)
    assert [one.text for one in plain.segments] == [one.text for one in expected.segments]
    timed = ask("verbose_json", timestamp_granularities=["word", "segment"])
    assert timed.duration == pytest.approx(expected.duration)
    assert [(one.word, one.start, one.end) for one in timed.words] == [
        (one["word"].strip(), one["start"], one["end"]) for one in expected.words
    ]


def test_openai_client_reads_a_stream(client: Any, long_clip: bytes, recognizer: focusasr.Recognizer) -> None:
    events = client.audio.transcriptions.create(file=("a.flac", long_clip), model=DEFAULT_CHECKPOINT, stream=True)
    *deltas, last = list(events)
    assert len(deltas) > 3 and {one.type for one in deltas} == {"transcript.text.delta"}
    expected = recognizer.transcribe(long_clip).text
    assert (last.type, last.text) == ("transcript.text.done", expected)
    assert "".join(one.delta for one in deltas) == expected


def test_openai_client_raises_its_own_errors(client: Any, server: Server, clip: bytes) -> None:
    import openai

    for model, content, kind in (
        ("gpt-4o-transcribe", clip, openai.NotFoundError),
        ("whisper-1", b"no sound" * 100, openai.APIStatusError),
    ):
        with pytest.raises(kind):
            client.audio.transcriptions.create(file=("a.flac", content), model=model)
    with pytest.raises(openai.UnprocessableEntityError, match="task"):  # a native model only transcribes
        client.audio.translations.create(file=("a.flac", clip), model="whisper-1")
    with pytest.raises(openai.AuthenticationError):
        client.copy(api_key="another key").models.list()
    assert [one.id for one in client.models.list()] == [DEFAULT_CHECKPOINT]
    assert client.models.retrieve(DEFAULT_CHECKPOINT).owned_by == "focusasr"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"beam_size": "5"}, 422, "beam_size"),
        ({"response_format": "docx"}, 422, "response_format"),
        ({"stream": "true", "response_format": "srt"}, 422, "stream"),
        ({"stream": "perhaps"}, 422, "stream"),
        ({"temperature": "warm"}, 422, "temperature"),
        ({"temperature": "nan"}, 422, "temperature"),
        ({"temperature": "2"}, 422, "temperature"),
        ({"granularity": "word"}, 422, "timestamp_granularities"),
        ({"granularity": "letter", "response_format": "verbose_json"}, 422, "timestamp_granularities"),
        ({"language": "klingon"}, 422, None),
        ({"model": "another"}, 404, "model"),
        ({"prompt": "x" * 100_000}, 422, None),
    ],
)
def test_field_that_cannot_be_is_refused(
    server: Server, clip: bytes, fields: dict[str, str], status: int, param: str | None
) -> None:
    seen, answer = server.send(clip, **fields)
    assert (seen, answer["error"]["param"]) == (status, param)
    assert len(answer["error"]["message"].splitlines()) == 1


def test_uploads_that_are_no_recording_are_refused(server: Server, clip: bytes) -> None:
    assert server.send(b"no sound" * 100, name="notes.txt")[0] == 415
    assert server.send(b"")[0] == 415
    status, answer = server.send(clip[: len(clip) // 2])
    assert status == 422 and answer["error"]["message"].startswith("clip.flac: ")
    assert server.ask("POST", PATH, b"{}", {"Content-Type": "application/json"})[0] == 415
    assert server.ask("POST", PATH, form(None), FORM)[0] == 422
    assert server.ask("POST", PATH, b"no form", FORM)[0] == 422
    assert server.ask("GET", PATH)[0] == 405
    assert server.ask("GET", "/v1/nothing")[0] == 404


@pytest.mark.parametrize("start", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile '{}'\n"])
def test_no_file_of_the_server_can_be_read(server: Server, start: str) -> None:
    for name in ("list.m3u8", str(SAMPLE), "../../etc/passwd"):
        status, answer = server.send(start.format(SAMPLE).encode(), name=name)
        assert status in (415, 422) and "text" not in answer
    for path in ("/page.html", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "/page/page.js", "//etc/passwd"):
        assert server.ask("GET", path)[0] == 404


def test_key_is_required_by_all_but_the_page_and_health(server: Server, clip: bytes) -> None:
    wrong: list[dict[str, str]] = [{"Authorization": value} for value in ("", "Bearer", f"Basic {KEY}", "Bearer ä key")]
    for headers in (*wrong, {"Authorization": f"Bearer {KEY}x"}):
        encoded = {name: value.encode().decode("latin-1") for name, value in headers.items()}
        assert server.ask("POST", PATH, form(clip), {**FORM, **encoded})[0] == 401
        assert [server.ask("GET", path, None, encoded)[0] for path in ("/v1/models", "/metrics")] == [401, 401]
        assert [server.ask("GET", path, None, encoded)[0] for path in ("/", "/health")] == [200, 200]


def test_pages_of_other_sites_are_refused(server: Server, clip: bytes) -> None:
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("POST", PATH, form(clip), {**FORM, **own})[0] == 200
    status, _, headers = server.ask("POST", PATH, form(clip), {**FORM, "Origin": "https://example.org"})
    assert status == 403 and "access-control-allow-origin" not in headers


def test_page_is_whole_and_uses_nothing_from_elsewhere(server: Server) -> None:
    status, body, headers = server.ask("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    page = body.decode()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {"/page.css", "/page.js"}
    assert server.ask("GET", "/microphone.js")[2]["content-type"].startswith("text/javascript")
    script = server.ask("GET", "/page.js")[1].decode()
    assert set(re.findall(r'element\("(\w+)"\)', script)) <= set(re.findall(r'id="(\w+)"', page))
    assert "http" not in script and "innerHTML" not in script
    assert server.ask("GET", "/page.css")[2]["content-type"].startswith("text/css")


def test_verbose_stream_has_all_that_the_page_shows(server: Server, clip: bytes, recognizer: Any) -> None:
    status, text = server.send(clip, stream="true", response_format="verbose_json", granularity="word")
    assert status == 200
    delta, done = [json.loads(event.removeprefix("data: ")) for event in str(text).strip().split("\n\n")]
    expected = recognizer.transcribe(SAMPLE, word_timestamps=True)
    assert [word["word"] for word in delta["segment"]["words"]] == [word["word"].strip() for word in expected.words]
    assert (done["srt"], done["vtt"]) == (expected.render("srt"), expected.render("vtt"))


def test_texts_do_not_depend_on_other_requests(server: Server, clip: bytes, recognizer: focusasr.Recognizer) -> None:
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    clips, expected = [], []
    for count in range(1, 9):
        packed = io.BytesIO()
        soundfile.write(packed, samples[: count * len(samples) // 8], rate, format="FLAC")
        clips.append(packed.getvalue())
        expected.append(recognizer.transcribe(packed.getvalue()).text)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(server.send, clips))
    assert [answer["text"] for _, answer in answers] == expected and len(set(expected)) > 4


@pytest.fixture(scope="module")
def call() -> bytes:
    """Return a call as FLAC: the sample in its second channel, and silence in its first."""
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    packed = io.BytesIO()
    soundfile.write(packed, np.stack([np.zeros_like(samples), samples], 1), rate, format="FLAC")
    return packed.getvalue()


def test_channel_and_track_can_be_chosen(server: Server, call: bytes, heard: str) -> None:
    assert server.send(call, channel="0") == (200, {"text": "", "usage": {"type": "duration", "seconds": 4.26}})
    assert server.send(call, channel="1", audio_track="0")[1]["text"] == heard
    status, answer = server.send(call, channels="separate", response_format="verbose_json")
    assert status == 200 and {segment["channel"] for segment in answer["segments"]} == {1}
    for fields in ({"channel": "2"}, {"channel": "one"}, {"channel": "-1"}, {"audio_track": "3"}, {"channels": "both"}):
        assert server.send(call, **fields)[0] == 422
    assert server.send(call, channel="1", channels="separate")[0] == 422


def test_channel_may_be_that_of_all_requests(call: bytes, heard: str) -> None:
    running = Server("--channel", 1)
    assert running.send(call)[1]["text"] == heard
    assert running.send(call, channel="0")[1]["text"] == ""
    assert running.end() == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_clients_that_vanish_leave_nothing_behind(server: Server, clip: bytes, long_clip: bytes) -> None:
    assert server.send(long_clip)[0] == 200  # libraries that are loaded now keep files of their own
    wait_for(lambda: server.metric("requests_under_way") == 0)
    before = server.descriptors()
    large = long_clip + bytes(3_000_000)  # of a size that is kept on disk
    for _ in range(5):
        with half_an_upload(server, large):
            wait_for(lambda: server.metric("requests_under_way") == 1)
        wait_for(lambda: server.metric("requests_under_way") == 0)
    gone = server.metric('requests_total{status="499"}')
    for _ in range(3):  # while it is transcribed
        body = form(long_clip)
        head = f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: {FORM['Content-Type']}\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            key = f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + key).encode() + body)
            wait_for(lambda: server.metric("requests_under_way") == 1)
    wait_for(lambda: server.metric('requests_total{status="499"}') == gone + 3)
    wait_for(lambda: server.descriptors() <= before)
    assert server.send(clip)[0] == 200


def test_sigterm_answers_what_is_under_way_and_ends(long_clip: bytes, clip: bytes) -> None:
    running = Server()
    answers: list[tuple[int, Any]] = []
    requests = [
        threading.Thread(target=lambda content=content: answers.append(running.send(content)))
        for content in (long_clip, clip)
    ]
    for thread in requests:
        thread.start()
    wait_for(lambda: running.metric("requests_under_way") == 2)
    assert running.end() == 0
    for thread in requests:
        thread.join()
    assert [status for status, _ in answers] == [200, 200] and all(answer["text"] for _, answer in answers)
    with pytest.raises(OSError):
        running.ask("GET", "/health")


def test_queued_job_ends_at_once_and_time_is_limited() -> None:
    from focusasr.cli.server_queue import Abandoned, Deadline, Metrics, Refused, Worker

    begin = threading.Event()

    async def scene() -> None:
        worker, never = Worker(Metrics()), asyncio.get_running_loop().create_future()

        def block(job: Any) -> Any:
            begin.wait(20)
            job.check()

        first, second = worker.start(block), worker.start(block)
        with pytest.raises(Refused) as refusal:
            await Deadline(0.05).next(second, never)
        assert refusal.value.status == 503
        worker.cancel(second)
        await asyncio.wait_for(second.ended(), 1)
        assert worker.queued == 0
        gone = asyncio.get_running_loop().create_future()
        gone.set_result(None)
        with pytest.raises(Abandoned):
            await Deadline(20).next(first, gone)
        worker.cancel(first)
        assert not first.over
        begin.set()
        await asyncio.wait_for(first.ended(), 5)

    asyncio.run(scene())


def test_server_refuses_to_start_in_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", port)
        assert (result.status, str(port) in result.err, len(result.err.splitlines())) == (1, True, 1)
    assert run("serve", "--api-key", "short").status == 2
    assert run("serve", "--port", 70_000).status == 2
    assert run("serve", "--host", "no.such.host.invalid").status == 1
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve")
    assert result.status == 1 and "[serve]'" in result.err


def test_limits_have_usable_defaults() -> None:
    config = ServeConfig()
    assert config.host == "127.0.0.1" and config.cors_origin is None
    assert config.max_client_requests <= config.max_requests
