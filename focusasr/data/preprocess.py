"""Conversion of corpora to 16 kHz mono files and one manifest, parallel and resumable."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from focusasr.audio.load import load, probe_seconds, stream
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig, TextConfig
from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject, each
from focusasr.data.corpus_readers import read_corpora
from focusasr.data.loudness import LevelMeter, LevelStats, changed, changes_sound
from focusasr.data.loudness import to_int16 as _to_int16
from focusasr.data.preprocess_report import RESULTS, Report, check_choices, split_members, write_results
from focusasr.data.quality import PreparedUtterance
from focusasr.data.splits import SplitHistory, check_keys
from focusasr.runtime.cache import JsonLinesCache, file_state
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import fitting, folded, free_name, real_path, sweep, write_errors, written_aside
from focusasr.text.normalize import apply_policy

IN_FLIGHT_PER_WORKER = 4
SCRATCH = ".unpacked"  # unpacked archives, deleted after the run

Progress = Callable[[int, int], None]


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
    found = list(read_corpora(inputs, config.layout, columns, folder / SCRATCH))
    check_keys([one.utterance for one in found if isinstance(one, CorpusUtterance)], config.by or [])
    journal, history = JsonLinesCache(folder, ".preprocess.jsonl"), SplitHistory(folder)
    history.check(inputs if any(output.is_file() for output in journal.outputs()) else None, config)
    if config.split_seconds is not None:
        from focusasr.data.ctc_segmentation import Splitter
        from focusasr.model.checkpoint_folder import find_checkpoint

        found = list(Splitter(folder, find_checkpoint(config.align_with), config).split(found))
    foreign = [one for one in found if one.audio is None or Path(real_path(one.audio)) not in journal]
    items = _named(list(each(foreign, lambda one: _normalized(one, config))), folder / "audio", config, journal)
    prepared = [item for item in items if isinstance(item, PreparedUtterance)]
    _keep_inputs(inputs, prepared, history, journal, config)
    if not items:
        raise InputError(f"{', '.join(map(str, inputs))}: no utterances found; expected: audio with text")
    with write_errors(folder, "choose another folder with --output-dir", soundfile.SoundFileError):
        history.begin(inputs, config, {one.output: one.source for one in prepared})
        run = _Run(items, journal, config)
        run.settle_at_once()
        run.convert(progress)
        history.left(journal.outputs())
        return write_results(history, run.items, run.reused, inputs, config)


def _normalized(found: CorpusUtterance, config: PreprocessConfig) -> CorpusUtterance:
    """Normalize a text as configured; a text that has only punctuation may become a reject."""
    if config.case == "keep" and config.punctuation == "keep":
        return found
    text = apply_policy(found.utterance.text, TextConfig(case=config.case, punctuation=config.punctuation))
    if not text:
        raise found.reject("empty text", f"{found.where}: {found.utterance.text[:60]!r} is empty without punctuation")
    return replace(found, utterance=replace(found.utterance, text=text))


# Names of outputs


def _named(
    items: list[CorpusUtterance | Reject], folder: Path, config: PreprocessConfig, journal: JsonLinesCache
) -> list[PreparedUtterance | Reject]:
    """Give each utterance an output file of its own, named after its place in the corpus, or as in an earlier run."""
    before = _names_before(folder, config, journal)
    uses = Counter(item.audio for item in items if isinstance(item, CorpusUtterance))
    names: dict[int, str] = {}
    for index, item in enumerate(items):
        if isinstance(item, CorpusUtterance):
            had = before.get(_origin(vars(item.source(config.channel))))
            if had and re.fullmatch(re.escape(_marked_name(item)) + r"(-\d+)?", had[0]):
                names[index] = had.pop(0)
    taken = {folded(name) for name in names.values()}

    def prepared(index: int, found: CorpusUtterance) -> PreparedUtterance:
        name = names.get(index) or free_name(_marked_name(found), taken)
        output = folder / f"{name}.{config.format}"
        return PreparedUtterance(found, found.source(config.channel), output, uses[found.audio] == 1)

    return [item if isinstance(item, Reject) else prepared(index, item) for index, item in enumerate(items)]


def _names_before(folder: Path, config: PreprocessConfig, journal: JsonLinesCache) -> dict[str, list[str]]:
    """Return the names of earlier runs' outputs by part of a recording: of one with several texts, a, a-2, a-3."""
    before: dict[str, list[str]] = defaultdict(list)
    for output, made_from in journal.origins():
        if output.is_relative_to(folder) and output.suffix == f".{config.format}":
            before[_origin(made_from)].append(output.relative_to(folder).as_posix()[: -len(output.suffix)])
    for several in before.values():
        several.sort(key=lambda name: (len(name), name))  # they were finished in any order
    return before


def _origin(made_from: dict[str, Any]) -> str:
    return str([made_from.get(key) for key in ("path", "offset", "duration", "channel")])


def _marked_name(found: CorpusUtterance) -> str:
    """Return the name of an utterance's file; a part from the middle of a recording adds its milliseconds."""
    name = "/".join(fitting(part) or "_" for part in found.name.split("/"))
    offset, duration = found.utterance.offset, found.utterance.duration
    if offset:
        end = "end" if duration is None else str(round(1000 * (offset + duration)))
        name = f"{name}_{round(1000 * offset)}-{end}"
    return name


def _keep_inputs(
    inputs: list[str | Path],
    prepared: list[PreparedUtterance],
    history: SplitHistory,
    journal: JsonLinesCache,
    config: PreprocessConfig,
) -> None:
    """Reject an output folder in which results would overwrite inputs or files of other programs."""
    folder = history.folder
    splits = {*split_members(one.found.utterance for one in prepared)}
    splits.update(("train", "dev", "test") if config.split else ())
    names = {*RESULTS, *(f"{name}.jsonl" for name in splits)}
    written = {folder} | {folder / name for name in names} | {one.output for one in prepared}
    for path in [*inputs, *(one.found.audio for one in prepared)]:
        if Path(path).resolve() in written:
            raise InputError(f"{path}: would be overwritten by its own result. Choose another --output-dir.")
    history.check_owned(names)
    history.claim_new(one.output for one in prepared if one.output not in journal)


# Conversion


class _Run:
    """Conversion of the items in place: each utterance is finished, or replaced by its reject."""

    def __init__(
        self, items: list[PreparedUtterance | Reject], journal: JsonLinesCache, config: PreprocessConfig
    ) -> None:
        self.items, self.journal, self.config = items, journal, config
        self.reused = self.done = 0
        self.todo: dict[int, tuple[PreparedUtterance, dict[str, Any]]] = {}  # with what determines each output
        self.running: dict[Future[LevelStats], int] = {}

    def settle_at_once(self) -> None:
        """Settle missing files and finished outputs; the others become `todo`."""
        for index, item in enumerate(self.items):
            try:
                if isinstance(item, PreparedUtterance) and not self._reuse(item, index):
                    continue
            except Reject as reject:
                self.items[index] = reject
            self.done += 1

    def _reuse(self, one: PreparedUtterance, index: int) -> bool:
        try:
            made_from = _made_from(one, self.config)
        except (OSError, ValueError):
            raise one.found.reject("missing", f"{one.found.where}: {one.source.path} not found") from None
        try:
            measured = LevelStats(**self.journal.finished(one.output, made_from))
        except TypeError:  # not finished, or by an earlier version
            self.todo[index] = one, made_from
            return False
        sweep(one.output.parent)  # no other process writes here any more
        one.finish(_accepted(one, measured, self.config))
        self.reused += 1
        return True

    def convert(self, progress: Progress) -> None:
        """Convert the remaining files, a bounded number at a time.

        Threads are as fast as processes: decoding, resampling and encoding release Python's lock. After an interrupt
        the running conversions are finished and kept, and no other is started.
        """
        progress(self.done, len(self.items))
        workers = self.config.workers or os.cpu_count() or 1
        pool = ThreadPoolExecutor(workers)
        try:
            for index, (one, _) in self.todo.items():
                self.running[pool.submit(_convert, one, self.config)] = index
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
            progress(self.done, len(self.items))

    def _settle(self, future: Future[LevelStats]) -> None:
        index = self.running.pop(future)
        one, made_from = self.todo[index]
        try:
            one.finish(future.result())
            self.journal.add(one.output, made_from, asdict(one.measured))
        except Reject as reject:
            self.items[index] = reject
        self.done += 1


def _made_from(one: PreparedUtterance, config: PreprocessConfig) -> dict[str, Any]:
    """Return everything that determines the output; OSError or ValueError if the audio is not found."""
    part = {"offset": one.source.offset, "duration": one.source.duration}
    steps = {name: getattr(config, name) for name in ("trim_silence", "loudness", "lufs", "peak_db")}
    kept = {"sample_rate_hz": SAMPLE_RATE_HZ, "channel": one.source.channel, **steps}
    return {"source": file_state(one.found.audio), **part, **kept}


def _convert(one: PreparedUtterance, config: PreprocessConfig) -> LevelStats:
    """Write one output, atomically; return its levels, or raise the reject."""
    try:
        with written_aside(one.output) as aside:
            return _accepted(one, _write_sound(one, aside, config), config)
    except InputError as error:
        raise one.found.reject("unreadable", str(error)) from None


def _write_sound(one: PreparedUtterance, path: Path, config: PreprocessConfig) -> LevelStats:
    """Write audio as 16 kHz mono, 16 bit, and return its levels; memory is bounded unless a step needs the whole."""
    meter, before, source_samples = LevelMeter(), None, 0
    name = str(path) if sys.platform == "win32" else os.fsencode(path)  # may not be UTF-8
    with soundfile.SoundFile(name, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format=config.format.upper()) as out:
        blocks: Iterable[np.ndarray] = stream(one.source)
        if changes_sound(config):
            whole = load(one.source)
            source_samples, blocks, before = len(whole), [changed(whole, config)], LevelMeter()
            before.update(_to_int16(whole))
        for block in blocks:
            values = _to_int16(block)
            meter.update(values)
            out.write(values)
            if config.max_seconds is not None and meter.samples > config.max_seconds * SAMPLE_RATE_HZ:
                break
    seconds = max(source_samples, meter.samples) / SAMPLE_RATE_HZ
    if one.alone and not one.source.offset and one.source.duration is not None:
        seconds = probe_seconds(one.source.path) or seconds
    return meter.result(seconds, before)


def _accepted(one: PreparedUtterance, measured: LevelStats, config: PreprocessConfig) -> LevelStats:
    """Return the levels, or raise the reject of an utterance that is too short or too long."""
    seconds = measured.seconds
    if not seconds or seconds < config.min_seconds:
        reason = f"{one.source.path}: {seconds:.3f} s is shorter than min_seconds ({config.min_seconds:g})"
        raise one.found.reject("too short", reason)
    if config.max_seconds is not None and seconds > config.max_seconds:
        reason = f"{one.source.path}: longer than max_seconds ({config.max_seconds:g})"
        raise one.found.reject("too long", reason)
    return measured
