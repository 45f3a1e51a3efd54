"""A prepared corpus as one HTML page: what was kept, what is odd, and how long, loud, fast and written it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focusasr.checks import Finding, Kept
from focusasr.pages import Bar, bar_chart, escaped, histogram, table, write_page

MOST_SHOWN = 200  # findings of each kind
MOST_CHARACTERS = 60


def write_preparation_page(
    path: Path, facts: dict[str, Any], kept: Sequence[Kept], findings: Sequence[Finding]
) -> None:
    """Write the page; `facts` are those of report.json."""
    rows = [(name, value) for name, value in facts.items() if not isinstance(value, (dict, list))]
    parts = ["<h1>Prepared speech</h1>", table(("", ""), rows), f'<div class="charts">{_charts(kept)}</div>']
    for name in ("splits", "rejects", "findings"):
        if facts.get(name):
            parts.append(f"<h2>{name.capitalize()}</h2>" + table(("name", "count"), list(facts[name].items())))
    for kind in dict.fromkeys(finding.kind for finding in findings):
        own = [finding for finding in findings if finding.kind == kind]
        more = f"<p class=soft>and {len(own) - MOST_SHOWN} more</p>" if len(own) > MOST_SHOWN else ""
        lines = "".join(f"<li>{escaped(finding.reason)}</li>" for finding in own[:MOST_SHOWN])
        parts.append(f"<details><summary>{escaped(kind)}: {len(own)}</summary><ul>{lines}</ul>{more}</details>")
    parts.append("<h2>Steps</h2><ol>" + "".join(f"<li>{escaped(step)}</li>" for step in facts["steps"]) + "</ol>")
    chosen = [(name, "none" if value is None else value) for name, value in facts["settings"].items()]
    parts.append("<h2>Settings</h2>" + table(("setting", "value"), chosen))
    write_page(path, "Prepared speech", "\n".join(parts))


def _charts(kept: Sequence[Kept]) -> str:
    letters = Counter(char for one in kept for char in one.utterance.text if not char.isspace())
    common = [Bar(char, count) for char, count in letters.most_common(MOST_CHARACTERS)]
    return "".join(
        (
            histogram("Duration", [one.measured.seconds for one in kept], "seconds"),
            histogram("Level", [one.measured.rms_db for one in kept], "mean power, dB of full scale"),
            histogram("Peak", [one.measured.peak_db for one in kept], "dB of full scale"),
            histogram("Speaking rate", [one.rate for one in kept], "characters per second"),
            histogram("Text length", [float(len(one.utterance.text)) for one in kept], "characters"),
            bar_chart("Characters", common, f"{len(letters)} different, the {len(common)} most frequent"),
        )
    )
