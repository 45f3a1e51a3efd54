"""The benchmark's own parts: turns and medians, processes measured, names of weights, the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import speed as benchmark  # noqa: E402
from speed import Cell, draw, interleaved, process, show  # noqa: E402


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    figures = {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([100.0, 6.0, 5.0, 4.0])}

    def task(name: str) -> dict[str, float]:
        calls.append(name)
        return {"s": next(figures[name])}

    cells = interleaved(3, {"a": lambda: task("a"), "b": lambda: task("b")})
    assert calls == ["a", "b"] * 4
    assert cells == [Cell("a", "s", 2.0), Cell("b", "s", 5.0)]


def test_a_process_is_charged_its_own_memory() -> None:
    """Linux counts whoever forks as the child's peak; this process, which holds torch, must not show."""
    held = b"x" * 300_000_000
    small, large = process(["-S", "-c", "pass"]), process(["-S", "-c", "x = b'x' * 200_000_000"])
    assert len(held) > 1e6 * small["peak, MB"]
    assert 150 < large["peak, MB"] - small["peak, MB"] < 250
    assert process(["-S", "-c", "import time; time.sleep(0.3)"])["start to text, s"] >= 0.3
    with pytest.raises(SystemExit, match="failed with status 3"):
        process(["-S", "-c", "raise SystemExit(3)"])


def test_table_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cells = [Cell("focusasr", "whole call, s (1)", 2.0), Cell("other", "whole call, s (1)", 3.0)]
    show("title", cells, benchmark.OURS)
    shown = capsys.readouterr().out
    assert "2 (1.00)" in shown and "3 (1.50)" in shown
    draw({"shared": cells}, tmp_path / "figures" / "picture.png")
    picture = (tmp_path / "figures" / "picture.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000
