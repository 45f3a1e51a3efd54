"""The page of the server in a headless Chromium: a file and a microphone become text that plays and downloads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from tests.helpers.http_server import Server

for library in ("starlette", "uvicorn", "python_multipart", "websockets", "playwright"):
    pytest.importorskip(library, reason=f"the page is tested with {library}")

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

pytestmark = pytest.mark.slow

PATIENCE_MS = 30_000
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.flac"
KEY = "a key for tests"


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the browser that FOCUSASR_CHROMIUM names, or one of the system, or skip."""
    names = (os.environ.get("FOCUSASR_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium; FOCUSASR_CHROMIUM can name one")
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server(key=KEY)
    yield running
    assert running.end() == 0


@pytest.fixture
def page(server: Server, chromium: str, tmp_path: Path) -> Iterator[Page]:
    """Open the page in a browser whose microphone plays the sample; fail if the browser complains of anything."""
    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    soundfile.write(tmp_path / "voice.wav", np.concatenate([samples, np.zeros(20 * rate, np.float32)]), rate)
    flags = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}%noloop",
    ]
    complaints: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        opened = browser.new_page(accept_downloads=True)
        opened.set_default_timeout(PATIENCE_MS)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda line: complaints.append(line.text) if "Content Security" in line.text else None)
        opened.goto(f"http://127.0.0.1:{server.port}/")
        yield opened
        browser.close()
    assert complaints == []


def words_of(page: Page) -> list[str]:
    """Return the words that the page shows, once they are complete."""
    expect(page.locator("#downloads")).to_be_visible(timeout=PATIENCE_MS)
    return [str(word) for word in page.locator(".word").all_inner_texts()]


def test_file_becomes_text_that_plays_from_a_word_and_downloads(page: Page) -> None:
    page.fill("#key", KEY)
    page.set_input_files("#file", SAMPLE)
    expected = focusasr.load(device="cpu").transcribe(SAMPLE, word_timestamps=True)
    assert words_of(page) == [word["word"].strip() for word in expected.words]
    expect(page.locator("#status")).to_contain_text("english")
    page.locator(".word").nth(5).click()
    page.wait_for_function("document.getElementById('player').currentTime > 0")
    played = page.evaluate("document.getElementById('player').currentTime")
    assert played == pytest.approx(expected.words[5]["start"], abs=1.0) and played >= expected.words[5]["start"] - 0.01
    for suffix in ("txt", "srt", "vtt"):
        with page.expect_download() as download:
            page.click(f"[data-format={suffix}]")
        assert download.value.suggested_filename == f"sample.{suffix}"
        content = Path(download.value.path()).read_text()
        assert content == (f"{expected.text}\n" if suffix == "txt" else expected.render(suffix))


def test_dropped_file_becomes_text(page: Page) -> None:
    page.fill("#key", KEY)
    content: Any = list(SAMPLE.read_bytes())
    transfer = page.evaluate_handle(
        "bytes => { const data = new DataTransfer();"
        " data.items.add(new File([new Uint8Array(bytes)], 'dropped.flac')); return data; }",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    assert words_of(page)[-2:] == focusasr.load(device="cpu").transcribe(SAMPLE).text.split()[-2:]


def test_microphone_becomes_text(page: Page) -> None:
    page.fill("#key", KEY)
    page.click("#record")
    expect(page.locator("#stop")).to_be_visible()
    expected = focusasr.load(device="cpu").transcribe(SAMPLE).text.split()
    page.wait_for_function("document.getElementById('live').textContent.split(' ').length > 3")  # while one speaks
    assert set(page.locator("#live").inner_text().split()) & set(expected)
    page.wait_for_timeout(6000)
    page.click("#stop")
    expect(page.locator("#live")).to_be_hidden()
    assert set(words_of(page)[-4:]) & set(expected[-4:])
    expect(page.locator("#record")).to_be_visible()


def test_refusal_is_shown(page: Page) -> None:
    page.set_input_files("#file", SAMPLE)
    expect(page.locator("#status.error")).to_contain_text("API key")
    page.fill("#key", KEY)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no sound" * 100})
    expect(page.locator("#status.error")).to_contain_text("notes.txt")
