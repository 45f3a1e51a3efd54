"""Words end where their sound does: pauses that attention counted in are taken off, and nothing leaves its place."""

from __future__ import annotations

import numpy as np
import pytest

from focusasr.transcription.result import Segment, within
from focusasr.transcription.word_edges import with_edges

QUIET, LOUD = -70.0, -20.0


def sound(seconds: float, *loud: tuple[float, float], quiet: float = QUIET) -> np.ndarray:
    """Return the levels of a recording that is loud in these stretches, in seconds."""
    levels = np.full(round(seconds * 100), quiet, np.float32)
    for start, end in loud:
        levels[round(start * 100) : round(end * 100)] = LOUD
    return levels


def segment(*words: tuple[float, float]) -> Segment:
    named = [{"word": f" w{n}", "start": start, "end": end, "probability": 0.5} for n, (start, end) in enumerate(words)]
    return Segment(0, 0, words[0][0], words[-1][1], "", [], 0.0, 0.0, 1.0, 0.0, named)


def times(segments: list[Segment]) -> list[list[tuple[float, float]]]:
    assert all((s.start, s.end) == (s.words[0]["start"], s.words[-1]["end"]) for s in segments if s.words)
    return [[(word["start"], word["end"]) for word in one.words or []] for one in segments]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([(1.0, 1.5), (1.5, 4.0)], [(1.0, 1.5), (1.5, 2.0)]),  # the last word has the pause behind it
        ([(0.2, 1.5), (1.5, 2.0)], [(1.0, 1.5), (1.5, 2.0)]),  # the first word has the pause before it
        ([(1.0, 1.5), (1.5, 5.3)], [(1.0, 1.5), (1.5, 2.0)]),  # and the beginning of what follows
        ([(1.0, 1.5), (1.5, 4.0), (4.0, 4.0)], [(1.0, 1.5), (1.5, 1.75), (1.75, 2.0)]),  # squeezed behind the pause
        ([(1.0, 1.5), (1.5, 1.9)], [(1.0, 1.5), (1.5, 2.0)]),  # too short: on to where the sound ends
        ([(3.0, 3.5), (3.5, 4.0)], [(3.0, 3.5), (3.5, 4.0)]),  # no sound at all: nobody knows
    ],
)
def test_words_end_with_their_sound(given: list, wanted: list) -> None:
    assert times(with_edges([segment(*given)], sound(8.0, (1.0, 2.0), (5.0, 6.0)))) == [wanted]
    later = with_edges([segment(*((start + 90, end + 90) for start, end in given))], sound(8.0, (1, 2), (5, 6)), 90.0)
    assert times(later) == [[(start + 90, end + 90) for start, end in wanted]]


def test_words_do_not_reach_into_the_next_segment() -> None:
    first, second = with_edges([segment((1.0, 1.8)), segment((1.9, 2.5))], sound(4.0, (1.0, 2.5)))
    assert times([first, second]) == [[(1.0, 1.9)], [(1.9, 2.5)]]


def test_short_closures_stay_inside_a_word_and_noise_changes_nothing() -> None:
    levels = sound(4.0, (1.0, 1.2), (1.3, 2.0))
    assert times(with_edges([segment((1.0, 2.0))], levels)) == [[(1.0, 2.0)]]
    noisy = sound(8.0, (1.0, 2.0), quiet=-30.0)
    assert times(with_edges([segment((1.0, 1.5), (1.5, 4.0))], noisy)) == [[(1.0, 1.5), (1.5, 4.0)]]


def test_segments_end_within_their_recording() -> None:
    one = within(segment((1.0, 1.5), (1.5, 4.0)), 3.0)
    assert (one.start, one.end) == (1.0, 3.0) and times([one]) == [[(1.0, 1.5), (1.5, 3.0)]]
