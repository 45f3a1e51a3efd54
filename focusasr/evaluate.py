"""How good a checkpoint is on a manifest: what `transcribe` makes of it, scored, as a table, JSON and rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from focusasr.audio import Source
from focusasr.files import written_aside
from focusasr.manifest import Utterance
from focusasr.score import Errors, Score, align_columns, count_character_errors, count_errors, normalize, summarize
from focusasr.settings import InputError

if TYPE_CHECKING:
    from focusasr.transcribe import Outcome

RATES = ("wer", "wer_low", "wer_high", "cer")
COUNTS = ("substitutions", "deletions", "insertions", "words")
MARK_STYLES = {"S": "yellow", "D": "red", "I": "magenta"}


@dataclass(frozen=True)
class Row:
    """One utterance: what was said, what was heard, and how the two differ; `error` says why nothing was heard.

    The normalized texts are those that were compared. `hypothesis`, `normalized_hypothesis` and the counts are None
    where the file failed.
    """

    utterance: Utterance
    normalized_reference: str
    hypothesis: str | None = None
    normalized_hypothesis: str | None = None
    words: Errors | None = None
    characters: Errors | None = None
    audio_seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Every row, in the manifest's order, and the score of those that did not fail; None where all failed.

    `audio_seconds` is the sound of the scored rows, `seconds` the wall time that recognizing took.
    """

    rows: list[Row]
    score: Score | None
    audio_seconds: float
    seconds: float
    normalizer: str

    @property
    def failures(self) -> list[Row]:
        """The rows that could not be recognized; they are in no rate."""
        return [row for row in self.rows if row.error is not None]


def evaluate(
    recognize: Callable[[Iterable[Source]], Iterator[Outcome]],
    utterances: list[Utterance],
    normalizer: str = "basic",
) -> Evaluation:
    """Recognize every utterance and score the texts against the manifest's.

    `recognize` yields one Outcome per source, in order. InputError on an empty manifest or an unknown normalizer.
    """
    references = normalize((one.text for one in utterances), normalizer)
    if not utterances:
        raise InputError("no utterances to evaluate: the manifest is empty; wanted: at least one line")
    sources = [Source(str(one.audio), one.offset, one.duration) for one in utterances]
    start = time.perf_counter()
    outcomes = list(recognize(sources))
    seconds = time.perf_counter() - start
    heard = normalize((one.transcript.text if one.transcript else "" for one in outcomes), normalizer)
    rows = [_row(*parts) for parts in zip(utterances, references, outcomes, heard, strict=True)]
    words = [row.words for row in rows if row.words is not None]
    characters = [row.characters for row in rows if row.characters is not None]
    audio_seconds = sum(row.audio_seconds for row in rows)
    return Evaluation(rows, summarize(words, characters) if words else None, audio_seconds, seconds, normalizer)


def _row(utterance: Utterance, reference: str, outcome: Outcome, heard: str) -> Row:
    if outcome.transcript is None:
        return Row(utterance, reference, error=outcome.error or "no transcript")
    words, characters = count_errors(reference, heard), count_character_errors(reference, heard)
    return Row(utterance, reference, outcome.transcript.text.strip(), heard, words, characters, outcome.audio_seconds)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures as one flat object; the rates are null where nothing could be scored."""
    score = evaluation.score
    rates = {key: getattr(score, key, None) for key in RATES}
    counts = {key: getattr(score, key, 0) for key in (*COUNTS, "utterances")}
    return {
        **rates,
        **counts,
        "audio_seconds": evaluation.audio_seconds,
        "seconds": evaluation.seconds,
        "normalizer": evaluation.normalizer,
        "failed": len(evaluation.failures),
    }


def write_rows(evaluation: Evaluation, path: Path) -> None:
    """Write one JSON line per utterance, whole or not at all; InputError where the file cannot be written.

    A line keeps what its line in the manifest carried (speaker, language ...), with `reference` in place of `text`;
    the path of the sound is relative to the folder of `path` where it lies inside, as in manifests.
    """
    folder = path.parent.absolute()
    try:
        # A lone surrogate, which JSON can escape and UTF-8 cannot hold, becomes its escape again.
        with (
            written_aside(path) as aside,
            aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as out,
        ):
            for row in evaluation.rows:
                out.write(json.dumps(_row_to_json(row, folder), ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another output file") from None


def _row_to_json(row: Row, folder: Path) -> dict[str, Any]:
    line = row.utterance.to_json(folder)
    texts = {
        "reference": line.pop("text"),
        "hypothesis": row.hypothesis,
        "normalized_reference": row.normalized_reference,
        "normalized_hypothesis": row.normalized_hypothesis,
    }
    counts = {key: getattr(row.words, key, None) for key in COUNTS}
    wer = row.words.rate if row.words else None
    return {**line, **texts, "wer": wer, **counts, "audio_seconds": row.audio_seconds, "error": row.error}


def print_table(evaluation: Evaluation, console: Console, worst: int = 5) -> None:
    """Print the figures, then the `worst` utterances by number of errors, reference and hypothesis aligned."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _figures(evaluation):
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)
    wrong = [(row, row.words) for row in evaluation.rows if row.words is not None and row.words.count]
    wrong.sort(key=lambda pair: (pair[1].count, pair[1].rate), reverse=True)
    for row, errors in wrong[:worst]:
        console.print()
        _print_difference(row, errors, console)


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    score = evaluation.score
    failed = len(evaluation.failures)
    if score is None:
        yield "WER", "none: every file failed"
    elif not score.words:
        yield "WER", f"none: no reference has a word; {_counted(score.insertions, 'word')} heard"
    else:
        interval = f"95 % interval {_percent(score.wer_low)} to {_percent(score.wer_high)}"
        yield "WER", f"{_percent(score.wer)} ({interval})"
        yield "CER", _percent(score.cer)
        counts = f"{score.substitutions} substituted, {score.deletions} deleted, {score.insertions} inserted"
        yield "words", f"{score.words}: {counts}"
    count = f"{len(evaluation.rows) - failed}"
    yield "utterances", f"{count}; {failed} more failed and are in no rate" if failed else count
    if score is not None:
        audio_seconds, seconds = evaluation.audio_seconds, evaluation.seconds
        speed = audio_seconds / max(seconds, 1e-9)
        yield "speed", f"{speed:.1f} s of audio per second ({audio_seconds:.1f} s in {seconds:.1f} s)"
    yield "normalizer", evaluation.normalizer


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _print_difference(row: Row, errors: Errors, console: Console) -> None:
    """Print one utterance's path and errors, then REF, HYP and S/D/I lines folded to the console's width."""
    at = f" at {row.utterance.offset:g} s" if row.utterance.offset else ""
    counts = f"{_counted(errors.count, 'error')} in {_counted(errors.words, 'word')}"
    console.print(Text(f"{row.utterance.audio}{at}: {counts}", "bold"), soft_wrap=True)
    columns = align_columns(row.normalized_reference, row.normalized_hypothesis or "")
    for block in _folded(columns, console.width - len("REF: ")):
        for index, head in enumerate(("REF: ", "HYP: ", "     ")):
            words = Text(" ").join(Text(column[index], MARK_STYLES.get(column[2].strip(), "")) for column in block)
            line = Text.assemble((head, "dim"), words)
            line.rstrip()
            console.print(line, soft_wrap=True)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _folded(columns: list[tuple[str, str, str]], width: int) -> Iterator[list[tuple[str, str, str]]]:
    """Yield runs of columns that fit `width` terminal cells, at least one column each."""
    block: list[tuple[str, str, str]] = []
    used = 0
    for column in columns:
        cells = Text(column[0]).cell_len + 1
        if block and used + cells - 1 > width:
            yield block
            block, used = [], 0
        block.append(column)
        used += cells
    if block:
        yield block
