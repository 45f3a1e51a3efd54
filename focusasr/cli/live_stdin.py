"""Standard input in real time: a terminal shows its text before the end."""

from __future__ import annotations

import os
import queue
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from focusasr.audio.load import RIFF, receive_standard_input
from focusasr.cli.live_audio import PcmStream
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.console import shows
from focusasr.runtime.errors import InputError
from focusasr.transcription.live import LiveTranscriber, live_transcriber
from focusasr.transcription.loaded_model import LoadedModel
from focusasr.transcription.options import Options

JUDGED_SECONDS = 1.0  # after which a pipe counts as live
FASTEST = 2.0  # times real time, at which it still does
AHEAD_SECONDS = 5.0  # of audio that may have waited in the pipe while the model was loaded
CLEAR = "\r\x1b[K"


def receive(model: LoadedModel, options: Options, rate_hz: int | None) -> None:
    """Read standard input until its end; if it is a live pipe, show its text so far on a terminal.

    The text is that of `focusasr listen`. It is provisional, since the transcript is computed from the whole recording.
    """
    if not shows() or not _is_pipe():
        receive_standard_input(rate_hz)
        return
    data: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    show = threading.Thread(target=_show, args=(data, live_transcriber(model, options), rate_hz), daemon=True)
    show.start()
    try:
        receive_standard_input(rate_hz, data.put)
    finally:
        data.put(None)
        show.join()


def _is_pipe() -> bool:
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _show(data: queue.SimpleQueue[bytes | None], live: LiveTranscriber, rate_hz: int | None) -> None:
    """Show the text of the bytes that come, in one line, until None comes."""
    finals = ""
    try:
        for samples in _live_samples(data, PcmStream("standard input", rate_hz or SAMPLE_RATE_HZ), rate_hz is not None):
            for text in live.feed(samples):
                whole = f"{finals} {text.text}".strip()
                finals = whole if text.final else finals
                room = shutil.get_terminal_size().columns - 1
                print(f"{CLEAR}{whole[-room:]}", end="", file=sys.stderr, flush=True)
    except InputError:  # no WAV: the recording is transcribed at its end
        pass
    print(CLEAR, end="", file=sys.stderr, flush=True)


def _live_samples(data: queue.SimpleQueue[bytes | None], pcm: PcmStream, raw: bool) -> Iterator[np.ndarray]:
    """Yield samples as they come, as long as they come about as fast as they are played."""
    begin, seconds, head = time.monotonic(), 0.0, b""
    held: list[np.ndarray] = []
    while (part := data.get()) is not None:
        head = head or part
        if not raw and not head.startswith(RIFF):
            return
        held.append(pcm.feed(part))
        seconds += len(held[-1]) / SAMPLE_RATE_HZ
        passed = time.monotonic() - begin
        if seconds > FASTEST * passed + AHEAD_SECONDS:
            return
        if passed >= JUDGED_SECONDS:
            yield np.concatenate(held)
            held = []
