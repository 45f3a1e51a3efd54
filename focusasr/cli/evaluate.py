"""The command `evaluate`: a checkpoint, or texts from a file, against reference transcripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focusasr.cli.options import with_settings
from focusasr.cli.outcomes import shared_work, tell_remarks, told
from focusasr.config import DecodingConfig, EvaluationConfig
from focusasr.runtime.console import note, progress_bar, warn
from focusasr.runtime.errors import UsageError, as_option
from focusasr.runtime.files import ensure_file_writable, is_stream, write_errors
from focusasr.runtime.process import on_interrupt_message
from focusasr.runtime.settings import read_settings
from focusasr.transcription.loaded_model import LoadedRecognizer, load_recognizer
from focusasr.transcription.recognizer import ModelChoice
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.data.manifest import Utterance
    from focusasr.evaluation.evaluate import Evaluation, TranscriptCache
    from focusasr.transcription.result import Outcome


MOST_TOLD = 5  # invalid manifest lines printed one by one


@with_settings(EvaluationConfig, DecodingConfig, LongformConfig, SearchConfig)
def evaluate(
    manifest: Annotated[Path, typer.Argument(help="manifest, or a file of reference texts with --hypotheses")],
    given: dict[type, dict[str, Any]],
    choice: ModelChoice,
    hypotheses: Annotated[Path | None, typer.Option(help="file of texts to score without a model")] = None,
    against: Annotated[Path | None, typer.Option(help="file of another system's texts to compare with")] = None,
    output: Annotated[Path | None, typer.Option(help="file for one JSON line per utterance (a rerun resumes)")] = None,
    html: Annotated[Path | None, typer.Option(help="file for an HTML page with differences, audio and charts")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
) -> None:
    """Measure word error rate on a manifest, with its 95 % interval.

    Texts come from a model or from --hypotheses. The files of --hypotheses and --against may be JSON, transcribe's
    output, Kaldi, trn, STM, CTM, SRT or plain lines.
    """
    from rich.console import Console

    from focusasr.cli.html import write_evaluation_page
    from focusasr.cli.tables import print_evaluation
    from focusasr.evaluation import evaluate as room
    from focusasr.evaluation.analysis import analyze, check_groups, to_json

    config = read_settings(EvaluationConfig, given[EvaluationConfig])
    _spare({"--output": output, "--html": html}, (manifest, hypotheses, against))
    utterances, bad_lines = _read(manifest, without_sound=hypotheses is not None)
    check_groups(utterances, config)  # usage errors before any work
    others = _texts(against, utterances) if against else None
    if hypotheses:
        _check_unheard(choice.model, given)
        pair = _paired(manifest, hypotheses, utterances, config, against)
        evaluation, recall = room.evaluate_texts(*pair, config.normalizer, config.bootstrap), None
    else:
        loaded = load_recognizer(choice, given)
        tell_remarks(loaded)
        recall = _recall(output, choice, given) if loaded.processes.count == 1 else None  # several have no cache
        on_interrupt_message(_kept(recall, output, loaded.processes.count))
        with shared_work(loaded.processes):
            evaluation = _recognize(loaded, utterances, config, recall)
        if not loaded.processes.main:
            raise typer.Exit(0)
    breakdown = analyze(evaluation, config, others, str(against) if against else None)
    if output:
        room.write_rows(evaluation, output)
    if html:
        write_evaluation_page(html, evaluation, breakdown, f"{manifest}: {hypotheses or choice.model or 'default'}")
    if as_json:
        print(json.dumps(to_json(evaluation, breakdown)))
    else:
        print_evaluation(evaluation, Console(), config.worst, breakdown)
    note(*(f"focusasr: {path} is written" for path in (output, html) if path))
    if recall:
        recall.forget()
    if _too_many_errors(evaluation, config) or evaluation.failures or bad_lines:
        raise typer.Exit(1)


def _check_unheard(model: str | None, given: dict[type, dict[str, Any]]) -> None:
    """Reject options of a model with --hypotheses."""
    for_a_model = [("model", model)] if model else []
    for_a_model += [pair for kind, values in given.items() if kind is not EvaluationConfig for pair in values.items()]
    for name, value in for_a_model[:1]:
        raise UsageError(f"{as_option(name, value)}: is for a model, and --hypotheses asks none; give one of them")


def _texts(path: Path, utterances: Sequence[Utterance]) -> list[str | None]:
    """Read the texts of utterances; print the number of missing ones and the first of them."""
    from focusasr.evaluation.hypotheses import is_ignored, read_hypotheses

    pairs = zip(utterances, read_hypotheses(path, utterances), strict=True)
    counted = [(one, text) for one, text in pairs if not is_ignored(one)]
    missing = [one for one, text in counted if text is None]
    for first in missing[:1]:
        warn(f"focusasr: {path}: no text for {len(missing)} of {len(counted)} utterances, such as {first.audio}")
    return [text for _, text in counted]


def _paired(
    path: Path,
    hypotheses: Path,
    utterances: Sequence[Utterance],
    config: EvaluationConfig,
    against: Path | None,
) -> tuple[list[Utterance], list[str | None]]:
    """Return the references that count, their alternatives resolved, and the hypotheses."""
    from focusasr.evaluation.alternatives import SUFFIXES, has_choices, resolve
    from focusasr.evaluation.hypotheses import is_ignored

    texts = _texts(hypotheses, utterances)
    counted = [one for one in utterances if not is_ignored(one)]
    if path.suffix.lower() not in SUFFIXES:
        return counted, texts
    if against and any(has_choices(one.text) for one in counted):
        raise UsageError(f"--against: {path} has alternatives {{a / b}}, which two systems cannot share; score each")
    return resolve(counted, texts, config.normalizer), texts


def _spare(written: dict[str, Path | None], read: tuple[Path | None, ...]) -> None:
    """Reject outputs that would overwrite an input or each other, or that cannot be written."""
    taken = {path.resolve() for path in read if path}
    for option, path in written.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise UsageError(f"{path}: would be overwritten by a result; choose another name for that")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file in it")
        ensure_file_writable(path, f"choose another place with {option}")
        taken.add(path.resolve())


def _read(path: Path, without_sound: bool) -> tuple[list[Utterance], list[str]]:
    """Return the utterances of a manifest and its invalid lines, which are printed; or those of a file of texts."""
    from focusasr.data.manifest import read_manifest
    from focusasr.evaluation.hypotheses import read_references
    from focusasr.evaluation.text_files import JSON_SUFFIXES

    bad_lines: list[str] = []
    utterances: list[Utterance] = []
    if not without_sound or path.suffix.lower() in JSON_SUFFIXES:
        utterances = read_manifest(path, bad_lines.append)
    if without_sound and not utterances:
        return read_references(path), []
    for line in bad_lines[:MOST_TOLD]:
        warn(f"focusasr: {line}")
    if len(bad_lines) > MOST_TOLD:
        warn(f"focusasr: {path}: {len(bad_lines)} lines cannot be used, those above and more of them")
    return utterances, bad_lines


def _recognize(
    loaded: LoadedRecognizer, utterances: list[Utterance], config: EvaluationConfig, recall: TranscriptCache | None
) -> Evaluation:
    from focusasr.audio.load import total_seconds
    from focusasr.evaluation import evaluate as room

    everything = [one.source for one in utterances]

    def recognize(sources: Iterable[Source]) -> Iterator[Outcome]:
        with progress_bar(len(everything), "evaluating", lambda: total_seconds(everything)) as tell:
            yield from told(loaded.shared(sources, tell), tell, loaded, doubts=False)

    found = room.evaluate(recognize, utterances, config.normalizer, config.bootstrap, recall)
    if loaded.processes.count > 1 and found.pace:
        found.pace.latencies.clear()  # sources are requested all together
    return found


def _recall(output: Path | None, choice: ModelChoice, given: dict[type, dict[str, Any]]) -> TranscriptCache | None:
    """Return the cached transcripts of an interrupted run with the same output, checkpoint and options."""
    from focusasr import __version__
    from focusasr.evaluation.evaluate import TranscriptCache
    from focusasr.model.checkpoint_folder import find_checkpoint, fingerprint_of_model

    if output is None or is_stream(output):
        return None
    options = {kind.__name__: values for kind, values in given.items() if kind is not EvaluationConfig}
    digest = fingerprint_of_model(find_checkpoint(choice.model, choice.local_files_only))
    decided = {"focusasr": __version__, "model": digest, "options": options}
    with write_errors(output, "choose another place with --output"):
        return TranscriptCache(output.with_name(f".{output.name}.heard"), decided)


def _kept(recall: TranscriptCache | None, output: Path | None, processes: int) -> str:
    if recall:
        return "transcripts so far are kept; the same command resumes"
    if output is None:
        return "nothing is kept without --output"
    return f"nothing is kept by {'several processes' if processes > 1 else 'a run whose output is no file'}"


def _too_many_errors(evaluation: Evaluation, config: EvaluationConfig) -> bool:
    """Return whether --fail-above is exceeded, and print why; utterances that failed exceed it too."""
    limit = config.fail_above
    score = evaluation.score if evaluation.score and evaluation.score.words else None
    if limit is None or (score is not None and score.wer <= limit):
        return False
    seen = f"WER {100 * score.wer:.2f} %" if score else "no WER"
    warn(f"focusasr: {seen}; --fail-above allows {100 * limit:.2f} %")
    return True
