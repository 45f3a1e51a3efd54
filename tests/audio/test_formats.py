"""Odd sound is heard where it is sound and told in one line where it is none; hours of silence fit the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import load
from focusasr.audio.source import Source
from tests.audio.test_integrity import HEAR, checked
from tests.helpers.broken_sound import Case, packed, tone
from tests.helpers.odd_sound import fine_sound, no_sound, write_silence
from tests.helpers.sandbox import guarded


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


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", None), ("OGG", "OPUS"), ("MP3", None)])
def test_joined_files_are_heard_whole(tmp_path: Path, kind: str, subtype: str | None) -> None:
    one, other = (packed(wave, kind, subtype, 16_000) for wave in (tone(2.0, 16_000), -tone(6.0, 16_000)[::2]))
    tag = b"ID3\x03\0\0\0\0\x07\x68" + bytes(range(1, 251)) * 4 if kind == "MP3" else b""
    (tmp_path / "a").write_bytes(one + tag + other + (bytes(4000) if kind == "MP3" else b""))
    waveform = load(tmp_path / "a")
    assert len(waveform) / 16_000 == pytest.approx(5.0, abs=0.2)
    strongest = [np.abs(np.fft.rfft(part)).argmax() / 1.5 for part in (waveform[:24_000], waveform[-32_000:-8_000])]
    assert strongest == pytest.approx([440, 880], abs=3)


def test_no_part_behind_damage_is_taken_from_another_place(tmp_path: Path) -> None:
    damaged = bytearray(packed(np.random.default_rng(0).uniform(-0.5, 0.5, 160_000), "MP3", None, 16_000))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4000] = bytes(range(250)) * 16
    (tmp_path / "a").write_bytes(damaged)
    assert len(load(Source(str(tmp_path / "a"), 2.0, 1.0))) == 16_000
    with pytest.raises(CutOff, match=r"stops decoding after 5\.\d s"):
        load(Source(str(tmp_path / "a"), 7.0, 1.0))
