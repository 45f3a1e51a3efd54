"""Conversion of corpora to 16 kHz mono files and one manifest, parallel and resumable."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from focusasr.audio.load import load, probe_seconds, stream
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig, TextConfig
from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_readers import read_corpora
from focusasr.data.loudness import LevelMeter, LevelStats, changed, changes_sound
from focusasr.data.loudness import to_int16 as _to_int16
from focusasr.data.manifest import Utterance
from focusasr.data.preprocess_report import RESULTS, Report, Results, check_choices, split_members, write_results
from focusasr.data.quality import PreparedUtterance
from focusasr.data.splits import SplitHistory, check_keys
from focusasr.runtime.cache import JsonLinesCache, file_state
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import fitting, real_path, sweep, unwritable, written_aside
from focusasr.text.normalize import apply_policy

IN_FLIGHT_PER_WORKER = 4
SCRATCH = ".unpacked"  # unpacked archives, deleted after the run

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Job:
    """One utterance and its output file."""

    found: CorpusUtterance
    output: Path
    config: PreprocessConfig
    alone: bool  # whether no other utterance is in the same file

    @property
    def source(self) -> Source:
        return self.found.source(self.config.channel)

    def made_from(self) -> dict[str, Any]:
        """Return everything that determines the output; OSError or ValueError if the audio is not found."""
        part = {"offset": self.source.offset, "duration": self.source.duration}
        steps = {name: getattr(self.config, name) for name in ("trim_silence", "loudness", "lufs", "peak_db")}
        kept = {"sample_rate_hz": SAMPLE_RATE_HZ, "channel": self.source.channel, **steps}
        return {"source": file_state(self.found.audio), **part, **kept}

    def utterance(self, measured: LevelStats) -> Utterance:
        """Return the manifest entry of the finished output."""
        extra = {("source_channel" if key == "channel" else key): v for key, v in self.found.utterance.extra.items()}
        audio, text = self.output, self.found.utterance.text
        return Utterance(audio, text, 0.0, measured.seconds, extra)

    def reject(self, kind: str, reason: str) -> Reject:
        """Return the reject of this kind for this job."""
        return Reject(kind, reason, self.found.audio, self.found.utterance.text)


def preprocess(
    inputs: Iterable[str | Path],
    output_dir: str | Path,
    config: PreprocessConfig | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert every utterance of the inputs to `output_dir`/audio; write manifest.jsonl and rejects.jsonl there.

    Utterances of several splits also get one manifest per split. Outputs of earlier runs are reused, and utterances
    stay in their split. `progress` is called with (utterances done, utterances in all). InputError if an input is
    missing or has no known layout, if nothing is found, or if the folder cannot be written or has other content.
    """
    config = config or PreprocessConfig()
    check_choices(config)
    folder = Path(output_dir).resolve()
    try:
        return _preprocess(list(inputs), folder, config, progress or (lambda done, total: None))
    finally:
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def _preprocess(inputs: list[str | Path], folder: Path, config: PreprocessConfig, progress: Progress) -> Report:
    columns = Columns(config.audio_column, config.text_column, config.speaker_column)
    readings = list(read_corpora(inputs, config.layout, columns, folder / SCRATCH))
    check_keys(
        [one.utterance for one in readings if isinstance(one, CorpusUtterance)], config.by or []
    )  # before any work
    journal, prepared = JsonLinesCache(folder, ".preprocess.jsonl"), SplitHistory(folder)
    prepared.check(inputs if any(output.is_file() for output in journal.outputs()) else None, config)
    if config.split_seconds is not None:
        from focusasr.data.ctc_segmentation import Splitter
        from focusasr.model.checkpoint_folder import find_checkpoint

        readings = list(Splitter(folder, find_checkpoint(config.align_with), config).split(readings))
    foreign = [one for one in readings if one.audio is None or Path(real_path(one.audio)) not in journal]
    plan = _plan([_with_policy(reading, config) for reading in foreign], folder / "audio", config, journal)
    _keep_inputs(inputs, plan, prepared, journal, config)
    if not plan:
        raise InputError(f"{', '.join(map(str, inputs))}: no utterances found; expected: audio with text")
    try:
        prepared.begin(inputs, config, {job.output: job.source for job in plan if isinstance(job, _Job)})
        run = _Run(plan, journal, config)
        run.settle_at_once()
        run.convert(progress)
        prepared.left(journal.outputs())
        return write_results(prepared, run.results(), inputs, config)
    except (OSError, soundfile.SoundFileError) as error:
        raise unwritable(folder, error, "choose another folder with --output-dir") from None


# The plan: an output file for each utterance


def _plan(
    readings: list[CorpusUtterance | Reject], folder: Path, config: PreprocessConfig, journal: JsonLinesCache
) -> list[_Job | Reject]:
    """Give each utterance an output file of its own, named after its place in the corpus, or as in an earlier run."""
    names = _names_before(readings, folder, config, journal)
    taken = {name.casefold() for name in names.values()}
    uses = Counter(reading.audio for reading in readings if isinstance(reading, CorpusUtterance))
    plan: list[_Job | Reject] = []
    for index, reading in enumerate(readings):
        if isinstance(reading, CorpusUtterance):
            name = names.get(index) or _free_name(_marked_name(reading), taken)
            plan.append(_Job(reading, folder / f"{name}.{config.format}", config, uses[reading.audio] == 1))
        else:
            plan.append(reading)
    return plan


def _names_before(
    readings: list[CorpusUtterance | Reject], folder: Path, config: PreprocessConfig, journal: JsonLinesCache
) -> dict[int, str]:
    """Return the names of earlier runs' outputs by position in `readings`; new utterances must not take them."""
    before: dict[str, list[str]] = defaultdict(list)  # of one part with several texts: a, a-2, a-3
    for output, made_from in journal.origins():
        if output.is_relative_to(folder) and output.suffix == f".{config.format}":
            before[_origin(made_from)].append(output.relative_to(folder).as_posix()[: -len(output.suffix)])
    for several in before.values():
        several.sort(key=lambda name: (len(name), name))  # they were finished in any order
    names: dict[int, str] = {}
    for index, reading in enumerate(readings if before else ()):
        if isinstance(reading, CorpusUtterance):
            had = before.get(_origin(asdict(reading.source(config.channel))))
            if had and _numbered(had[0], _marked_name(reading)):
                names[index] = had.pop(0)
    return names


def _origin(made_from: dict[str, Any]) -> str:
    """Return the identity of one part of one recording."""
    return str([made_from.get(key) for key in ("path", "offset", "duration", "channel")])


def _with_policy(reading: CorpusUtterance | Reject, config: PreprocessConfig) -> CorpusUtterance | Reject:
    """Normalize a text as configured; a text that has only punctuation may become a reject."""
    if isinstance(reading, Reject) or (config.case == "keep" and config.punctuation == "keep"):
        return reading
    text = apply_policy(reading.utterance.text, TextConfig(case=config.case, punctuation=config.punctuation))
    if not text:
        reason = f"{reading.where}: {reading.utterance.text[:60]!r} is empty without punctuation"
        return Reject("empty text", reason, reading.audio, reading.utterance.text)
    return replace(reading, utterance=replace(reading.utterance, text=text))


def _marked_name(found: CorpusUtterance) -> str:
    """Return the name of an utterance's file; a part from the middle of a recording adds its milliseconds."""
    name = "/".join(fitting(part) or "_" for part in found.name.split("/"))
    offset, duration = found.utterance.offset, found.utterance.duration
    if offset:
        end = "end" if duration is None else str(round(1000 * (offset + duration)))
        name = f"{name}_{round(1000 * offset)}-{end}"
    return name


def _numbered(name: str, plain: str) -> bool:
    """Return whether `name` is a name that `_free_name` may return for `plain`."""
    head, _, count = name.rpartition("-")
    return name == plain or (head == plain and count.isdecimal())


def _free_name(name: str, taken: set[str]) -> str:
    """Return the name, or name-2, name-3 ...; names must differ by more than case."""
    free, count = name, 1
    while free.casefold() in taken:
        count += 1
        free = f"{name}-{count}"
    taken.add(free.casefold())
    return free


def _keep_inputs(
    inputs: list[str | Path],
    plan: list[_Job | Reject],
    prepared: SplitHistory,
    journal: JsonLinesCache,
    config: PreprocessConfig,
) -> None:
    """Reject an output folder in which results would overwrite inputs or files of other programs."""
    folder = prepared.folder
    jobs = [item for item in plan if isinstance(item, _Job)]
    splits = {*split_members(job.found.utterance for job in jobs), *(("train", "dev", "test") if config.split else ())}
    names = {*RESULTS, *(f"{name}.jsonl" for name in splits)}
    written = {folder} | {folder / name for name in names} | {job.output for job in jobs}
    for path in [*inputs, *(job.found.audio for job in jobs)]:
        if Path(path).resolve() in written:
            raise InputError(f"{path}: would be overwritten by its own result. Choose another --output-dir.")
    prepared.check_owned(names)
    prepared.claim_new(job.output for job in jobs if job.output not in journal)


# Conversion


class _Run:
    """One pass over a plan; `outcomes` are levels or rejects, by position in the plan."""

    def __init__(self, plan: list[_Job | Reject], journal: JsonLinesCache, config: PreprocessConfig) -> None:
        self.plan, self.journal, self.config = plan, journal, config
        self.outcomes: dict[int, LevelStats | Reject] = {}
        self.reused = 0
        self.todo: dict[int, tuple[_Job, dict[str, Any]]] = {}  # with the inputs that determine each output
        self.running: dict[Future[LevelStats | Reject], int] = {}

    def settle_at_once(self) -> None:
        """Settle rejects, missing files and finished outputs; the others become `todo`."""
        for index, item in enumerate(self.plan):
            if isinstance(item, Reject):
                self.outcomes[index] = item
                continue
            try:
                made_from = item.made_from()
            except (OSError, ValueError):
                self.outcomes[index] = item.reject("missing", f"{item.found.where}: {item.source.path} not found")
                continue
            measured = _remembered(self.journal.finished(item.output, made_from))
            if measured is None:
                self.todo[index] = item, made_from
            else:
                sweep(item.output.parent)  # no other process writes here any more
                self.outcomes[index] = _length_reject(item, measured, self.config) or measured
                self.reused += isinstance(self.outcomes[index], LevelStats)

    def convert(self, progress: Progress) -> None:
        """Convert the remaining files, a bounded number at a time.

        Threads are as fast as processes: decoding, resampling and encoding release Python's lock. After an interrupt
        the running conversions are finished and kept, and no other is started.
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

    def _settle(self, future: Future[LevelStats | Reject]) -> None:
        index = self.running.pop(future)
        outcome = self.outcomes[index] = future.result()
        if isinstance(outcome, LevelStats):
            job, made_from = self.todo[index]
            self.journal.add(job.output, made_from, asdict(outcome))

    def results(self) -> Results:
        """Return the result of every item of the plan, in order."""
        kept: list[PreparedUtterance] = []
        rejects: list[Reject] = []
        for index, item in enumerate(self.plan):
            outcome = self.outcomes[index]
            if isinstance(outcome, Reject):
                rejects.append(outcome)
            elif isinstance(item, _Job):
                kept.append(PreparedUtterance(item.utterance(outcome), outcome, item.found.told_seconds))
        return Results(kept, rejects, self.reused)


def _remembered(result: Any) -> LevelStats | None:
    """Return the levels of a finished output; None if they are of an earlier version."""
    try:
        return LevelStats(**result)
    except TypeError:
        return None


def _convert(job: _Job, config: PreprocessConfig) -> LevelStats | Reject:
    """Write one job's output, atomically; return its levels, or the reject."""
    try:
        with written_aside(job.output) as aside:
            return _write_sound(job, aside, config)
    except _Refused as refused:
        return refused.reject
    except InputError as error:
        return job.reject("unreadable", str(error))


class _Refused(Exception):
    """Reject raised inside the block that writes a file, so that the file is deleted."""

    def __init__(self, reject: Reject) -> None:
        self.reject = reject


def _write_sound(job: _Job, path: Path, config: PreprocessConfig) -> LevelStats:
    """Write the audio of a job as 16 kHz mono, 16 bit; _Refused if its length is out of range.

    Memory is bounded unless a step needs the whole utterance.
    """
    meter, before, source_samples = LevelMeter(), None, 0
    name = str(path) if sys.platform == "win32" else os.fsencode(path)  # may not be UTF-8
    with soundfile.SoundFile(name, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format=config.format.upper()) as out:
        blocks: Iterable[np.ndarray] = stream(job.source)
        if changes_sound(config):
            whole = load(job.source)
            source_samples, blocks, before = len(whole), [changed(whole, config)], LevelMeter()
            before.update(_to_int16(whole))
        for block in blocks:
            values = _to_int16(block)
            meter.update(values)
            out.write(values)
            if config.max_seconds is not None and meter.samples > config.max_seconds * SAMPLE_RATE_HZ:
                break
    seconds = max(source_samples, meter.samples) / SAMPLE_RATE_HZ
    if job.alone and not job.source.offset and job.source.duration is not None:
        seconds = probe_seconds(job.source.path) or seconds
    measured = meter.result(seconds, before)
    reject = _length_reject(job, measured, config)
    if reject:
        raise _Refused(reject)
    return measured


def _length_reject(job: _Job, measured: LevelStats, config: PreprocessConfig) -> Reject | None:
    seconds = measured.seconds
    if not seconds or seconds < config.min_seconds:
        reason = f"{job.source.path}: {seconds:.3f} s is shorter than min_seconds ({config.min_seconds:g})"
        return job.reject("too short", reason)
    if config.max_seconds is not None and seconds > config.max_seconds:
        return job.reject("too long", f"{job.source.path}: longer than max_seconds ({config.max_seconds:g})")
    return None
