"""Broken sound is refused in one line that names it, or heard; never with a traceback, a hang or without bounds."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import broken_sound
import pytest
from broken_sound import OGG_PAGE, Case, bent, corpus, fields, packed, tone, whole, write_corpus
from guard import Ending, guarded

from focusasr.audio import AudioError, Source, load

HEAR = "broken_sound:hear"
LONGEST_SECONDS = 25.0  # 1.2 s whose header says 1000 Hz, and some more where a header multiplies packets


def checked(cases: list[Case], folder: Path) -> list[Ending]:
    """Read the cases in a process of its own; return how each ended, having checked that it ended well."""
    paths = write_corpus(folder, cases)
    endings = guarded(HEAR, paths)
    for case, path, ending in zip(cases, paths, endings, strict=True):
        assert ending.broke is None, f"{case[:3]}: {ending.broke}"
        if ending.refused is not None:
            check_line(ending.refused, str(path))
        else:
            assert ending.gave <= LONGEST_SECONDS, case[:3]
    return endings


def check_line(message: str, name: str) -> None:
    """Check that a refusal is one line that can be printed, begins with the name and ends with a remedy."""
    assert message.startswith(f"{name}: ") and message.isprintable(), repr(message)
    assert ";" in message or "wanted: " in message, message


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Ending]]:
    cases = corpus()
    return list(zip(cases, checked(cases, tmp_path_factory.mktemp("corpus")), strict=True))


def test_the_corpus_is_large_and_the_same_each_time(read: list[tuple[Case, Ending]]) -> None:
    assert [case for case, _ in read] == corpus()
    assert len({(case.suffix, case.data) for case, _ in read}) == len(read) >= 300


def test_every_kind_of_damage_is_found_or_harmless(read: list[tuple[Case, Ending]]) -> None:
    refused = Counter(case.kind for case, ending in read if ending.refused is not None)
    heard = Counter(case.kind for case, ending in read if ending.gave is not None)
    print(f"{len(read)} inputs: {refused.total()} refused, {heard.total()} heard")
    for kind in sorted(refused | heard):
        print(f"{kind}: {refused[kind]} refused, {heard[kind]} heard")
    assert heard.total() and refused.total()
    assert refused.keys() >= {"cut", "junk", "no sound track", "header: WAV", "header: FLAC frame", "header: MP4 boxes"}
    assert not refused["wrong extension"] and not refused["header: ID3"]


def test_what_is_cut_off_is_refused_or_lacks_little(read: list[tuple[Case, Ending]]) -> None:
    short = [(case.what, ending.gave) for case, ending in read if case.kind == "cut" and ending.gave is not None]
    assert all(seconds > 1.2 - 0.5 for _, seconds in short), short


def test_no_reading_is_slow_or_large(read: list[tuple[Case, Ending]]) -> None:
    assert max(ending.seconds for _, ending in read) < 5
    assert read[-1][1].peak_megabytes < 150


# The guard itself


def test_a_hang_fails_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AssertionError, match="pipe' hung or killed its reader"):
        guarded("builtins:open", [tmp_path / "pipe"], seconds=0.3)


def test_memory_without_bounds_fails() -> None:
    (ending,) = guarded("guard:hoard", ["anything"], megabytes=64)
    assert ending.broke is not None and "MemoryError" in ending.broke


# Found by bending


def test_a_damaged_page_of_an_ogg_is_not_passed_over(tmp_path: Path) -> None:
    data = whole()[".ogg"]
    (tmp_path / "a.ogg").write_bytes(data[:4000] + bytes(10) + data[4010:])
    with pytest.raises(AudioError, match=r"damaged at byte 3446, .* get a whole copy"):
        load(tmp_path / "a.ogg")


def test_an_opus_whose_last_page_has_a_wrong_number(tmp_path: Path) -> None:
    data = broken_sound.with_serial(packed(tone(0.3), "OGG", "OPUS"))
    number = next(field for field in fields(OGG_PAGE, data.rindex(b"OggS"), little=True) if field.name == "number")
    (tmp_path / "a.opus").write_bytes(bent(data, number, 0))  # libsndfile then seeks to 6148914691236517101
    with pytest.raises(AudioError, match=r"stops decoding after 0\.0 s"):
        load(Source(str(tmp_path / "a.opus"), 0.1))
    assert len(load(tmp_path / "a.opus")) == pytest.approx(4800, abs=100)


def test_an_mp4_cut_before_the_places_of_its_sound(tmp_path: Path) -> None:
    data = whole()[".m4a"]
    (tmp_path / "a.m4a").write_bytes(data[: data.index(b"stco") + 4])
    with pytest.raises(AudioError, match=r"stops decoding after 0\.0 s"):
        load(tmp_path / "a.m4a")


def test_a_flac_behind_an_id3_tag_that_is_cut_off(tmp_path: Path) -> None:
    data = broken_sound.ID3_TAG + packed(tone(3.0), "FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    assert len(load(path)) == 48_000
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match="stops decoding after"):
        load(path)


# The command line


def test_good_files_between_bad_ones_are_transcribed(read, tmp_path: Path, run, sample: Path, heard: str) -> None:
    one_of_a_kind = {case.kind: case for case, ending in read if ending.refused is not None}
    names = ("gone.wav", "two\nlines.wav", "pipe.wav", os.fsdecode(b"\xff.wav"), "not a number.wav")
    bad = [*write_corpus(tmp_path, list(one_of_a_kind.values())), *(tmp_path / name for name in names)]
    for path in (bad[-4], bad[-2]):
        path.write_bytes(b"no sound")
    os.mkfifo(bad[-3])
    bad[-1].write_bytes(packed(tone() * float("nan"), subtype="FLOAT"))
    good = [tmp_path / name for name in ("first.flac", "🙂\n.flac", os.fsdecode(b"\xfe.flac"))]
    for path in good:
        path.write_bytes(sample.read_bytes())
    mixed = [good[0], *bad[:10], good[1], *bad[10:], good[2]]
    result = run("transcribe", *mixed)
    assert result.status == 1
    assert result.out.splitlines() == [f"{Source(str(path)).name}\t{heard}" for path in good]
    lines = result.err.splitlines()
    assert len(lines) == len(bad) + 1 > 20 and lines[-1] == f"focusasr: {len(bad)} of {len(mixed)} files failed"
    for path, line in zip(bad, lines[:-1], strict=True):
        check_line(line.removeprefix("focusasr: "), Source(str(path)).name)
