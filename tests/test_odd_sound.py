"""Odd sound is heard where it is sound and told in one line where it is none; hours of silence fit the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from broken_sound import Case, packed, tone
from guard import guarded
from odd_sound import fine_sound, no_sound, write_silence
from test_broken_sound import HEAR, checked

from focusasr.audio import Source, load


@pytest.mark.parametrize("made", [fine_sound, no_sound])
def test_odd_sound_is_heard_and_what_is_none_refused(tmp_path: Path, made) -> None:
    cases: list[Case] = list(made())
    endings = checked(cases, tmp_path)
    print(f"{made.__name__}: {len(cases)} inputs")
    assert len({(case.suffix, case.data) for case in cases}) > 0.9 * len(cases)
    wrong = [
        (case[:3], e) for case, e in zip(cases, endings, strict=True) if (e.refused is None) != (made is fine_sound)
    ]
    assert not wrong


def test_hours_of_silence_fit_the_memory(tmp_path: Path) -> None:
    paths = [tmp_path / "a.flac", tmp_path / "b.flac"]
    write_silence(paths[0], 1.0, 16_000)
    write_silence(paths[1], 2.0, 1_000)
    assert sum(path.stat().st_size for path in paths) < 10**6
    endings = guarded(HEAR, paths, seconds=60, megabytes=256)
    assert [ending.gave for ending in endings] == [3600, 7200]
    assert endings[-1].peak_megabytes < 60  # the second alone is 461 MB of samples


def test_sound_that_cannot_be_sought_is_read_to_its_place(tmp_path: Path) -> None:
    path = tmp_path / "telephone.wav"
    path.write_bytes(packed(tone(), "WAV", "GSM610"))  # libsndfile cannot seek in it
    whole = load(path)
    assert len(whole) == 19_200
    assert np.array_equal(load(Source(str(path), 0.5, 0.25)), whole[8000:12_000])
