"""From a corpus as it comes to 16 kHz mono files and one manifest: in parallel, resumable, with every reject told."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from focusasr.audio import Source, stream
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.files import written_aside
from focusasr.journal import Journal, file_state
from focusasr.manifest import Utterance, write_manifest
from focusasr.settings import InputError
from focusasr.sources import Columns, Found, Reject, read_corpora

FAILURES = frozenset(("missing", "unreadable", "unreadable text", "broken row"))  # kinds that make the command fail
IN_FLIGHT_PER_WORKER = 4
STEM_BYTES = 180  # file systems allow 255 for a name; the rest is for markers and the suffix

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What one run came to. `reused` of the `kept` were finished before; `rejects` counts by kind."""

    manifest: Path
    rejects_file: Path
    kept: int
    reused: int
    seconds: float
    rejects: dict[str, int]
    examples: dict[str, str]  # the first reason of each kind
    splits: dict[str, int]

    @property
    def failed(self) -> bool:
        """Whether something could not be read; too short, too long, empty or repeated is no failure."""
        return not FAILURES.isdisjoint(self.rejects)

    def summary(self) -> str:
        """Return lines for people: what was kept, and the rejects with counts by kind."""
        before = f", {self.reused} of them finished before" if self.reused else ""
        length = f"{self.seconds / 3600:.2f} hours" if self.seconds >= 3600 else f"{self.seconds / 60:.1f} minutes"
        lines = [f"{self.manifest}: {self.kept} utterances, {length}{before}"]
        if self.splits:
            counts = ", ".join(f"{name}.jsonl {count}" for name, count in self.splits.items())
            lines.append(f"splits beside it: {counts}")
        if self.rejects:
            lines.append(f"{self.rejects_file}: {sum(self.rejects.values())} rejected")
        lines += [f"  {count} {kind}, as {self.examples[kind]}" for kind, count in self.rejects.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """One utterance and the file that its sound goes to."""

    found: Found
    output: Path

    @property
    def source(self) -> Source:
        utterance = self.found.utterance
        return Source(str(utterance.audio), utterance.offset, utterance.duration)

    def made_from(self) -> dict[str, Any]:
        """Return all that decides what the output holds; OSError or ValueError where the audio is not there."""
        part = {"offset": self.source.offset, "duration": self.source.duration}
        return {"source": file_state(self.found.audio), **part, "sample_rate_hz": SAMPLE_RATE_HZ}

    def reject(self, kind: str, reason: str) -> Reject:
        """Return the reject that this job becomes."""
        return Reject(kind, reason, self.found.audio, self.found.utterance.text)


def preprocess(
    inputs: Iterable[str | Path],
    output_dir: str | Path,
    config: PreprocessConfig | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert every utterance of the inputs below `output_dir`/audio; write manifest.jsonl and rejects.jsonl there.

    Utterances of several splits also get one manifest per split. What an earlier run finished is not done again.
    `progress` is called with (utterances settled, utterances in all). InputError: an input that is not there or of
    no known layout, nothing found, or a place that cannot be written.
    """
    config = config or PreprocessConfig()
    inputs, folder = list(inputs), Path(output_dir).resolve()
    readings = list(read_corpora(inputs, config.layout, Columns(config.audio_column, config.text_column)))
    journal = Journal(folder, ".preprocess.jsonl")
    foreign = [reading for reading in readings if reading.audio is None or reading.audio not in journal]
    plan = _plan(foreign, folder / "audio", config)
    _keep_inputs(inputs, plan, folder)
    if not plan:
        raise InputError(f"{', '.join(map(str, inputs))}: no utterances found; wanted: audio with text")
    try:
        for torn in (folder / "audio").rglob(".*.part"):  # left by a run that was killed
            torn.unlink()
        run = _Run(plan, journal, config)
        run.settle_at_once()
        run.convert(progress or (lambda done, total: None))
        return _write_results(folder, run)
    except (OSError, soundfile.SoundFileError) as error:
        raise InputError(f"{folder}: cannot be written ({error}); check its rights and free space") from None


# The plan: which sound goes to which file


def _plan(readings: list[Found | Reject], folder: Path, config: PreprocessConfig) -> list[_Job | Reject]:
    """Give each utterance a file of its own that keeps its place in the corpus; the same every time."""
    taken: set[str] = set()
    plan: list[_Job | Reject] = []
    for reading in readings:
        if isinstance(reading, Found):
            name = _free_name(_marked_name(reading), taken)
            plan.append(_Job(reading, folder / f"{name}.{config.format}"))
        else:
            plan.append(reading)
    return plan


def _marked_name(found: Found) -> str:
    """Return the name of an utterance's file; a part from the middle of a recording adds its milliseconds."""
    head, slash, stem = found.name.rpartition("/")
    stem = stem.encode()[:STEM_BYTES].decode(errors="ignore")
    offset, duration = found.utterance.offset, found.utterance.duration
    if offset:
        end = "end" if duration is None else str(round(1000 * (offset + duration)))
        stem = f"{stem}_{round(1000 * offset)}-{end}"
    return head + slash + stem


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, or name-2, name-3 ...; some file systems do not tell case apart."""
    free, count = name, 1
    while free.casefold() in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(free.casefold())
    return free


def _keep_inputs(inputs: list[str | Path], plan: list[_Job | Reject], folder: Path) -> None:
    """Refuse an output folder where results would overwrite what they are made from."""
    jobs = [item for item in plan if isinstance(item, _Job)]
    names = {"manifest", "rejects", *_splits(job.found.utterance for job in jobs)}
    written = {folder} | {folder / f"{name}.jsonl" for name in names} | {job.output for job in jobs}
    for path in [*inputs, *(job.found.audio for job in jobs)]:
        if Path(path).resolve() in written:
            raise InputError(f"{path}: would be overwritten by its own result; choose another --output-dir")


# The work


class _Run:
    """One pass over a plan; `outcomes` are samples or rejects, in the plan's order."""

    def __init__(self, plan: list[_Job | Reject], journal: Journal, config: PreprocessConfig) -> None:
        self.plan, self.journal, self.config = plan, journal, config
        self.outcomes: dict[int, int | Reject] = {}
        self.reused = 0
        self.todo: dict[int, tuple[_Job, dict[str, Any]]] = {}  # with what each job's output is made from
        self.running: dict[Future[int | Reject], int] = {}

    def settle_at_once(self) -> None:
        """Settle what needs no work: rejects, missing files, files finished before. The others are `todo`."""
        for index, item in enumerate(self.plan):
            if isinstance(item, Reject):
                self.outcomes[index] = item
                continue
            try:
                made_from = item.made_from()
            except (OSError, ValueError):
                self.outcomes[index] = item.reject("missing", f"{item.found.where}: {item.source.path} is not there")
                continue
            samples = self.journal.finished(item.output, made_from)
            if samples is None:
                self.todo[index] = item, made_from
            else:
                self.outcomes[index] = _length_reject(item, samples, self.config) or samples
                self.reused += isinstance(self.outcomes[index], int)

    def convert(self, progress: Progress) -> None:
        """Convert what is left, a bounded number of files in work.

        Threads do as well as processes here: decoding, resampling and encoding let go of Python's lock. When the run
        is interrupted the files in work are finished and kept, and no other is begun.
        """
        progress(len(self.outcomes), len(self.plan))
        workers = self.config.workers or os.cpu_count() or 1
        pool = ThreadPoolExecutor(workers)
        try:
            for index, (job, _) in self.todo.items():
                self.running[pool.submit(_convert, job, self.config)] = index
                if len(self.running) >= IN_FLIGHT_PER_WORKER * workers:
                    self._settle_finished(progress)
            while self.running:
                self._settle_finished(progress)
        finally:
            pool.shutdown(cancel_futures=True)
            for future in [future for future in self.running if not future.cancelled() and not future.exception()]:
                self._settle(future)

    def _settle_finished(self, progress: Progress) -> None:
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            self._settle(future)
            progress(len(self.outcomes), len(self.plan))

    def _settle(self, future: Future[int | Reject]) -> None:
        index = self.running.pop(future)
        outcome = self.outcomes[index] = future.result()
        if isinstance(outcome, int):
            job, made_from = self.todo[index]
            self.journal.add(job.output, made_from, outcome)


def _convert(job: _Job, config: PreprocessConfig) -> int | Reject:
    """Write one job's output, whole or not at all; return its samples, or the reject."""
    try:
        with written_aside(job.output) as aside:
            return _write_sound(job, aside, config)
    except _Refused as refused:
        return refused.reject
    except InputError as error:
        return job.reject("unreadable", str(error))


class _Refused(Exception):
    """Carries a reject out of the block that writes a file, so that the file is dropped."""

    def __init__(self, reject: Reject) -> None:
        self.reject = reject


def _write_sound(job: _Job, path: Path, config: PreprocessConfig) -> int:
    """Write the sound of a job as 16 kHz mono, 16 bit, in bounded memory; _Refused where its length is."""
    samples = 0
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format=config.format.upper()) as out:
        for block in stream(job.source):
            samples += len(block)
            out.write(_to_int16(block))
            if config.max_seconds is not None and samples > config.max_seconds * SAMPLE_RATE_HZ:
                break
    reject = _length_reject(job, samples, config)
    if reject:
        raise _Refused(reject)
    return samples


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    """Return float samples as 16 bit; what came from 16 bit comes back bit for bit, what is too loud is clipped."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def _length_reject(job: _Job, samples: int, config: PreprocessConfig) -> Reject | None:
    seconds = samples / SAMPLE_RATE_HZ
    if not samples or seconds < config.min_seconds:
        reason = f"{job.source.path}: {seconds:.3f} s is shorter than min_seconds ({config.min_seconds:g})"
        return job.reject("too short", reason)
    if config.max_seconds is not None and seconds > config.max_seconds:
        return job.reject("too long", f"{job.source.path}: longer than max_seconds ({config.max_seconds:g})")
    return None


# The results


def _write_results(folder: Path, run: _Run) -> Report:
    kept: list[Utterance] = []
    rejects: list[Reject] = []
    for index, item in enumerate(run.plan):
        outcome = run.outcomes[index]
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        elif isinstance(item, _Job):
            seconds = outcome / SAMPLE_RATE_HZ
            kept.append(replace(item.found.utterance, audio=item.output, offset=0.0, duration=seconds))
    splits = _splits(kept)
    for name, utterances in splits.items():
        write_manifest(folder / f"{name}.jsonl", utterances)
    _write_rejects(folder / "rejects.jsonl", rejects)
    write_manifest(folder / "manifest.jsonl", kept)
    return Report(
        manifest=folder / "manifest.jsonl",
        rejects_file=folder / "rejects.jsonl",
        kept=len(kept),
        reused=run.reused,
        seconds=sum(utterance.duration or 0.0 for utterance in kept),
        rejects=dict(Counter(reject.kind for reject in rejects).most_common()),
        examples={reject.kind: reject.reason for reject in reversed(rejects)},
        splits={name: len(utterances) for name, utterances in splits.items()},
    )


def _splits(utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    """Return the utterances of each split that the corpus tells apart, where its name can be a file's."""
    splits: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        name = utterance.extra.get("split")
        if isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,60}", name) and name not in ("manifest", "rejects"):
            splits.setdefault(name, []).append(utterance)
    return splits


def _write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as out:
        for reject in rejects:
            audio = {"audio_filepath": str(reject.audio)} if reject.audio else {}
            row = {**audio, "text": reject.text, "kind": reject.kind, "reason": reject.reason}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
