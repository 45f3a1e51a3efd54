"""Bootstrap intervals over utterances or speakers, and paired comparison of two systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


RESAMPLES = 1000
DRAWN_AT_ONCE = 50
INTERVAL_PERCENT = 95.0
FEWEST_SPEAKERS = 20  # with fewer, the interval is too narrow (Cameron, Gelbach and Miller 2008)


@dataclass(frozen=True)
class Interval:
    """A figure and the middle 95 % of its bootstrap samples; no bounds without samples."""

    value: float
    low: float | None
    high: float | None

    def bounds(self, form: Callable[[float], str], between: str = " to ", name: str = "") -> str:
        """Return the bounds as text, in brackets after a space, with a `name` before them; "" without bounds."""
        if self.low is None or self.high is None:
            return ""
        return f" ({name}{form(self.low)}{between}{form(self.high)})"


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances: word error rates, their difference (first minus second), and who is better.

    `probability` is the share of the samples in which the first has the lower rate, None without samples; a sample with
    equal rates counts half. `better`, `worse` and `equal` count utterances, by their number of errors.
    """

    first: float
    second: float
    difference: Interval
    probability: float | None
    better: int
    worse: int
    equal: int


def resampling_unit(wanted: str, speakers: Sequence[object]) -> tuple[str, list[str] | None]:
    """Return the resampling unit, "speaker" or "utterance", and for speakers the speaker of each utterance.

    auto: speakers if every utterance names its speaker and there are at least twenty, since errors of one voice are
    correlated. "speaker" is used if possible: an utterance without a speaker counts as a speaker of its own.
    """
    names = [str(speaker) if speaker not in (None, "") else "" for speaker in speakers]
    known = all(names) and len(set(names)) >= FEWEST_SPEAKERS
    if wanted == "utterance" or not any(names) or (wanted == "auto" and not known):
        return "utterance", None
    return "speaker", [f"speaker {name}" if name else f"utterance {index}" for index, name in enumerate(names)]


def group_totals(counts: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Add up the rows of `counts` (U, K) of each group; return them (G, K), or `counts` without groups."""
    import numpy as np

    if groups is None:
        return counts
    names, places = np.unique(np.array(groups), return_inverse=True)
    totals = np.zeros((len(names), counts.shape[1]), counts.dtype)
    np.add.at(totals, places, counts)
    return totals


def resample_totals(counts: np.ndarray, seed: int) -> np.ndarray:
    """Resample the rows of `counts` (U, K) with replacement, U at a time; return the column sums (RESAMPLES, K).

    A single row is not resampled: (0, K). Equal rows are sampled together, as one multinomial count: the same
    distribution, with memory in proportion to the number of different rows.
    """
    import numpy as np

    if len(counts) == 1:
        return counts[:0]
    kinds, shares = np.unique(counts, axis=0, return_counts=True)
    draw = np.random.default_rng(seed)
    totals = []
    for _ in range(0, RESAMPLES, DRAWN_AT_ONCE):
        totals.append(draw.multinomial(len(counts), shares / len(counts), size=DRAWN_AT_ONCE) @ kinds)
    return np.concatenate(totals)


def percentile_interval(figures: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the bounds of the middle 95 % of the samples; None without samples."""
    import numpy as np

    if not len(figures):
        return None, None
    margin = (100.0 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(figures, [margin, 100.0 - margin])
    return float(low), float(high)


def compare(
    first: Sequence[int], second: Sequence[int], words: Sequence[int], groups: Sequence[str] | None, seed: int = 0
) -> Comparison:
    """Compare two systems by their word errors on the same U utterances, with paired samples.

    This is the paired bootstrap of Bisani and Ney (2004), section 4: an utterance that is hard for both is little
    evidence for either, and pairs keep it out of the spread. ValueError if there are no utterances.
    """
    import numpy as np

    counts = np.column_stack([first, second, words]).astype(np.int64)
    if not len(counts):
        raise ValueError("no utterances to compare; expected: at least 1")
    drawn, totals = resample_totals(group_totals(counts, groups), seed), counts.sum(axis=0)
    if totals[2]:
        drawn = drawn[drawn[:, 2] > 0]  # a sample without a word has no rate
    low, high = percentile_interval((drawn[:, 0] - drawn[:, 1]) / np.maximum(drawn[:, 2], 1))
    rates = totals[:2] / max(int(totals[2]), 1)
    fewer = np.sign(drawn[:, 1] - drawn[:, 0])
    signs = np.sign(counts[:, 1] - counts[:, 0])
    return Comparison(
        first=float(rates[0]),
        second=float(rates[1]),
        difference=Interval(float(rates[0] - rates[1]), low, high),
        probability=float((1 + fewer).mean() / 2) if len(fewer) else None,
        better=int((signs > 0).sum()),
        worse=int((signs < 0).sum()),
        equal=int((signs == 0).sum()),
    )
