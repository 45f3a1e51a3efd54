"""Long runs of `focusasr transcribe` with checks of memory, file handles, speed and order.

    scripts/checks/soak.py [--files 10000] [--hours 10] [--minutes 30] [--output runs/soak]

Three parts, each skipped at 0: --files short files through the command line; one recording of --hours through the
command line; and for --minutes one recognizer with an endless sequence of short, long and corrupt files. The audio
consists of segments of tests/data/sample.flac, some with noise. One line per part; status 1 if memory or handles grew,
speed fell, or order or a text was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import soundfile

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "data" / "sample.flac"
RATE_HZ = 16_000
EVERY_SECONDS = 1.0
MOST_GROWTH_BYTES = 64 * 2**20  # from the middle of the first half to the end; what PyTorch's caches may still take
LEAST_SPEED = 0.8  # of the last third against the first


@dataclass
class Watch:
    """Memory, handles and progress of a process, second by second."""

    process: psutil.Process
    rows: list[tuple[float, int, int, float]] = field(default_factory=list)  # time, bytes, handles, done
    began: float = field(default_factory=time.monotonic)

    def look(self, done: float) -> None:
        """Record the process's memory, open files and progress, if it still exists."""
        with contextlib.suppress(psutil.Error, OSError), self.process.oneshot():
            held, handles = self.process.memory_info().rss, self.process.num_fds()
            self.rows.append((time.monotonic() - self.began, held, handles, done))

    def verdict(self, unit: str) -> tuple[str, bool]:
        """Return the figures as text, and whether they pass."""
        rows = [row for row in self.rows if row[1] and row[3]]
        first, last = rows[len(rows) // 4], rows[-1]
        growth = max(row[1] for row in rows[len(rows) // 2 :]) - max(row[1] for row in rows[: len(rows) // 2])
        handles = max(row[2] for row in rows[len(rows) // 2 :]) - max(row[2] for row in rows[: len(rows) // 2])
        third = len(rows) // 3
        speeds = [(b[3] - a[3]) / (b[0] - a[0]) for a, b in ((rows[0], rows[third]), (rows[-third - 1], rows[-1]))]
        good = growth <= MOST_GROWTH_BYTES and handles <= 2 and speeds[1] >= LEAST_SPEED * speeds[0]
        return (
            f"{last[0]:.0f} s; memory {first[1] / 2**20:.0f} MiB a quarter through, {last[1] / 2**20:.0f} at the end, "
            f"second half's peak {growth / 2**20:+.0f}; handles {handles:+d}; {speeds[0]:.0f} {unit} per second in the "
            f"first third, {speeds[1]:.0f} in the last",
            good,
        )


@functools.cache
def sample() -> np.ndarray:
    """Return the sample (N,)."""
    return soundfile.read(SAMPLE, dtype="float32")[0]


def stretch(number: int) -> np.ndarray:
    """Return a segment of the sample, 0.5 to 1.5 s, a different one for each number; every third one with noise."""
    chance = np.random.default_rng(number)
    length = int(chance.uniform(0.5, 1.5) * RATE_HZ)
    start = int(chance.integers(0, len(sample()) - length))
    noise = 0.01 * chance.standard_normal(length) if number % 3 == 0 else 0.0
    return (sample()[start : start + length] + noise).astype(np.float32)


def watched(arguments: list[object], done: Callable[[psutil.Process], float], stdout: BinaryIO | None = None) -> Watch:
    """Run a command to its end; `done` returns its progress."""
    command = [sys.executable, "-m", "focusasr", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=stdout)
    watch = Watch(psutil.Process(process.pid))
    while process.poll() is None:
        time.sleep(EVERY_SECONDS)
        watch.look(done(watch.process))
    return watch


def many_files(folder: Path, count: int) -> tuple[str, bool]:
    """Transcribe `count` short files in one call; their lines must come in the order given, none missing."""
    names = []
    for number in range(count):
        names.append(folder / f"{number:06}.wav")
        if not names[-1].exists():
            soundfile.write(names[-1], stretch(number), RATE_HZ)
    with (folder.parent / "texts").open("w+b") as texts:
        watch = watched(["transcribe", folder], lambda _: Path(texts.name).read_bytes().count(b"\n"), texts)
        lines = Path(texts.name).read_text().splitlines()
    ordered = [line.split("\t")[0] for line in lines] == [str(name) for name in names]
    words, good = watch.verdict("files")
    said = sum(bool(line.split("\t")[1]) for line in lines)
    return f"{count} files: {words}; {said} have text; order {'kept' if ordered else 'LOST'}", good and ordered


def long_recording(folder: Path, hours: float) -> tuple[str, bool]:
    """Transcribe one recording of many hours; its first and last hundredth are equal and must have equal texts."""
    period = np.concatenate([sample(), np.zeros(2 * RATE_HZ, np.float32)])
    path, times = folder / "long.flac", round(hours * 3600 * RATE_HZ / len(period))
    with soundfile.SoundFile(path, "w", RATE_HZ, 1) as sound:
        for _ in range(times):
            sound.write(period)
    call = ["transcribe", path, "-o", folder / "out", "-f", "json"]
    watch = watched(call, lambda process: _share_read(process, path) * hours * 3600)
    segments = json.loads((folder / "out" / "long.json").read_text())["segments"]
    ordered = all(one["end"] <= other["start"] for one, other in itertools.pairwise(segments))
    texts = [segment["text"] for segment in segments]
    usual = max(set(texts), key=texts.count)
    words, good = watch.verdict("s of sound")
    alike = texts.count(usual) / times
    return (
        f"{hours:g} h: {words}; {len(segments)} segments, {100 * alike:.1f} % of {times} repetitions read alike; "
        f"order {'kept' if ordered else 'LOST'}",
        good and ordered and alike > 0.9,
    )


def _share_read(process: psutil.Process, path: Path) -> float:
    """Return the share of a file that a process has read, from the position of its file handle."""
    try:
        places = [one.position for one in process.open_files() if one.path == str(path)]
        return max(places, default=0) / path.stat().st_size
    except psutil.Error:
        return 0.0


def soak(folder: Path, minutes: float) -> tuple[str, bool]:
    """Transcribe short, long and corrupt files with one recognizer for a number of minutes."""
    import focusasr

    recognizer, watch = focusasr.load(device="cpu"), Watch(psutil.Process(os.getpid()))
    ends = time.monotonic() + 60 * minutes
    done = refused = 0
    heard = 0.0
    while time.monotonic() < ends:
        path = folder / f"{done % 500}.wav"
        if done % 50 == 49:
            path.write_bytes(np.random.default_rng(done).bytes(4000))
        else:
            piece = np.tile(sample(), 4 + done % 7) if done % 50 == 48 else stretch(done)
            soundfile.write(path, piece, RATE_HZ)
        try:
            heard += recognizer.transcribe(path).duration
        except focusasr.AudioError:
            refused += 1
        done += 1
        if done % 100 == 0:
            watch.look(done)
    words, good = watch.verdict("files")
    right = refused == done // 50
    return f"soak: {words}; {done} files, {heard / 3600:.1f} h of sound, {refused} broken ones refused", good and right


def main() -> None:
    """Run the parts and print their results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, help="folder for the audio (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.output) as place:
        good = True
        for name, part in (("files", many_files), ("hours", long_recording), ("minutes", soak)):
            if amount := getattr(given, name):
                (Path(place).absolute() / name).mkdir()
                words, fine = part(Path(place).absolute() / name, amount)
                print(("" if fine else "NOT GOOD: ") + words, flush=True)
                good = good and fine
    sys.exit(not good)


if __name__ == "__main__":
    main()
