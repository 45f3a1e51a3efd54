"""Time, memory and WER of focusasr and faster-whisper on the same weights and the same recordings.

    scripts/benchmarks/real_weights.py --models default FOLDER ... --clips MANIFEST --long MANIFEST [--rounds 3]

FOLDER holds a Whisper in CTranslate2's format, which both programs read; `default` is focusasr's own model, without a
peer. The clips are transcribed one by one, twice in one process; the second pass is warm. The long recordings are
transcribed once, in sequence and in batches. Every measurement is a process of its own, the systems take turns, and
figures are medians. Seconds and processor seconds of a whole process include its start; its peak memory is shown with
and without that of `import torch`. WER is computed with Whisper's English normalizer.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

BATCH = 8


class System(NamedTuple):
    """A program with a model and its options."""

    program: str
    model: str
    beam: int | None
    batched: bool = False

    @property
    def own(self) -> bool:
        """Whether the model is focusasr's own, which has no peer and is used as it is by default."""
        return not Path(self.model).is_dir()

    def __str__(self) -> str:
        search = "as shipped" if self.own else "greedy" if self.beam in (None, 1) else f"beam {self.beam}"
        return f"{self.program} | {Path(self.model).name}, {search}{', batched' if self.batched else ''}"


def ours(system: System, threads: int) -> Callable[[str], str]:
    """Return a function that transcribes one file with focusasr."""
    import focusasr

    recognizer = focusasr.load(system.model, device="cpu", threads=threads)
    options: dict[str, Any] = {"batched": True, "batch_size": BATCH} if system.batched else {}
    if not system.own:
        options["beam_size"] = system.beam
    return lambda path: recognizer.transcribe(path, **options).text.strip()


def theirs(system: System, threads: int) -> Callable[[str], str]:
    """Return a function that transcribes one file with faster-whisper."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(system.model, device="cpu", compute_type="int8", cpu_threads=threads)
    options: dict[str, Any] = {"beam_size": system.beam or 1}
    reader = model
    if system.batched:
        reader, options["batch_size"] = BatchedInferencePipeline(model), BATCH
    return lambda path: "".join(one.text for one in reader.transcribe(path, **options)[0]).strip()


def work(system: System, threads: int) -> None:
    """Be one measured process: read the files' names and the number of passes, print a line of figures per pass."""
    files, passes = json.loads(sys.stdin.readline())
    transcribe = (ours if system.program == "focusasr" else theirs)(system, threads)
    for _ in range(passes):
        texts = [transcribe(path) for path in files]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"processor": time.process_time(), "peak": peak, "texts": texts}), flush=True)


def measured(system: System, files: list[str], passes: int, threads: int) -> dict[str, Any]:
    """Return the figures of one process: those of the whole first pass, and those of the second as "warm"."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--threads", str(threads), "--worker", json.dumps(system)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        print(json.dumps([files, passes]), file=process.stdin, flush=True)
        found = []
        for _ in range(passes):
            found.append(json.loads(process.stdout.readline()))
            found[-1]["wall"] = time.perf_counter() - began
    first, last = found[0], found[-1]
    warm = {name: last[name] - first[name] for name in ("wall", "processor")} if passes > 1 else {}
    return {**first, "peak": last["peak"], "warm": warm}


def torch_megabytes() -> float:
    """Return the peak memory of a process that only imports torch."""
    code = "import torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def systems(models: list[str], batched: bool) -> Iterator[System]:
    """Yield both programs with each model, beam 5 and greedy; and focusasr's own models."""
    for model in models:
        own = System("focusasr", model, None, batched)
        if own.own:
            yield own
            continue
        for beam in (5, 1):
            yield System("focusasr", model, beam if beam > 1 else None, batched)
            yield System("faster-whisper", model, beam, batched)


def table(several: list[System], chosen: list[Any], asked: argparse.Namespace, passes: int) -> None:
    """Measure systems in turns on the chosen utterances, and print their table."""
    from focusasr.evaluation.wer import score

    bare, results = torch_megabytes(), [list[dict[str, Any]]() for _ in several]
    for _ in range(asked.rounds):
        for system, found in zip(several, results, strict=True):
            found.append(measured(system, [str(one.audio) for one in chosen], passes, asked.threads))
    seconds = sum(one.duration or 0 for one in chosen)
    about = f"{len(chosen)} recordings of {seconds / len(chosen):.1f} s on average, rounds: {asked.rounds}"
    print(f"\n{about}, threads: {asked.threads}; `import torch` alone: {bare:.0f} MB\n")
    print("| program | model | s | processor s | warm s | warm processor s | peak MB | above torch | WER % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for system, found in zip(several, results, strict=True):
        middle = lambda get: statistics.median(map(get, found))  # noqa: B023, E731
        cells = [f"{middle(lambda one: one[name]):.1f}" for name in ("wall", "processor")]  # noqa: B023
        for name in ("wall", "processor"):
            cells.append(f"{middle(lambda one: one['warm'][name]):.1f}" if passes > 1 else "–")  # noqa: B023
        peak = middle(lambda one: one["peak"])
        above = f"{peak - bare:.0f}" if system.program == "focusasr" else "–"
        wer = 100 * score([one.text for one in chosen], found[-1]["texts"], "english").wer
        print(f"| {system} | {' | '.join(cells)} | {peak:.0f} | {above} | {wer:.1f} |", flush=True)


def main() -> None:
    """Measure clips and long recordings, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["default"])
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--most-clips", type=int, default=30)
    parser.add_argument("--long", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(System(*json.loads(asked.worker)), asked.threads)
        return
    from focusasr.data.manifest import read_manifest

    if asked.clips:
        table(list(systems(asked.models, False)), list(read_manifest(asked.clips))[: asked.most_clips], asked, 2)
    if asked.long:
        both = [one for batched in (False, True) for one in systems(asked.models, batched)]
        table(both, list(read_manifest(asked.long)), asked, 1)


if __name__ == "__main__":
    main()
