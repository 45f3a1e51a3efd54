"""Tables on the terminal: an evaluation, and the attention on a recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from focusasr.evaluation.analysis import Analysis, Slice, percentile
from focusasr.evaluation.bootstrap import Comparison, Interval
from focusasr.evaluation.evaluate import Evaluation, Row
from focusasr.evaluation.wer import Errors, Score, align_columns
from focusasr.runtime.console import percent, pluralize

if TYPE_CHECKING:
    from rich.console import RenderableType

    from focusasr.evaluation.attention_stats import Inspection


MARK_STYLES = {"S": "yellow", "D": "red", "I": "magenta"}
MOST_SLICES = 30  # slices per key
MOST_CONFUSED = 5  # confusions per kind
KINDS = {"S": "substituted", "D": "deleted", "I": "inserted"}
ATTENTION_COLUMNS = (
    "\nlayer", "\nhead", "span\n±ms", "temper-\nature", "local\nbits", "of\nuniform", "above\n1 %", "global\nbits",
    "of\nuniform", "above\n1 %", "local/\nglobal",
)  # fmt: skip
ATTENTION_LEGEND = """span: how far a head looks to either side. bits: entropy of its weights, a mean
over time; of uniform: 1 is even over all that it may see, 0 a single step.
above 1 %: share of the weights that it may see. local/global: lengths of what
the two branches add after the projection; all: of whole branches."""


def print_trimmed(table: RenderableType, console: Console) -> None:
    """Print a table without trailing spaces."""
    with console.capture() as captured:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_evaluation(
    evaluation: Evaluation, console: Console, worst: int = 5, breakdown: Analysis | None = None
) -> None:
    """Print the figures, then the `worst` utterances by number of errors, reference and hypothesis aligned."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in [*figures(evaluation), *(_more_figures(breakdown) if breakdown else ())]:
        table.add_row(Text(name, "bold"), Text(value))
    print_trimmed(table, console)
    if breakdown and breakdown.slices:
        _print_slices(breakdown.slices, console)
    wrong = [(row, row.words) for row in evaluation.rows if row.words is not None and row.words.count]
    wrong.sort(key=lambda pair: (pair[1].count, pair[1].rate), reverse=True)
    for row, errors in wrong[:worst]:
        console.print()
        _print_difference(row, errors, console)


def figures(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield name, value and denominator of each rate of an evaluation."""
    score, pace = evaluation.score, evaluation.pace
    failed = len(evaluation.failures)
    if score is None:
        yield "WER", "none: every file failed"
    elif not score.words:
        yield "WER", f"none: no reference has a word; {pluralize(score.insertions, 'word')} inserted"
    else:
        yield from _rates(score)
    count = f"{len(evaluation.rows) - failed}"
    yield "utterances", f"{count}; {failed} more failed and are in no rate" if failed else count
    if pace is not None and pace.reused:
        yield "reused", f"{pluralize(pace.reused, 'utterance')} from an interrupted run"
    if score is not None and pace is not None and pace.latencies:
        speed = pace.audio_seconds / max(pace.seconds, 1e-9)
        yield "speed", f"{speed:.1f} s of audio per second ({pace.audio_seconds:.1f} s in {pace.seconds:.1f} s)"
        half, most = (percentile(sorted(pace.latencies), percent) for percent in (50, 95))
        yield "latency", f"{half:.2f} s median, {most:.2f} s for 95 %, from opening a file to its text, in batches"
        if pace.passes:
            yield "decoder", f"{pace.passes / pace.tokens:.2f} passes per token ({pace.passes} for {pace.tokens})"
    yield "normalizer", evaluation.normalizer


def _rates(score: Score) -> Iterator[tuple[str, str]]:
    words = score.rates["wer"]
    yield "WER", percent(words.value) + words.bounds(percent, name="95 % interval ")
    for name, rate in (("CER", "cer"), ("wrong sentences", "ser")):
        yield name, with_bounds(score.rates[rate])
    yield "words", f"{score.words}"
    for kind in ("substitution", "deletion", "insertion"):
        yield f"{kind}s", f"{getattr(score, kind + 's')}: {with_bounds(score.rates[kind + '_rate'])} of the words"
    drawn = f"95 %, bootstrap over {pluralize(score.drawn, score.unit)}"
    yield "intervals", f"none: one {score.unit} gives no interval" if score.drawn == 1 else drawn


def _more_figures(breakdown: Analysis) -> Iterator[tuple[str, str]]:
    for kind, name in KINDS.items():
        several = [one for one in breakdown.confusions if one.kind == kind][:MOST_CONFUSED]
        if several:
            pairs = (" → ".join(filter(None, (one.reference, one.hypothesis))) for one in several)
            yield name, ", ".join(f"{pair} {one.told()}" for pair, one in zip(pairs, several, strict=True))
    yield from beside(breakdown)


def beside(breakdown: Analysis) -> Iterator[tuple[str, str]]:
    """Yield the insertions in silence and the other system's rate."""
    silence = breakdown.silence
    if silence is not None:
        heard = f"{pluralize(silence.words, 'word')} inserted in {silence.minutes:.1f} min without speech"
        rate = silence.words_per_minute
        yield "silence", f"{heard}: {rate.value:.2f} per minute{rate.bounds('{:.2f}'.format)}" if rate else heard
    if breakdown.comparison is not None:
        yield "against", compared(breakdown.comparison, breakdown.against or "the other")


def compared(comparison: Comparison, name: str) -> str:
    """Return one sentence on the difference of two systems."""
    shift = comparison.difference
    rates = f"{percent(comparison.first)} here, {percent(comparison.second)} in {name}"
    points = f"{_points(shift.value)} points{shift.bounds(_points)}"
    sure = comparison.probability
    share = "" if sure is None else f"; here is better with probability {percent(sure)}"
    counts = f"{comparison.better} utterances better, {comparison.worse} worse, {comparison.equal} equal"
    return f"{rates}: {points}{share}; {counts}"


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.1f}"


def _print_slices(parts: list[Slice], console: Console) -> None:
    for key in dict.fromkeys(part.key for part in parts):
        own = [part for part in parts if part.key == key]
        table = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
        for name in (key, "WER", "95 % interval", "words", "utterances"):
            table.add_column(name, justify="left" if name == key else "right")
        for part in own[:MOST_SLICES]:
            rate, words = part.score.rates["wer"], part.score.words
            interval = (words and rate.bounds(percent).strip(" ()")) or "none"
            shown = percent(rate.value) if words else "none"
            cells = (part.value, shown, interval, str(words), str(part.score.utterances))
            table.add_row(*map(Text, cells))
        console.print()
        print_trimmed(table, console)
        if len(own) > MOST_SLICES:
            console.print(f"{len(own) - MOST_SLICES} more with lower rates; --json and --html show all")


def with_bounds(rate: Interval) -> str:
    """Return a rate and its interval as text."""
    return percent(rate.value) + rate.bounds(percent)


def _print_difference(row: Row, errors: Errors, console: Console) -> None:
    """Print one utterance's path and errors, then REF, HYP and S/D/I lines folded to the console's width."""
    at = f" at {row.utterance.offset:g} s" if row.utterance.offset else ""
    counts = f"{pluralize(errors.count, 'error')} in {pluralize(errors.words, 'word')}"
    console.print(Text(f"{row.utterance.audio}{at}: {counts}", "bold"), soft_wrap=True)
    columns = align_columns(row.normalized_reference, row.normalized_hypothesis or "")
    for block in _folded(columns, console.width - len("REF: ")):
        for index, head in enumerate(("REF: ", "HYP: ", "     ")):
            words = Text(" ").join(Text(column[index], MARK_STYLES.get(column[2].strip(), "")) for column in block)
            line = Text.assemble((head, "dim"), words)
            line.rstrip()
            console.print(line, soft_wrap=True)


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


def print_attention(inspection: Inspection, console: Console) -> None:
    """Print one row per layer and head, and one per layer for whole branches."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ATTENTION_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for layer in inspection.layers:
        for index, head in enumerate(layer.heads):
            local = (head.local_entropy_bits, head.local_entropy, head.local_share_above_1_percent)
            globe = (head.global_entropy_bits, head.global_entropy, head.global_share_above_1_percent)
            looks = [
                cell
                for bits, even, share in (local, globe)
                for cell in (f"{bits:.2f}", f"{even:.2f}", percent(share, 0))
            ]
            first = [str(layer.layer) if index == 0 else "", str(index + 1)]
            table.add_row(
                *first, f"{head.span_ms:.0f}", f"{head.temperature:.2f}", *looks, f"{head.local_over_global:.2f}"
            )
        table.add_row("", "all", *[""] * (len(ATTENTION_COLUMNS) - 3), f"{layer.local_over_global:.2f}", style="dim")
    print_trimmed(table, console)
    console.print(ATTENTION_LEGEND, style="dim", highlight=False)
