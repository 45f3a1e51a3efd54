"""Corpora of tones become 16 kHz mono files and manifests: again, in part, interrupted, with broken files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.config import PreprocessConfig
from focusasr.data import preprocess as room
from focusasr.data.corpus_readers import READERS
from focusasr.data.manifest import read_manifest
from focusasr.data.preprocess import preprocess
from focusasr.data.preprocess_report import RESULTS
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import _host, sweep


def tone(path: Path, seconds: float = 0.5, rate_hz: int = 16_000, hz: float = 440.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate_hz)
    return path


def corpus(folder: Path, count: int = 3) -> Path:
    """Make tones in two folders, with sidecars."""
    for number in range(count):
        path = tone(folder / f"part{number % 2}" / f"tone{number}.wav", hz=200 + 100 * number)
        path.with_suffix(".txt").write_text(f"tone number {number}")
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def peak_hz(path: Path) -> float:
    wave, rate_hz = soundfile.read(path)
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * rate_hz / len(wave))


def test_a_folder_becomes_files_and_a_manifest_in_source_order(tmp_path):
    steps = []
    report = preprocess([corpus(tmp_path / "in")], tmp_path / "out", progress=lambda *step: steps.append(step))
    assert (report.kept, report.reused, report.rejects, report.failures) == (3, 0, {}, 0)
    assert report.seconds == pytest.approx(1.5)
    manifest = rows(tmp_path / "out" / "manifest.jsonl")
    assert [(row["audio_filepath"], row["text"], row["duration"]) for row in manifest] == [
        ("audio/part0/tone0.flac", "tone number 0", 0.5),
        ("audio/part0/tone2.flac", "tone number 2", 0.5),
        ("audio/part1/tone1.flac", "tone number 1", 0.5),
    ]
    expected = {row["audio_filepath"] for row in manifest} | {*RESULTS, ".preprocess.jsonl", ".prepared.jsonl"} - {
        "report.html"
    }
    assert files_below(tmp_path / "out") == expected
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("container", ["flac", "wav"])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, container):
    path = tone(tmp_path / "in" / "a.wav", seconds=1.0, rate_hz=44_100, channels=2, hz=1000)
    path.with_suffix(".txt").write_text("a")
    report = preprocess([tmp_path / "in"], tmp_path / "out", PreprocessConfig(format=container))
    (utterance,) = read_manifest(report.manifest)
    details = soundfile.info(utterance.audio)
    assert (details.samplerate, details.channels, details.subtype) == (16_000, 1, "PCM_16")
    assert details.format == container.upper() and utterance.audio.suffix == f".{container}"
    assert details.frames == round(utterance.duration * 16_000) and abs(details.frames - 16_000) <= 1
    assert abs(peak_hz(utterance.audio) - 1000) < 2


def test_16_bit_sound_comes_back_bit_for_bit_and_loud_sound_is_clipped(tmp_path):
    (tmp_path / "in").mkdir()
    exact = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    soundfile.write(tmp_path / "in" / "exact.wav", exact, 16_000)
    soundfile.write(tmp_path / "in" / "loud.wav", np.tile([1.5, -1.5], 2000), 16_000, subtype="FLOAT")
    for name in ("exact", "loud"):
        (tmp_path / "in" / f"{name}.txt").write_text(name)
    preprocess([tmp_path / "in"], tmp_path / "out")
    assert np.array_equal(soundfile.read(tmp_path / "out" / "audio" / "exact.flac", dtype="int16")[0], exact)
    loud = soundfile.read(tmp_path / "out" / "audio" / "loud.flac", dtype="int16")[0]
    assert set(loud.tolist()) == {32767, -32768}


def test_parts_of_a_recording_get_files_of_their_own(tmp_path):
    low, high = (np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000) * 0.5 for hz in (300, 900))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.wav", np.concatenate([low, high]), 16_000)
    both = {"audio_filepath": "long.wav", "duration": 1.0, "mood": "calm"}
    lines = [json.dumps({**both, "text": text, "offset": offset}) for text, offset in (("low", 0), ("high", 1))]
    (tmp_path / "in" / "m.jsonl").write_text("\n".join(lines))
    report = preprocess([tmp_path / "in" / "m.jsonl"], tmp_path / "out")
    manifest = rows(report.manifest)
    assert [row["audio_filepath"] for row in manifest] == ["audio/long.flac", "audio/long_1000-2000.flac"]
    assert all("offset" not in row and row["duration"] == 1.0 and row["mood"] == "calm" for row in manifest)
    assert [round(peak_hz(tmp_path / "out" / row["audio_filepath"])) for row in manifest] == [300, 900]


def test_names_never_collide(tmp_path):
    folder = tmp_path / "in"
    for name in ("a.wav", "a.flac", "A.wav", "a-2.wav"):
        tone(folder / name)
    table = folder / "t.csv"
    parts = ["a.wav,one,0.3", "a.flac,two,0.5", "A.wav,three,0.5", "a-2.wav,four,0.5", "a.wav,other text,0.5"]
    table.write_text("\n".join(["path,text,start,end", *(row.replace(",0.", ",0,0.") for row in parts)]))
    report = preprocess([table], tmp_path / "out")
    names = [row["audio_filepath"].lower() for row in rows(report.manifest)]
    assert len(set(names)) == 5 == len([path for path in files_below(tmp_path / "out") if path.startswith("audio/")])


def test_two_corpora_of_the_same_names(tmp_path):
    first, second = corpus(tmp_path / "first"), corpus(tmp_path / "second")
    report = preprocess([first, second], tmp_path / "out")
    assert report.kept == 6 and len({row["audio_filepath"] for row in rows(report.manifest)}) == 6


def test_one_bad_file_stops_no_other(tmp_path):
    folder = corpus(tmp_path / "in", 2)
    (folder / "noise.wav").write_bytes(b"this is no audio at all" * 50)
    (folder / "empty.wav").touch()
    tone(folder / "short.wav", seconds=0.05)
    tone(folder / "long.wav", seconds=3.0)
    tone(folder / "silent.wav").with_suffix(".txt").write_text(" \n")
    for name in ("noise", "empty", "short", "long"):
        (folder / f"{name}.txt").write_text(f"the text of {name}")
    tone(folder / "lonely.wav")
    report = preprocess([folder], tmp_path / "out", PreprocessConfig(max_seconds=2.0))
    assert report.kept == 2 and report.failures
    expected = {"unreadable": 2, "too short": 1, "too long": 1, "empty text": 1, "no text": 1}
    assert report.rejects == expected
    rejects = {Path(row["audio_filepath"]).stem: row for row in rows(report.rejects_file)}
    assert rejects["noise"]["kind"] == "unreadable" and rejects["noise"]["text"] == "the text of noise"
    assert "noise.wav" in rejects["noise"]["reason"] and "\n" not in rejects["noise"]["reason"]
    assert "0.050 s" in rejects["short"]["reason"]
    summary = report.summary()
    assert all(f"{count} {kind}" in summary for kind, count in expected.items())
    assert {path for path in files_below(tmp_path / "out") if path.startswith("audio/")} == {
        "audio/part0/tone0.flac",
        "audio/part1/tone1.flac",
    }


def test_missing_files_fail_and_wrong_lengths_do_not(tmp_path):
    tone(tmp_path / "a.wav", seconds=0.05)
    (tmp_path / "t.csv").write_text("path,text\na.wav,one\n")
    assert not preprocess([tmp_path / "t.csv"], tmp_path / "out").failures
    (tmp_path / "t.csv").write_text("path,text\na.wav,one\nmissing.wav,two\n")
    report = preprocess([tmp_path / "t.csv"], tmp_path / "out")
    assert report.failures and report.rejects == {"too short": 1, "missing": 1}
    missing = next(row for row in rows(report.rejects_file) if row["kind"] == "missing")
    assert "missing.wav" in missing["reason"] and "t.csv, line 3" in missing["reason"]


def test_names_that_no_file_can_have_are_missing(tmp_path):
    (tmp_path / "t.csv").write_text(f"path,text\n{'x' * 5000},one\n{'y/' * 3000}.wav,two\n.,three\n")
    report = preprocess([tmp_path / "t.csv"], tmp_path / "out")
    assert report.kept == 0 and report.failures and report.rejects == {"missing": 2, "unreadable": 1}


def test_long_names_are_shortened_and_told_apart(tmp_path):
    for number in range(2):
        tone(tmp_path / "in" / f"{'語' * 80}{number}.wav").with_suffix(".txt").write_text(str(number))
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    assert [row["text"] for row in rows(report.manifest)] == ["0", "1"]
    assert len({utterance.audio for utterance in read_manifest(report.manifest) if utterance.audio.is_file()}) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_names_that_are_not_utf_8_stop_nobody(tmp_path):
    for number, name in enumerate(("M\udcfcller", "\udcfc", "plain")):  # Latin-1's ü
        path = tone(tmp_path / "in" / f"{number}.wav").rename(tmp_path / "in" / f"{name}.wav")
        path.with_suffix(".txt").write_text(str(number))
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    heard = [utterance.text for utterance in read_manifest(report.manifest) if utterance.audio.is_file()]
    assert sorted(heard) == ["0", "1", "2"]
    assert preprocess([tmp_path / "in"], tmp_path / "out").reused == 3
    (tmp_path / "in").rename(tmp_path / "sp\udcfc")
    report = preprocess([tmp_path / "sp\udcfc", tmp_path / "sp\udcfc" / "plain.wav"], tmp_path / "\udcfc")
    assert report.kept == 3 and all(utterance.audio.is_file() for utterance in read_manifest(report.manifest))


def test_folders_that_are_not_utf_8_stop_nobody(tmp_path):
    tone(tmp_path / "in" / "x" / "a.wav").with_suffix(".txt").write_text("a")
    (tmp_path / "in" / "x").rename(tmp_path / "in" / "M\udcfcller")
    tone(tmp_path / "in" / "b.wav").with_suffix(".txt").write_text("b")
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    assert [row["audio_filepath"] for row in rows(report.manifest)] == ["audio/M_ller/a.flac", "audio/b.flac"]


def test_an_output_folder_named_through_a_link_is_no_input(tmp_path):
    corpus(tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for _ in range(2):
        report = preprocess([tmp_path / "link"], tmp_path / "link" / "out")
        assert (report.kept, report.rejects) == (3, {})


def converted(monkeypatch) -> list[str]:
    """Record which files are really converted."""
    names: list[str] = []
    real = room._write_sound
    monkeypatch.setattr(room, "_write_sound", lambda job, *rest: (names.append(job.output.stem), real(job, *rest))[1])
    return names


def test_again_does_only_what_is_new_changed_or_gone(tmp_path, monkeypatch):
    folder = corpus(tmp_path / "in", 4)
    first = preprocess([folder], tmp_path / "out")
    before = first.manifest.read_bytes()
    names = converted(monkeypatch)
    again = preprocess([folder], tmp_path / "out")
    assert (again.kept, again.reused, names) == (4, 4, []) and again.manifest.read_bytes() == before

    tone(folder / "part0" / "tone0.wav", seconds=0.7)
    tone(folder / "part1" / "new.wav").with_suffix(".txt").write_text("new")
    (folder / "part0" / "tone2.txt").write_text("another text needs no work")
    (tmp_path / "out" / "audio" / "part1" / "tone3.flac").unlink()
    (tmp_path / "out" / "audio" / "part1" / "tone1.flac").write_bytes(b"cut")
    third = preprocess([folder], tmp_path / "out")
    assert sorted(names) == ["new", "tone0", "tone1", "tone3"] and (third.kept, third.reused) == (5, 1)
    durations = {Path(row["audio_filepath"]).stem: row["duration"] for row in rows(third.manifest)}
    assert durations["tone0"] == 0.7 and durations["tone1"] == 0.5
    assert "another text needs no work" in third.manifest.read_text()


def test_new_limits_judge_finished_files_without_work(tmp_path, monkeypatch):
    folder = corpus(tmp_path / "in")
    preprocess([folder], tmp_path / "out")
    names = converted(monkeypatch)
    report = preprocess([folder], tmp_path / "out", PreprocessConfig(min_seconds=1.0))
    assert report.rejects == {"too short": 3} and report.kept == report.reused == 0 and not names
    assert preprocess([folder], tmp_path / "out").reused == 3


def test_a_journal_that_was_cut_off_costs_one_file(tmp_path):
    folder = corpus(tmp_path / "in", 4)
    preprocess([folder], tmp_path / "out")
    journal = tmp_path / "out" / ".preprocess.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert preprocess([folder], tmp_path / "out").reused == 3
    assert preprocess([folder], tmp_path / "out").reused == 4


def test_a_stopped_run_keeps_whole_files_and_is_taken_up(tmp_path):
    folder = corpus(tmp_path / "in", 40)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess([folder], tmp_path / "out", PreprocessConfig(workers=2), stop)
    there = files_below(tmp_path / "out")
    assert "manifest.jsonl" not in there and not [name for name in there if name.endswith(".part")]
    done = [name for name in there if name.startswith("audio/")]
    assert 5 <= len(done) < 40
    report = preprocess([folder], tmp_path / "out")
    assert (report.kept, report.reused) == (40, len(done))


SLOW_RUN = """
import signal, sys, time
from focusasr.data import preprocess as room
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
real = room._to_int16
room._to_int16 = lambda wave: (time.sleep(0.1), real(wave))[1]
room.preprocess([sys.argv[1]], sys.argv[2], room.PreprocessConfig(workers=2), lambda *step: print(*step, flush=True))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_can_be_taken_up(tmp_path, signal_number):
    folder = corpus(tmp_path / "in", 30)
    command = [sys.executable, "-c", SLOW_RUN, str(folder), str(tmp_path / "out")]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=Path(room.__file__).parents[2], **quiet)
    assert process.stdout is not None
    while int(process.stdout.readline().split()[0]) < 3:
        pass
    os.kill(process.pid, signal_number)
    assert process.wait(timeout=20) != 0
    partial = [name for name in files_below(tmp_path / "out") if name.endswith(".part")]
    assert signal_number == signal.SIGKILL or not partial
    report = preprocess([folder], tmp_path / "out")
    assert report.kept == 30 and 0 < report.reused < 30
    assert not [name for name in files_below(tmp_path / "out") if name.endswith(".part")]


def test_what_a_killed_sister_left_goes_where_nothing_is_left_to_do(tmp_path):
    folder = corpus(tmp_path / "in", 2)
    preprocess([folder], tmp_path / "out")
    place = tmp_path / "out" / "audio" / "part0"
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    names = [f".a.{_host()}-{pid}-{int(time.time())}-01234567.part" for pid in (child.pid, os.getpid())]
    for name in names:
        (place / name).write_text("half")
    sweep.cache_clear()  # as in a new process
    assert preprocess([folder], tmp_path / "out").reused == 2
    assert [path.name for path in place.glob(".*")] == names[1:]


def test_files_in_work_are_bounded(tmp_path, monkeypatch):
    seen = []
    real = room._Run._settle_finished

    def watched(run: room._Run, progress: room.Progress) -> None:
        seen.append(len(run.running))
        real(run, progress)

    monkeypatch.setattr(room._Run, "_settle_finished", watched)
    preprocess([corpus(tmp_path / "in", 40)], tmp_path / "out", PreprocessConfig(workers=2))
    assert max(seen) == 2 * room.IN_FLIGHT_PER_WORKER


def test_splits_of_the_source_stay_apart(tmp_path):
    for split in ("train", "test"):
        tone(tmp_path / "in" / f"{split}.wav")
        line = json.dumps({"audio_filepath": f"{split}.wav", "text": split})
        (tmp_path / "in" / f"{split}.jsonl").write_text(line)
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    assert report.splits == {"test": 1, "train": 1}
    assert [row["text"] for row in rows(report.manifest)] == ["test", "train"]
    assert [row["text"] for row in rows(tmp_path / "out" / "train.jsonl")] == ["train"]
    again = preprocess([tmp_path / "out"], tmp_path / "twice")
    assert again.splits == report.splits


def test_results_never_overwrite_what_they_are_made_from(tmp_path):
    folder = corpus(tmp_path / "in")
    preprocess([folder], tmp_path / "out")
    for given in (tmp_path / "out", tmp_path / "out" / "manifest.jsonl"):
        with pytest.raises(InputError, match="hoose another --output-dir"):
            preprocess([given], tmp_path / "out")
    with pytest.raises(InputError, match="hoose another --output-dir"):
        preprocess([folder], folder)
    tone(tmp_path / "mine" / "audio" / "a.flac")
    (tmp_path / "mine" / "audio" / "t.csv").write_text("path,text\na.flac,one\n")
    with pytest.raises(InputError, match=r"a\.flac"):
        preprocess([tmp_path / "mine" / "audio" / "t.csv"], tmp_path / "mine")


def test_output_folder_inside_the_input_is_no_input(tmp_path):
    folder = corpus(tmp_path / "in")
    first = preprocess([folder], folder / "ready")
    again = preprocess([folder], folder / "ready")
    assert (again.kept, again.reused, again.rejects) == (first.kept, 3, {})


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(InputError, match="--output-dir") as refusal:
        preprocess([corpus(tmp_path / "in")], tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_every_layout_can_be_asked_for():
    assert {PreprocessConfig(layout=layout).layout for layout in READERS} == set(READERS)
    assert typing.get_type_hints(PreprocessConfig)["layout"] == typing.Literal[("auto", *READERS)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("layout", "kaldi?"), ("format", "mp3"), ("min_seconds", -1.0), ("max_seconds", 0.01), ("workers", -1)],
)
def test_wrong_settings_are_named(setting, value):
    with pytest.raises(InputError, match=setting):
        PreprocessConfig(**{setting: value})


@pytest.mark.real
def test_real_corpora_of_every_kind(real_data, tmp_path):
    for manifest in sorted(real_data.glob("*/test.jsonl")):
        few = manifest.read_text(encoding="utf-8").splitlines()[:3]
        lines = [json.loads(line) for line in few]
        for line in lines:
            line["audio_filepath"] = str(manifest.parent / line["audio_filepath"])
        copy = tmp_path / f"{manifest.parent.name}.jsonl"
        copy.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
        report = preprocess([copy], tmp_path / manifest.parent.name)
        assert report.kept == len(lines) and not report.rejects
        for line, row in zip(lines, rows(report.manifest), strict=True):
            assert row["duration"] == pytest.approx(line["duration"], abs=0.001) and row["text"] == line["text"]
            assert row["speaker"] == line["speaker"]
