"""Steps, checks and splits of preprocess: each fault is made and found, each step heard, no group torn apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.audio.integrity import AudioError
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.cli.html import write_preparation_page
from focusasr.config import PreprocessConfig
from focusasr.data.corpus import CorpusUtterance
from focusasr.data.loudness import LevelMeter, LevelStats, gain_for, integrated_loudness, to_int16, trimmed
from focusasr.data.manifest import Utterance
from focusasr.data.preprocess import preprocess
from focusasr.data.quality import KINDS, PreparedUtterance, check
from focusasr.data.splits import divide, parse_shares
from focusasr.runtime.errors import InputError

RATE_HZ = 16_000


def tone(seconds: float, level: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def write(folder: Path, **sounds: np.ndarray) -> Path:
    """Write each as NAME.wav with a sidecar that says its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave in sounds.items():
        soundfile.write(folder / f"{name}.wav", wave, RATE_HZ, "FLOAT")
        (folder / f"{name}.txt").write_text(f"text of {name}")
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Steps


@pytest.mark.parametrize(("level", "expected"), [(1.0, -3.0), (0.1, -23.0), (0.001, -63.0)])
def test_loudness_of_a_1_khz_tone_is_the_standards(level, expected):
    """BS.1770: a 997 Hz tone at full scale on one channel has -3.01 LUFS; EBU Tech 3341 allows 0.1."""
    assert integrated_loudness(tone(3.0, level, 997)) == pytest.approx(expected, abs=0.15)


def test_loudness_ignores_silence_and_bears_very_short_sound():
    speech = tone(3.0, 0.1, 997)
    padded = np.concatenate([speech, np.zeros(5 * RATE_HZ, np.float32)])
    assert integrated_loudness(padded) == pytest.approx(integrated_loudness(speech), abs=0.5)
    assert integrated_loudness(tone(0.1, 0.1, 1000)) == pytest.approx(-23, abs=0.5)
    assert integrated_loudness(np.zeros(0, np.float32)) == integrated_loudness(np.zeros(9000, np.float32)) == -70


def test_levels_reach_their_target_and_never_clip():
    quiet, spiky = tone(2.0, 0.01, 997), tone(2.0, 0.01, 997)
    spiky[1000] = 0.5
    ebu, peak = PreprocessConfig(loudness="ebu"), PreprocessConfig(loudness="peak", peak_db=-6.0)
    assert integrated_loudness(quiet * gain_for(quiet, ebu)) == pytest.approx(-23, abs=0.05)
    assert np.abs(spiky * gain_for(spiky, ebu)).max() == pytest.approx(10 ** (-1 / 20))
    assert np.abs(spiky * gain_for(spiky, peak)).max() == pytest.approx(10 ** (-6 / 20))
    assert gain_for(np.zeros(100, np.float32), ebu) == gain_for(np.zeros(100, np.float32), peak) == 1.0


def test_trimming_keeps_speech_and_leaves_silence_alone(sample):
    speech = load(Source(str(sample)))
    silence = np.zeros(3 * RATE_HZ, np.float32)
    padded = np.concatenate([silence, speech, silence])
    kept = trimmed(padded)
    assert len(padded) - len(kept) > 5 * RATE_HZ and len(kept) > 0.9 * len(trimmed(speech))
    at = next(shift for shift in range(len(padded)) if np.array_equal(padded[shift : shift + len(kept)], kept))
    assert at <= len(silence) + RATE_HZ // 2
    assert np.array_equal(trimmed(silence), silence)


def test_a_channel_is_chosen_or_mixed(tmp_path):
    folder = write(tmp_path / "in", call=np.stack([tone(1.0, 0.5), tone(1.0, 0.25, 900)], axis=1))
    for channel, level in ((0, 0.5), (1, 0.25)):
        report = preprocess([folder], tmp_path / f"out{channel}", PreprocessConfig(channel=channel))
        assert report.kept == 1
        kept = load(Source(str(tmp_path / f"out{channel}" / "audio" / "call.flac")))
        assert np.abs(kept).max() == pytest.approx(level, abs=0.01)
    report = preprocess([folder], tmp_path / "out2", PreprocessConfig(channel=2))
    assert report.rejects == {"unreadable": 1} and "has no channel 2, only 2" in report.examples["unreadable"]
    with pytest.raises(AudioError, match="has no channel 2"):
        load(Source(str(folder / "call.wav"), channel=2))


def test_the_side_of_a_call_is_what_its_corpus_says(tmp_path):
    write(tmp_path, call=np.stack([tone(1.0, 0.5), tone(1.0, 0.25, 900)], axis=1))
    line = {"audio_filepath": "call.wav", "text": "left", "channel": 0}
    both = [line, {**line, "text": "right", "channel": 1}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, both)))
    report = preprocess([tmp_path / "m.jsonl"], tmp_path / "out")
    manifest = rows(report.manifest)
    peaks = [np.abs(load(Source(str(tmp_path / "out" / row["audio_filepath"])))).max() for row in manifest]
    assert peaks == pytest.approx([0.5, 0.25], abs=0.01)
    assert [row["source_channel"] for row in manifest] == [0, 1] and "channel" not in manifest[0]
    report = preprocess([tmp_path / "m.jsonl"], tmp_path / "right", PreprocessConfig(channel=1))
    peaks = [np.abs(load(tmp_path / "right" / row["audio_filepath"])).max() for row in rows(report.manifest)]
    assert peaks == pytest.approx([0.25, 0.25], abs=0.01), "what the user gives counts"


@pytest.mark.parametrize("loudness", ["keep", "peak", "ebu"])
def test_no_gain_hides_what_is_wrong_with_a_recording(tmp_path, loudness):
    folder = write(
        tmp_path / "in", clipped=np.clip(20 * tone(1.0), -1, 1), silent=1e-5 * tone(1.0), fine=tone(1.0, 0.2)
    )
    config = PreprocessConfig(loudness=loudness, drop=["clipped", "silent"])
    report = preprocess([folder], tmp_path / "out", config)
    assert [Path(row["audio_filepath"]).stem for row in rows(report.manifest)] == ["fine"]


def test_steps_are_done_stated_and_done_again_when_they_change(tmp_path):
    folder = write(tmp_path / "in", a=tone(1.0, 0.01), b=tone(1.0, 0.5, 600))
    config = PreprocessConfig(loudness="peak", peak_db=-6.0, case="upper", punctuation="remove")
    report = preprocess([folder], tmp_path / "out", config)
    peaks = [np.abs(load(Source(str(tmp_path / "out" / row["audio_filepath"])))).max() for row in rows(report.manifest)]
    assert peaks == pytest.approx([0.5012, 0.5012], abs=1e-3)
    assert rows(report.manifest)[0]["text"] == "TEXT OF A"
    header = json.loads((tmp_path / "out" / "manifest.meta.json").read_text())
    assert "peak -6 dB of full scale" in header["steps"] and header["settings"]["case"] == "upper"
    assert header["utterances"] == 2 and header["inputs"] == [str(folder)]
    assert preprocess([folder], tmp_path / "out", config).reused == 2
    assert preprocess([folder], tmp_path / "out").reused == 0


def test_punctuation_alone_is_no_text(tmp_path):
    folder = write(tmp_path / "in", a=tone(1.0), b=tone(1.0))
    (folder / "a.txt").write_text("?!")
    report = preprocess([folder], tmp_path / "out", PreprocessConfig(punctuation="remove"))
    assert (report.kept, report.rejects) == (1, {"empty text": 1})


# Checks


def test_every_fault_of_sound_and_text_is_found(tmp_path):
    folder = write(
        tmp_path / "in",
        fine=tone(1.0),
        quiet=tone(1.0, 0.0005),
        loud=np.clip(tone(1.0, 3.0, 300), -1, 1),
        shifted=tone(1.0, 0.3, 500) + 0.1,
        twin=tone(1.0),
        foreign=tone(1.0, 0.4, 700),
        lost=tone(1.0, 0.4, 800),
    )
    (folder / "foreign.txt").write_text("good утро")
    (folder / "lost.txt").write_text("caf\ufffd")
    report = preprocess([folder], tmp_path / "out")
    assert report.findings == {"silent": 1, "clipped": 1, "dc offset": 1, "foreign text": 2, "same sound": 1}
    found = json.loads((tmp_path / "out" / "report.json").read_text())["found"]
    names = {(Path(one["audio_filepath"]).stem, one["kind"]) for one in found}
    assert names == {
        *(("quiet", "silent"), ("loud", "clipped"), ("shifted", "dc offset"), ("foreign", "foreign text")),
        *(("lost", "foreign text"), ("twin", "same sound")),
    }
    assert "1 clipped, as loud.flac" in report.summary() and not report.failures and report.kept == 7
    write_preparation_page(tmp_path / "report.html", report.facts, report.utterances, report.found)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6 and "cyrillic" in page
    dropped = preprocess([folder], tmp_path / "out", PreprocessConfig(drop=["same sound", "silent"]))
    assert (dropped.kept, dropped.rejects) == (5, {"same sound": 1, "silent": 1}) and "silent" not in dropped.findings


def test_told_lengths_are_compared_with_the_sound(tmp_path):
    write(tmp_path, a=tone(1.0), b=tone(1.0, hz=500), c=tone(3.0, hz=600) * np.linspace(0.1, 1, 48_000))
    (tmp_path / "t.csv").write_text("path,text,duration\na.wav,one,1.0\nb.wav,two,2.5\n")
    report = preprocess([tmp_path / "t.csv"], tmp_path / "out")
    assert report.findings == {"mismatched duration": 1} and "1.00 s long, but 2.50 s" in report.summary()
    line = {"audio_filepath": "c.wav", "text": "x", "duration": 1.0}
    (tmp_path / "cut.jsonl").write_text(json.dumps(line))
    assert preprocess([tmp_path / "cut.jsonl"], tmp_path / "out2").findings == {"mismatched duration": 1}
    parts = [line, {**line, "offset": 1.0}, {**line, "offset": 2.5}]
    (tmp_path / "parts.jsonl").write_text("\n".join(map(json.dumps, parts)))
    assert preprocess([tmp_path / "parts.jsonl"], tmp_path / "out3").findings == {"mismatched duration": 1}


def kept(text: str, seconds: float = 1.0, name: str = "x.wav", **extra: str) -> PreparedUtterance:
    samples = round(seconds * RATE_HZ)
    sound = LevelStats(samples, -6.0, -20.0, 0.0, 0.0, f"{name} {text} {extra}", seconds)
    found = CorpusUtterance(Utterance(Path(name), text, extra=dict(extra)), name, name)
    one = PreparedUtterance(found, Source(name), Path(name))
    one.finish(sound)
    return one


def test_speaking_rates_far_from_the_others_are_found():
    usual = [kept("a" * (10 + index % 5), 1.0, f"{index}.wav") for index in range(40)]
    found = check([*usual, kept("a", 10.0, "slow.wav"), kept("a" * 300, 1.0, "fast.wav")])
    assert [finding.index for finding in found if finding.kind == "speaking rate"] == [40, 41]
    assert not check(usual)


def test_texts_that_nearly_all_are_one_of_a_few_may_be_in_two_splits():
    commands = [
        kept(word, name=f"{word}{number}", split="test" if number > 7 else "train")
        for word in ("yes", "no", "stop")
        for number in range(10)
    ]
    assert not check(commands)
    sentences = [kept(f"sentence {number}", name=str(number), split="train") for number in range(10)]
    assert "sentence in two splits" in {finding.kind for finding in check([*commands, *sentences])}


def test_speakers_and_sentences_in_two_splits_are_found_outside_the_smallest():
    both = [
        *(kept("one", name="1", speaker="ann", split="train"), kept("two", name="2", speaker="bob", split="train")),
        *(kept("ONE", name="3", speaker="cyd", split="test"), kept("three", name="4", speaker="bob", split="test")),
        kept("four", name="5", speaker="dan", split="train"),
    ]
    found = check(both)
    assert [(one.index, one.kind) for one in found] == [(1, "speaker in two splits"), (0, "sentence in two splits")]
    assert [finding.kind for finding in found] == ["speaker in two splits", "sentence in two splits"]
    repeated = check([kept("one", name="1", speaker="ann"), kept("One", name="2", speaker="ann")])
    assert [one.kind for one in repeated] == ["same text and speaker"]


def test_rates_outside_limits_are_rejected(tmp_path):
    folder = write(tmp_path / "in", a=tone(1.0), b=tone(1.0, hz=500))
    (folder / "b.txt").write_text("far too many letters for a second " * 3)
    report = preprocess([folder], tmp_path / "out", PreprocessConfig(max_rate=30))
    assert (report.kept, report.rejects) == (1, {"speaking rate": 1})


def test_blocks_measure_as_the_whole():
    wave = to_int16(np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32))
    whole, parts = LevelMeter(), LevelMeter()
    whole.update(wave)
    for start in range(0, 5000, 777):
        parts.update(wave[start : start + 777])
    assert whole.result(1.0) == parts.result(1.0)
    assert whole.result(1.0).rms_db == pytest.approx(
        20 * np.log10(np.sqrt((wave / 32768.0) ** 2).mean() * 2 / 3**0.5), abs=0.2
    )


# Splits


def some(count: int, speakers: int) -> list[Utterance]:
    return [
        Utterance(Path(f"{index}.wav"), f"t{index % 70}", 0.0, 1.0 + index % 3, {"speaker": f"s{index % speakers}"})
        for index in range(count)
    ]


def test_splits_have_their_shares_and_share_no_speaker():
    utterances = some(1000, 100)
    names = divide(utterances, parse_shares("90/5/5"), ["speaker"])
    seconds = {
        name: sum(u.duration for u, n in zip(utterances, names, strict=True) if n == name) for name in set(names)
    }
    whole = sum(seconds.values())
    assert {name: round(value / whole, 2) for name, value in seconds.items()} == {
        "train": 0.9,
        "dev": 0.05,
        "test": 0.05,
    }
    homes = {(u.extra["speaker"], n) for u, n in zip(utterances, names, strict=True)}
    assert len(homes) == 100
    shuffled = np.random.default_rng(0).permutation(1000)
    again = divide([utterances[i] for i in shuffled], parse_shares("90/5/5"), ["speaker"])
    assert [names[i] for i in shuffled] == again


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["x", "y", "z", ""])), min_size=1, max_size=30))
def test_what_shares_any_key_stays_together(pairs):
    utterances = [
        Utterance(Path(f"{index}.wav"), text, 0.0, 1.0, {"speaker": speaker} if speaker else {})
        for index, (text, speaker) in enumerate(pairs)
    ]
    names = divide(utterances, [0.5, 0.5], ["text"])
    assert len({(u.text, n) for u, n in zip(utterances, names, strict=True)}) == len({u.text for u in utterances})
    if any(speaker for _, speaker in pairs):
        both = divide(utterances, [0.5, 0.5], ["speaker", "text"])
        for key in (lambda u: u.text, lambda u: u.extra.get("speaker")):
            homes = {(key(u), n) for u, n in zip(utterances, both, strict=True) if key(u)}
            assert len(homes) == len({key(u) for u in utterances if key(u)})


@pytest.mark.parametrize("wrong", ["90", "90/5", "90/10/0", "a/b/c", "50/30/10/10", "90/-5/15", ""])
def test_shares_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match="such as 90/5/5"):
        parse_shares(wrong)


def test_sentences_that_differ_in_writing_alone_share_a_split():
    forms = ("caf\u00e9 num\u00e9ro {}", "cafe\u0301 nume\u0301ro {}", "Caf\u00e9, num\u00e9ro {}!")
    utterances = [kept(form.format(n), name=f"{n} {form}").utterance for n in range(30) for form in forms]
    names = divide(utterances, parse_shares("60/20/20"), ["text"])
    assert set(names) == {"train", "dev", "test"}
    assert all(len(set(names[first : first + 3])) == 1 for first in range(0, 90, 3))


def test_preprocess_writes_the_splits_and_they_leak_nothing(tmp_path):
    folder = tmp_path / "in"
    write(folder, **{f"u{index}": tone(0.2, hz=200 + 20 * index) for index in range(20)})
    lines = [{"audio_filepath": f"u{i}.wav", "text": f"t {i}", "speaker": f"s{i % 10}"} for i in range(20)]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = PreprocessConfig(split="80/10/10", by=["speaker"])
    report = preprocess([folder / "m.jsonl"], tmp_path / "out", config)
    assert report.splits == {"train": 16, "dev": 2, "test": 2} and not report.findings
    speakers = [{row["speaker"] for row in rows(tmp_path / "out" / f"{name}.jsonl")} for name in report.splits]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 10
    (folder / "two.jsonl").write_text(
        "\n".join(map(json.dumps, [line for line in lines if line["speaker"] in ("s1", "s2")]))
    )
    report = preprocess([folder / "two.jsonl"], tmp_path / "two", config)
    assert report.splits == {"train": 2, "dev": 2}
    assert len(report.remarks) == 1 and report.remarks[0].startswith("nothing for test.jsonl: ")
    with pytest.raises(InputError, match=r"by is 'mood'.* text, speaker;"):
        preprocess([folder / "m.jsonl"], tmp_path / "out", PreprocessConfig(split="80/10/10", by=["mood"]))
    with pytest.raises(InputError, match=f"drop is 'odd'; expected: {KINDS[0]}"):
        preprocess([folder / "m.jsonl"], tmp_path / "out", PreprocessConfig(drop=["odd"]))


def test_marks_that_repeat_and_widths_are_no_foreign_script():
    texts = ["人々は佐々木さん", "ﾃｽﾄ テスト", "Ａ級 人", "5 µm 人"]
    found = check([kept(text, name=str(place), language="ja") for place, text in enumerate(texts)])
    assert [(one.index, one.kind) for one in found] == [(2, "foreign text"), (3, "foreign text")]  # Latin letters


def test_what_is_dropped_is_not_reported_again(tmp_path):
    write(tmp_path, **{f"u{place:02}": tone(1.0, hz=300 + place) for place in range(30)})
    for place in range(30):
        letters = 10 + place % 3 if place < 26 else 60 if place < 28 else 400
        (tmp_path / f"u{place:02}.txt").write_text("a" * letters)
    report = preprocess([tmp_path], tmp_path / "out", PreprocessConfig(drop=["speaking rate"]))
    assert report.rejects["speaking rate"] >= 2 and "speaking rate" not in report.findings
