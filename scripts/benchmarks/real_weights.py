"""Time, memory and WER of focusasr and faster-whisper on real Whisper weights.

    scripts/benchmarks/real_weights.py WEIGHTS MANIFEST [--rounds 3] [--clips 20] [--threads 2] [--longest 5]

WEIGHTS is a CTranslate2 folder of tiny.en (scripts/checks/whisper_weights.py fetches one). Each system is a separate
process. It transcribes all clips once to warm up, then once per round, in turns. Prints a table: seconds and processor
seconds per clip (medians of rounds), seconds from the start of loading to the first text, peak memory, and WER with
Whisper's English normalizer.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from focusasr.data.manifest import read_manifest
from focusasr.evaluation.wer import score

SYSTEMS = {  # options of each: (beam size)
    "focusasr-en": ("default", None),
    "focusasr, tiny.en, beam 5": ("WEIGHTS", 5),
    "focusasr, tiny.en, greedy": ("WEIGHTS", None),
    "faster-whisper int8, tiny.en, beam 5": ("peer", 5),
    "faster-whisper int8, tiny.en, greedy": ("peer", 1),
}


def ours(model: str, beam: int | None, threads: int) -> Callable[[str], str]:
    """Return a function that transcribes one file with focusasr."""
    import focusasr

    recognizer = focusasr.load(model, device="cpu", threads=threads)
    return lambda path: recognizer.transcribe(path, beam_size=beam).text.strip()


def theirs(weights: str, beam: int, threads: int) -> Callable[[str], str]:
    """Return a function that transcribes one file with faster-whisper."""
    from faster_whisper import WhisperModel

    model = WhisperModel(weights, device="cpu", compute_type="int8", cpu_threads=threads)
    return lambda path: "".join(one.text for one in model.transcribe(path, beam_size=beam)[0]).strip()


def work(model: str, beam: int | None, weights: str, threads: int) -> None:
    """Run one system as a process: read file names as JSON lines, transcribe them all, print texts and figures."""
    began = time.perf_counter()
    if model == "peer":
        transcribe = theirs(weights, beam or 1, threads)
    else:
        transcribe = ours(weights if model == "WEIGHTS" else model, beam, threads)
    first: float | None = None
    for line in sys.stdin:
        wall, processor, texts = time.perf_counter(), time.process_time(), []
        for path in json.loads(line):
            texts.append(transcribe(path))
            first = first or time.perf_counter() - began
        figures = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor, "first": first}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**figures, "peak": peak, "texts": texts}), flush=True)


def main() -> None:
    """Run every system in turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        model, beam = asked.worker
        work(model, json.loads(beam), asked.weights, asked.threads)
        return
    chosen = [one for one in read_manifest(asked.manifest) if (one.duration or 0) <= asked.longest][: asked.clips]
    request = json.dumps([str(one.audio) for one in chosen]) + "\n"
    command = [
        sys.executable,
        __file__,
        asked.weights,
        str(asked.manifest),
        "--threads",
        str(asked.threads),
        "--worker",
    ]
    workers = {
        name: subprocess.Popen(
            [*command, model, json.dumps(beam)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, (model, beam) in SYSTEMS.items()
    }
    results: dict[str, list[dict]] = {name: [] for name in workers}
    for _ in range(asked.rounds + 1):
        for name, worker in workers.items():
            assert worker.stdin and worker.stdout
            worker.stdin.write(request)
            worker.stdin.flush()
            results[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    seconds = sum(one.duration or 0 for one in chosen)
    mean = seconds / len(chosen)
    print(f"{len(chosen)} clips of {mean:.1f} s on average, {asked.rounds} rounds, {asked.threads} threads\n")
    print("| system | s a clip | processor s a clip | first text, s | peak MB | WER % |\n|---|---|---|---|---|---|")
    for name, rounds in results.items():
        wall, processor = (
            statistics.median(one[key] for one in rounds[1:]) / len(chosen) for key in ("wall", "processor")
        )
        wer = 100 * score([one.text for one in chosen], rounds[-1]["texts"], "english").wer
        last = rounds[-1]
        print(f"| {name} | {wall:.3f} | {processor:.3f} | {last['first']:.1f} | {last['peak']:.0f} | {wer:.1f} |")


if __name__ == "__main__":
    main()
