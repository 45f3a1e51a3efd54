"""Standard input of `transcribe`: raw samples, and pipes that come in real time."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

RATE_HZ = 16_000
PATIENCE_SECONDS = 60


def test_raw_standard_input_needs_its_rate(sample: Path, heard: str) -> None:
    raw = soundfile.read(sample, dtype="int16")[0].astype("<i2").tobytes()

    def transcribed(*options: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "focusasr", "transcribe", *options]
        return subprocess.run(command, input=raw + b"\x00", capture_output=True, check=False)

    result = transcribed("-", "--rate", "16000")
    assert (result.returncode, result.stdout.decode().strip()) == (0, heard), result.stderr.decode()
    assert transcribed(str(sample), "--rate", "16000").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav", "raw"])
def test_terminal_shows_the_text_of_a_live_pipe_before_its_end(sample: Path, heard: str, kind: str) -> None:
    """What stdout gets at the end is the text of the whole recording."""
    samples = soundfile.read(sample, dtype="int16")[0].astype("<i2")
    packed = io.BytesIO()
    soundfile.write(packed, samples, RATE_HZ, format="WAV")
    data = packed.getvalue() if kind == "wav" else samples.tobytes()
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "focusasr", "transcribe", "-", *(["--rate", str(RATE_HZ)] * (kind == "raw"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=end) as process:
        assert process.stdin and process.stdout
        for at in range(0, len(data), 3200):
            process.stdin.write(data[at : at + 3200])
            process.stdin.flush()
            time.sleep(0.1)
        shown = b""
        while not set(shown.decode(errors="ignore").split()) & set(heard.split()):
            assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], shown
            shown += os.read(terminal, 10_000)
        process.stdin.close()
        assert process.stdout.read().decode().strip() == heard
    assert process.returncode == 0
    for descriptor in (terminal, end):
        os.close(descriptor)
