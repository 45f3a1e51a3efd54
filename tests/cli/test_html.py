"""Charts: bars count what they should, axes end at round numbers, and no text can break the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from focusasr.cli.html import Bar, Chart, bar_chart, histogram, scatter, templates, write_page


def part(name: str, *arguments: object) -> str:
    """Return what a macro of the templates draws."""
    return getattr(templates().get_template("parts.html").make_module(templates().globals), name)(*arguments)


def bars(chart: Chart) -> list[tuple[str, float]]:
    """Return each bar's note and height."""
    root = ElementTree.fromstring(part("chart", chart))
    return [(bar[0].text or "", float(bar.get("height", "nan"))) for bar in root.iter("rect")]


def test_a_histogram_counts_every_value_once():
    counts = [float(note.split(": ")[1]) for note, _ in bars(histogram("t", [0.1, 0.11, 0.5, 0.99, -0.2], "s", bins=4))]
    assert sum(counts) == 5 and max(counts) == 2
    assert bars(histogram("t", [], "s")) == bars(histogram("t", [float("inf")], "s")) == []
    assert len(bars(histogram("t", [3.0, 3.0], "s"))) == 1


def test_bars_are_as_high_as_their_values():
    (_, first), (_, second), (_, none) = bars(
        bar_chart("t", [Bar("a", 2.0), Bar("b", 4.0, 3.0, 5.0), Bar("c", 0)], "u")
    )
    assert second == pytest.approx(2 * first, abs=0.1) and none == 0


@pytest.mark.parametrize(("largest", "top"), [(3572, "4000"), (82, "100"), (8.82, "10"), (60, "60"), (0.031, "0.032")])
def test_axes_end_at_round_numbers(largest, top):
    labels = re.findall(r'text-anchor="end">([^<]+)<', part("chart", bar_chart("t", [Bar("a", largest)], "u")))
    assert labels == [f"{float(top) * share:g}" for share in (0, 0.25, 0.5, 0.75, 1)]


def test_charts_and_tables_bear_any_text(tmp_path):
    hostile = "</svg><script>alert('x')</script>&"
    charts = [bar_chart(hostile, [Bar(hostile, 1.0, note=hostile)], hostile)]
    charts.append(scatter(hostile, [(1, 2), (0, 0)], hostile))
    settings = [(hostile, "lone \ud800 half")]
    facts = {"steps": [hostile]}
    write_page(
        tmp_path / "a" / "p.html", "preparation.html", title=hostile, facts=facts, figures=settings, charts=charts,
        findings={hostile: [hostile] * 3}, most_shown=2, settings=settings,
    )  # fmt: skip
    text = (tmp_path / "a" / "p.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1 and "lone &#55296; half" in text and "and 1 more" in text
