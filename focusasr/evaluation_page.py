"""An evaluation as one HTML page: figures, charts, and every utterance with its differences in color and its sound."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from focusasr.breakdown import Breakdown, slices
from focusasr.evaluate import Evaluation, Row
from focusasr.evaluation_table import beside, figures, percent, with_bounds
from focusasr.pages import Bar, bar_chart, escaped, scatter, table, write_page
from focusasr.score import align_words

MOST_DOTS = 3000
NAMES = {"S": "substitution", "D": "deletion", "I": "insertion"}

STYLE = """
article { border-top: 1px solid var(--line); padding: .7rem 0; content-visibility: auto; contain-intrinsic-size: 9rem }
article[hidden] { display: none } article header { display: flex; gap: 1rem; justify-content: space-between }
.words { display: flex; flex-wrap: wrap; gap: .1rem .35rem; margin: .3rem 0 }
.pair { display: inline-grid; grid-template-rows: auto auto; padding: 0 .2rem; border-radius: .25rem }
.pair.S { background: var(--S) } .pair.D { background: var(--D) } .pair.I { background: var(--I) }
.pair span { min-height: 1.5em } .pair.D .said { text-decoration: line-through } .pair.I .heard { font-style: italic }
audio { height: 2rem; width: 320px } .tools { position: sticky; top: 0; background: var(--paper); padding: .6rem 0;
  display: flex; gap: .5rem; flex-wrap: wrap; align-items: center; z-index: 1 }
.legend .pair { display: inline; margin-right: .4rem } pre { white-space: pre-wrap; margin: 0; color: var(--soft) }
"""

SCRIPT = """
const rows = [...document.querySelectorAll('article')], list = document.getElementById('rows');
const byId = name => document.getElementById(name);
const value = (row, key) => Number(row.dataset[key]);
function show() {
  const kind = byId('kind').value, words = byId('find').value.toLowerCase(), key = byId('order').value;
  let shown = 0;
  for (const row of rows) {
    const fits = kind === 'all' || row.dataset.kinds.includes(kind) || (kind === 'right' && !row.dataset.kinds);
    row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
    shown += !row.hidden;
  }
  const order = key === 'place' ? 1 : -1;
  list.append(...rows.slice().sort((a, b) => order * (value(a, key) - value(b, key))));
  byId('shown').textContent = shown + ' of ' + rows.length;
}
for (const name of ['kind', 'find', 'order']) byId(name).addEventListener('input', show);
show();
"""

TOOLS = """
<div class="tools">
<select id="kind" aria-label="which utterances"><option value="all">all utterances</option>
<option value="E">with errors</option><option value="S">with substitutions</option>
<option value="D">with deletions</option><option value="I">with insertions</option><option value="F">failed</option>
<option value="right">without errors</option></select>
<select id="order" aria-label="order"><option value="errors">most errors first</option>
<option value="rate">highest rate first</option><option value="seconds">longest first</option>
<option value="place">as in the manifest</option></select>
<input id="find" type="search" placeholder="find a word, speaker or file"> <span id="shown" class="soft"></span>
<span class="legend"><span class="pair S">heard as another</span><span class="pair D">not heard</span><span
class="pair I">invented</span></span>
</div>
"""


def write_evaluation_page(path: Path, evaluation: Evaluation, breakdown: Breakdown, title: str) -> None:
    """Write the page; sound is linked relative to it, so that a folder can be moved as a whole."""
    folder = path.parent.absolute()
    articles = "\n".join(_article(index, row, folder) for index, row in enumerate(evaluation.rows))
    parts = [
        f"<h1>{escaped(title)}</h1>",
        _summary(evaluation, breakdown),
        f'<div class="charts">{_charts(evaluation)}</div>',
        _slices(breakdown),
        _confusions(breakdown),
        f'<h2>Utterances</h2>{TOOLS}<div id="rows">{articles}</div>',
    ]
    write_page(path, title, "\n".join(parts), STYLE, SCRIPT)


def _summary(evaluation: Evaluation, breakdown: Breakdown) -> str:
    rows = (*figures(evaluation), *beside(breakdown))
    return "<table>" + "".join(f"<tr><th>{escaped(a)}</th><td>{escaped(b)}</td></tr>" for a, b in rows) + "</table>"


def _charts(evaluation: Evaluation) -> str:
    """Return WER by duration: a bar for each bucket, and a dot for each utterance."""
    rows = [row for row in evaluation.scored if row.audio_seconds and row.words and row.words.words]
    if not rows:
        return ""
    bars = []
    for part in slices(rows, "duration", evaluation.unit):
        rate = part.score.interval("wer")
        note = f"% of {part.score.words} words in {part.score.utterances} utterances"
        low, high = (None if bound is None else 100 * bound for bound in (rate.low, rate.high))
        bars.append(Bar(part.value, 100 * rate.value, low, high, note))
    dots = [(row.audio_seconds, 100 * row.words.rate) for row in rows[:MOST_DOTS] if row.words]
    by_bucket = bar_chart("WER % by duration, with 95 % intervals", bars, "duration")
    return by_bucket + scatter("WER % of each utterance", dots, "seconds")


def _slices(breakdown: Breakdown) -> str:
    parts = []
    for key in dict.fromkeys(part.key for part in breakdown.slices):
        own = [part for part in breakdown.slices if part.key == key]
        rates = (with_bounds(p.score.interval("wer")) if p.score.words else "none" for p in own)
        rows = [(p.value, rate, p.score.words, p.score.utterances) for p, rate in zip(own, rates, strict=True)]
        head = (key, "WER (95 % interval)", "words", "utterances")
        parts.append(f"<h2>By {escaped(key)}</h2>" + table(head, rows))
    return "".join(parts)


def _confusions(breakdown: Breakdown) -> str:
    if not breakdown.confusions:
        return ""
    rows = [(NAMES[one.kind], one.reference, one.hypothesis, one.told()) for one in breakdown.confusions]
    return "<h2>Most confused words</h2>" + table(("kind", "said", "heard", "count (95 % interval)"), rows)


def _article(place: int, row: Row, folder: Path) -> str:
    errors = row.words
    marks = {"F"} if row.error else set()
    pairs = []
    if errors is not None:
        for said, heard, mark in align_words(row.normalized_reference, row.normalized_hypothesis or ""):
            marks |= {mark, "E"} if mark else set()
            cells = f'<span class="said">{escaped(said)}</span><span class="heard">{escaped(heard)}</span>'
            pairs.append(f'<span class="pair {mark}" title="{NAMES.get(mark, "")}">{cells}</span>')
    body = f"<pre>{escaped(row.error)}</pre>" if row.error else f'<div class="words">{"".join(pairs)}</div>'
    told = f"{errors.count} / {errors.words} · {percent(errors.rate)}" if errors else "failed"
    speaker = row.utterance.extra.get("speaker")
    name = f"{row.utterance.audio.name}{f' · {speaker}' if speaker else ''} · {row.audio_seconds:.1f} s"
    count, rate = (errors.count, errors.rate) if errors else (0, 0.0)
    data = f'data-place="{place}" data-kinds="{"".join(sorted(marks))}" data-errors="{count}"'
    data += f' data-rate="{rate:.4f}" data-seconds="{row.audio_seconds:.3f}"'
    header = f'<header><span title="{escaped(row.utterance.audio)}">{escaped(name)}</span><span>{told}</span></header>'
    return f"<article {data}>{header}{body}{_player(row, folder)}</article>"


def _player(row: Row, folder: Path) -> str:
    """Return a player of the utterance's part of its file, or nothing where there is no file."""
    utterance = row.utterance
    if not utterance.audio.is_file():
        return ""
    link = quote(os.path.relpath(utterance.audio, folder).replace(os.sep, "/"), errors="replace")
    if utterance.offset or utterance.duration is not None:
        end = "" if utterance.duration is None else f",{utterance.offset + utterance.duration:.3f}"
        link += f"#t={utterance.offset:.3f}{end}"
    return f'<audio controls preload="none" src="{escaped(link)}"></audio>'
