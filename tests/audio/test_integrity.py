"""Broken sound is refused in one line that names it, or heard; never with a traceback, a hang or without bounds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from focusasr.audio.integrity import AudioError
from focusasr.audio.load import load, stream
from focusasr.audio.source import Source
from tests.helpers import broken_sound
from tests.helpers.broken_sound import OGG_PAGE, Case, bent, corpus, fields, packed, tone, whole, write_corpus
from tests.helpers.sandbox import Ending, guarded

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
    assert message.startswith(f"{name}: ") and len(message.splitlines()) == 1, repr(message)
    assert ";" in message or "expected: " in message, message


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
    (ending,) = guarded("sandbox:hoard", ["anything"], megabytes=64)
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


def test_samples_without_a_header_are_taken_for_nothing_else(tmp_path: Path) -> None:
    for width in ("u1", "<i2", "<f4"):
        samples = np.rint(100 * tone()).astype(width) if width != "<f4" else tone()
        for channels in (1, 2):  # FFmpeg knows a format of such twins, which has no header either
            (tmp_path / "bare").write_bytes(np.repeat(samples, channels).tobytes())
            with pytest.raises(AudioError, match=r"not a recording .* need a header first, as of 'ffmpeg -f s16le"):
                load(tmp_path / "bare")


def test_a_part_before_the_place_where_a_file_is_cut(tmp_path: Path) -> None:
    for suffix in (".wav", ".flac", ".ogg"):
        path, data = tmp_path / f"a{suffix}", whole(6.0)[suffix]
        path.write_bytes(data)
        part = load(Source(str(path), 0.5, 1.0))
        path.write_bytes(data[: len(data) // 2])
        assert np.array_equal(load(Source(str(path), 0.5, 1.0)), part)
    path.with_name("a.wav").write_bytes(whole(6.0)[".wav"][:50_000])
    with pytest.raises(AudioError, match=r"cut off before 5\.00 s"):
        load(Source(str(path.with_name("a.wav")), 5.0))


@pytest.mark.parametrize(("suffix", "said"), [(".flac", r"stops decoding after 2\.\d s"), (".ogg", "damaged at byte")])
def test_what_comes_before_damage_is_given(tmp_path: Path, suffix: str, said: str) -> None:
    """libsndfile's FLAC decoder cannot seek once it has failed; of an Ogg file what comes behind is given too."""
    path, data = tmp_path / f"a{suffix}", whole(6.0)[suffix]
    path.write_bytes(data)
    sound, errors = load(path), list[Exception]()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(200) + data[half + 200 :])
    given = np.concatenate(list(stream(path, cut_off=errors.append)))
    assert len(given) > 2 * 16_000 and np.allclose(given[:32_000], sound[:32_000], atol=1e-4)
    (error,) = errors
    assert re.search(said, str(error))
    with pytest.raises(AudioError, match=said):
        load(path)


# The command line


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".ogg", ".mp3"])
def test_what_is_cut_off_is_heard_up_to_there_and_told(run, sample: Path, heard: str, suffix: str) -> None:
    waveform = load(sample)
    data = packed(np.concatenate([waveform, waveform * 0, waveform]), suffix[1:].upper())
    cut, whole = Path(f"cut{suffix}"), Path("whole.flac")
    cut.write_bytes(data[: round(0.6 * len(data))])
    whole.write_bytes(sample.read_bytes())
    said = rf"focusasr: {cut}: stops decoding after [5-9]\.\d s, cut off or damaged; get a whole copy"
    alone, both = run("transcribe", cut), run("transcribe", cut, whole)
    assert alone.status == both.status == 1 and "a r a h four" in alone.out
    assert both.out.splitlines() == [f"{cut}\t{alone.out.strip()}", f"{whole}\t{heard}"]
    assert re.fullmatch(rf"{said}\n", alone.err)
    assert re.fullmatch(rf"{said}\nfocusasr: 1 of 2 files failed\n", both.err)
    for _ in range(2):  # it never counts as done
        written = run("transcribe", cut, "-o", "out", "-f", "txt", "--skip-existing")
        assert written.status == 1 and re.fullmatch(rf"{said}\n", written.err)
    assert Path("out/cut.txt").read_text().split() == alone.out.split()
    Path("m.jsonl").write_text(json.dumps({"audio_filepath": str(cut), "text": alone.out.strip()}) + "\n")
    for _ in range(2):  # what is missing is in no rate, nor is it remembered
        scored = run("evaluate", "m.jsonl", "--json", "--output", "rows.jsonl")
        assert (scored.status, json.loads(scored.out)["failed"], json.loads(scored.out)["wer"]) == (1, 1, None)


def test_debug_shows_the_traceback_of_a_file_that_failed(sample: Path) -> None:
    Path("a.wav").write_bytes(b"no sound" * 100)
    for more in ((), ("--debug",)):
        command = [sys.executable, "-m", "focusasr", "transcribe", "a.wav", str(sample), *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout.count("\n") == 1
        lines = [line for line in done.stderr.splitlines() if "a.wav" in line or "Traceback" in line]
        assert len(lines) == (3 if more else 1) and lines[-1].startswith("focusasr: a.wav: not a recording")
        assert ("in _open_ffmpeg" in done.stderr) == bool(more)


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
    texts = [line.split("\t") for line in result.out.splitlines()]
    assert [pair for pair in texts if pair[1]] == [[Source(str(path)).name, heard] for path in good]
    assert {name for name, text in texts if not text} <= {Source(str(path)).name for path in bad}  # of the cut ones
    lines = result.err.splitlines()
    assert len(lines) == len(bad) + 1 > 20 and lines[-1] == f"focusasr: {len(bad)} of {len(mixed)} files failed"
    for path, line in zip(bad, lines[:-1], strict=True):
        check_line(line.removeprefix("focusasr: "), Source(str(path)).name)
