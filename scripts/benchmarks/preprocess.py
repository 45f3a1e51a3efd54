"""Speed of `preprocess` relative to a plain librosa loop, and its memory.

python scripts/benchmarks/preprocess.py 2000            # files of 2 s, 44.1 kHz stereo, 16 bit WAV
python scripts/benchmarks/preprocess.py 10000 --seconds 0.5 --ours-only
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.data.preprocess import preprocess

RATE_HZ = 44_100


def main() -> None:
    """Make the files, convert them both ways, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--ours-only", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "in", given.files, given.seconds)
        before = memory_mb()
        ours = timed(lambda: preprocess([folder / "in"], folder / "ours", PreprocessConfig(workers=given.workers)))
        print(
            f"preprocess: {given.files / ours:.0f} files/s, memory {before:.0f} MB before, {memory_mb():.0f} MB at most"
        )
        again = timed(lambda: preprocess([folder / "in"], folder / "ours", PreprocessConfig(workers=given.workers)))
        print(f"rerun with nothing to do: {given.files / again:.0f} files/s")
        if not given.ours_only:
            librosa_loop(folder / "in", folder / "warm", most=1)  # it compiles at its first call
            theirs = timed(lambda: librosa_loop(folder / "in", folder / "theirs"))
            print(f"librosa loop: {given.files / theirs:.0f} files/s; ratio {theirs / ours:.2f}")


def make(folder: Path, count: int, seconds: float) -> None:
    """Write `count` distinct WAV files of noise with their texts."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    sound = (draw.standard_normal((round(seconds * RATE_HZ) + count, 2)) * 3000).astype(np.int16)
    for number in range(count):
        soundfile.write(folder / f"{number:06}.wav", sound[number : number + round(seconds * RATE_HZ)], RATE_HZ)
        (folder / f"{number:06}.txt").write_text(f"text number {number}")


def librosa_loop(source: Path, target: Path, most: int | None = None) -> None:
    """Convert like a typical script: load at 16 kHz and write FLAC, one file after the other."""
    import librosa

    target.mkdir()
    for path in sorted(source.glob("*.wav"))[:most]:
        wave, _ = librosa.load(path, sr=SAMPLE_RATE_HZ, mono=True)
        soundfile.write(target / f"{path.stem}.flac", wave, SAMPLE_RATE_HZ)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory_mb() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
