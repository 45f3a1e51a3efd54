"""Corpora of other toolkits, made as these make them: Kaldi, lhotse, NeMo, subtitles, labels, Common Voice's forms."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_layouts import detect_layout
from focusasr.data.corpus_readers import read_corpora
from focusasr.runtime.errors import InputError


def make(folder: Path, **files: str) -> None:
    """Write files; `a__wav` stands for a.wav."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")


def read(path: Path, layout: str) -> tuple[list[CorpusUtterance], list[Reject]]:
    assert detect_layout(path, Columns()) == layout
    if layout == "lhotse":
        pytest.importorskip("lhotse", reason="lhotse is not installed")
    readings = list(read_corpora([path]))
    found = [reading for reading in readings if isinstance(reading, CorpusUtterance)]
    return found, [reading for reading in readings if isinstance(reading, Reject)]


def facts(item: CorpusUtterance) -> tuple[str, float, float | None, str]:
    one = item.utterance
    return one.audio.name, one.offset, one.duration, one.text


# Kaldi


def test_kaldi_folder_without_segments(tmp_path):
    make(tmp_path / "wavs", a__wav="", b__flac="")
    make(
        tmp_path,
        wav__scp="utt1 wavs/a.wav\nutt2 wavs/b.flac\nutt3 sph2pipe -f wav x.sph |\nutt4 data/raw.ark:123\n",
        text="utt1 HELLO  THERE\nutt2 BYE\nutt3 PIPED\nutt4 PACKED\nutt5 LOST\nutt6\n",
        utt2spk="utt1 ann\nutt2 bob\n",
        utt2lang="utt1 en\n",
    )
    found, rejects = read(tmp_path, "kaldi")
    assert [facts(item) for item in found] == [("a.wav", 0, None, "HELLO THERE"), ("b.flac", 0, None, "BYE")]
    assert found[0].utterance.extra == {"id": "utt1", "speaker": "ann", "language": "en"}
    reasons = [reject.reason for reject in rejects]
    assert "wav.scp, line 3: 'sph2pipe -f wav x.sph |'" in reasons[0]
    assert "line 4: 'data/raw.ark:123'" in reasons[1]
    assert "line 5: utt5 is not in wav.scp" in reasons[2]
    assert {reject.kind for reject in rejects} == {"broken row"}


def test_kaldi_segments_are_parts_of_recordings(tmp_path):
    make(tmp_path, call__wav="")
    make(
        tmp_path,
        wav__scp=f"rec {tmp_path / 'call.wav'}\n",
        segments="u1 rec 0.5 2.25\nu2 rec 3 -1\nu3 rec 5 4\nu4 rec 1\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\nu5 five\n",
    )
    found, rejects = read(tmp_path, "kaldi")
    assert [facts(item) for item in found] == [("call.wav", 0.5, 1.75, "one"), ("call.wav", 3.0, None, "two")]
    assert [reject.text for reject in rejects] == ["three", "four", "five"]
    assert "the end (4 s) is not after the begin (5 s)" in rejects[0].reason


# lhotse


def recording(name: str, **others: object) -> dict:
    source = {"type": "file", "channels": [0, 1], "source": name}
    return {"id": "rec", "sources": [source], "sampling_rate": 16000, "num_samples": 160000, "duration": 10.0} | others


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_lhotse_cuts_count_from_their_start(tmp_path):
    make(tmp_path / "wavs", r__wav="")
    inner = {"id": "s1", "recording_id": "rec", "start": 0.5, "duration": 1.5, "channel": 1, "text": "hello"}
    cut = {"id": "c1", "start": 2.0, "duration": 4.0, "channel": 0, "type": "MonoCut"}
    early = {**inner, "id": "s2", "start": -0.5, "duration": 10, "text": "wide", "speaker": "ann", "custom": {"snr": 3}}
    command = {"type": "command", "channels": [0], "source": "touch executed |"}
    rows = [
        {**cut, "supervisions": [inner, early], "recording": recording("wavs/r.wav")},
        {**cut, "id": "c2", "supervisions": [inner]},
        {**cut, "id": "c3", "supervisions": [], "recording": recording("wavs/r.wav")},
        {**cut, "id": "c4", "supervisions": [inner], "recording": recording("x", sources=[command])},
        {"id": "c5", "start": 0, "duration": 1, "type": "MixedCut", "tracks": []},
    ]
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(lines(*rows).encode()))
    found, rejects = read(tmp_path, "lhotse")
    assert [facts(item) for item in found] == [("r.wav", 2.5, 1.5, "hello"), ("r.wav", 2.0, 4.0, "wide")]
    assert found[0].utterance.extra == {"id": "s1", "channel": 1}
    assert found[1].utterance.extra == {"snr": 3, "id": "s2", "speaker": "ann", "channel": 1}
    reasons = [reject.reason for reject in rejects]
    assert "features without a recording" in reasons[0] and "no supervision" in reasons[1]
    assert "'rec' is in ['command']" in reasons[2] and "a mix of several" in reasons[3]
    assert len(list(read_corpora([tmp_path / "cuts.jsonl.gz"]))) == 6


def test_invalid_lhotse_lines_become_rejects(tmp_path):
    said = {"id": "s", "recording_id": "rec", "start": 0.0, "duration": 1.0, "channel": 0, "text": "good"}
    reverse, strange = {**said, "id": "r", "duration": -1.0}, {**said, "start": None}
    cut = {"id": "c", "start": 0.0, "duration": 4.0, "channel": 0, "type": "MonoCut", "recording": recording("a.wav")}
    rows = [{**cut, "supervisions": [reverse, said]}, {**cut, "recording": {"id": "x"}}, {**cut, "supervisions": 5}]
    rows += [{**cut, "supervisions": [strange]}, {**cut, "id": None, "start": 1.0, "supervisions": [said]}]
    make(tmp_path, a__wav="", cuts__jsonl=lines(*rows[:2]) + '{"id": \n[5]\n' + lines(*rows[2:]))
    found, rejects = read(tmp_path, "lhotse")
    assert [facts(item) for item in found] == [("a.wav", 0.0, 1.0, "good"), ("a.wav", 1.0, 1.0, "good")]
    assert {reject.kind for reject in rejects} == {"broken row"} and "'r' starts at 0.0 s" in rejects[0].reason
    for number, reject in enumerate(rejects[1:], start=2):
        assert f"cuts.jsonl, line {number}: not as lhotse writes it (" in reject.reason
    assert len(rejects) == 6


def test_without_lhotse_the_extra_is_named(tmp_path, monkeypatch, run):
    for name in ("lhotse", "lhotse.serialization"):
        monkeypatch.setitem(sys.modules, name, None)
    make(tmp_path, cuts__jsonl=lines({"id": "c", "type": "MixedCut", "tracks": []}))
    assert detect_layout(tmp_path, Columns()) == "lhotse"
    run("preprocess", tmp_path, "-o", tmp_path / "out").refused(1, tmp_path, "pip install", "[lhotse]")


def test_lhotse_recordings_with_supervisions(tmp_path):
    make(tmp_path, a__wav="")
    make(tmp_path, recordings__jsonl=lines(recording("a.wav")))
    rows = [{"id": f"s{n}", "recording_id": name, "start": n, "duration": 1, "text": f"t{n}", "language": "en"}
            for n, name in enumerate(("rec", "rec", "other"))]  # fmt: skip
    make(tmp_path, supervisions__jsonl=lines(*rows))
    for path in (tmp_path, tmp_path / "supervisions.jsonl"):
        found, (reject,) = read(path, "lhotse")
        assert [facts(item) for item in found] == [("a.wav", 0.0, 1.0, "t0"), ("a.wav", 1.0, 1.0, "t1")]
        assert found[0].utterance.extra["language"] == "en" and "'other' is in no recordings file" in reject.reason


@pytest.mark.parametrize("kind", ["supervisions", "cuts"])
def test_several_lhotse_manifests_are_several_splits(tmp_path, kind):
    make(tmp_path, a__wav="", corpus_recordings_all__jsonl=lines(recording("a.wav")))
    for start, split in enumerate(("train-clean-100", "dev")):
        one = {"id": split, "recording_id": "rec", "start": start, "duration": 1, "text": split}
        cut = {"id": split, "start": 0.0, "duration": 9.0, "channel": 0, "type": "MonoCut", "supervisions": [one]}
        cut["recording"] = recording("a.wav")
        (tmp_path / f"corpus_{kind}_{split}.jsonl").write_text(lines(cut if kind == "cuts" else one))
    found, _ = read(tmp_path, "lhotse")
    assert [item.utterance.extra["split"] for item in found] == ["dev", "train-clean-100"]
    for path in tmp_path.glob(f"corpus_{kind}_*"):
        path.rename(tmp_path / f"corpus_{kind}_train.00000{path.name.count('dev')}.jsonl")
    found, _ = read(tmp_path, "lhotse")
    assert len(found) == 2 and not any("split" in item.utterance.extra for item in found), "shards of one"


def test_what_lhotse_changes_as_it_reads_is_refused_and_custom_keys_give_way(tmp_path):
    rates = {"source_sampling_rate": 44_100, "target_sampling_rate": 16_000}
    resampled = recording("r.wav", transforms=[{"name": "Resample", "kwargs": rates}])  # which is done anyway
    said = {"id": "s", "recording_id": "rec", "start": 0.0, "duration": 1.0, "channel": 0, "text": "one"}
    custom = {"offset": 10.0, "text": "raw", "mood": "calm"}
    faster = recording("r.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])
    cut = {"id": "c", "duration": 1.0, "channel": 0, "type": "MonoCut"}
    cuts = [
        {**cut, "start": 2.0, "supervisions": [{**said, "custom": custom}], "recording": resampled},
        {**cut, "start": 0.0, "supervisions": [said], "recording": faster},
    ]
    (tmp_path / "r.wav").touch()
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, cuts)))
    (item,), (reject,) = read(tmp_path, "lhotse")
    row = item.utterance.to_json(tmp_path)
    assert (row["offset"], row["text"], row["source_offset"], row["source_text"]) == (2.0, "one", 10.0, "raw")
    assert row["mood"] == "calm" and "has transforms" in reject.reason


def test_a_torn_lhotse_file_is_one_line(tmp_path):
    pytest.importorskip("lhotse", reason="lhotse is not installed")
    good = gzip.compress(lines(recording("a.wav")).encode() * 50)
    (tmp_path / "cuts.jsonl.gz").write_bytes(good[:-12])
    with pytest.raises(InputError) as refusal:
        list(read_corpora([tmp_path / "cuts.jsonl.gz"], "lhotse"))
    assert "cuts.jsonl.gz" in str(refusal.value)


# NeMo, subtitles, labels, Common Voice


def test_tarred_nemo_manifests_are_refused_with_the_remedy(tmp_path):
    make(tmp_path, tarred__json=lines({"audio_filepath": "a.wav", "duration": 1.0, "text": "x", "shard_id": 0}))
    with pytest.raises(InputError, match=r"tarred.json, line 1: tarred, .* Unpack them \(tar -xf\)"):
        list(read_corpora([tmp_path / "tarred.json"]))
    make(tmp_path, plain__json=lines({"audio_filepath": "a.wav", "duration": 1.0, "text": "x"}))
    assert len(read(tmp_path / "plain.json", "manifest")[0]) == 1


SRT = """1
00:00:01,500 --> 00:00:03,000
<i>Hello</i>
there &amp; welcome

2
00:01:00,000 --> 00:00:59,000
backwards

3
01:00:00,000 --> 01:00:02,250
An hour later.
"""

VTT = """WEBVTT - talk

NOTE a comment

intro
00:01.000 --> 00:02.500 align:start
<v Ann>Hi <c.loud>all</c>

00:03.000 --> 00:04.000
"""


def test_subtitles_become_parts_of_a_recording(tmp_path):
    make(
        tmp_path,
        talk__mp3="",
        talk__srt="\ufeff" + SRT.replace("\n", "\r\n"),
        show__wav="",
        show__vtt=VTT,
        lone__wav="",
    )
    found, rejects = read(tmp_path, "subtitles")
    assert [facts(item) for item in found] == [
        ("show.wav", 1.0, 1.5, "Hi all"),
        ("talk.mp3", 1.5, 1.5, "Hello there & welcome"),
        ("talk.mp3", 3600.0, 2.25, "An hour later."),
    ]
    assert found[0].utterance.extra == {"speaker": "Ann"}
    kinds = {(reject.audio.name, reject.kind) for reject in rejects if reject.audio}
    assert kinds == {("lone.wav", "no text"), ("show.wav", "empty text"), ("talk.mp3", "broken row")}
    assert any("talk.srt, line 7" in reject.reason for reject in rejects)
    assert len(list(read_corpora([tmp_path / "talk.mp3"]))) == 3


def test_labels_and_json_beside_the_audio(tmp_path):
    make(tmp_path, a__wav="", a__lab="from a label\n", b__wav="", b__json='{"text": "from json", "speaker": "bob"}')
    make(tmp_path, c__wav="", c__json='{"said": "mine"}', d__wav="", d__json="[1", e__wav="", e__txt="x", e__lab="y")
    found, rejects = read(tmp_path, "sidecar")
    assert [facts(item)[3] for item in found] == ["from a label", "from json", "x"]
    assert found[1].utterance.extra == {"speaker": "bob"}
    assert [reject.kind for reject in rejects] == ["unreadable text"] * 2
    assert "--text-column names it" in rejects[0].reason
    (item,) = read_corpora([tmp_path / "c.wav"], columns=Columns(text="said"))
    assert isinstance(item, CorpusUtterance) and item.utterance.text == "mine"


@pytest.mark.parametrize(
    ("header", "row", "clip"),
    [  # release 4 and later, 17 and later, spontaneous speech
        ("client_id path sentence up_votes down_votes age gender accent", "me c Hi 2 0 x y z", "clips/c.mp3"),
        (
            "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale"
            " segment",
            "me c.mp3 9f Hi dom 2 0 a b c d en s",
            "clips/c.mp3",
        ),
        ("client_id audio_id audio_file duration_ms prompt transcription", "me 1 c.mp3 900 Why Hi", "audios/c.mp3"),
    ],
)
def test_common_voice_of_several_releases(tmp_path, header, row, clip):
    make(tmp_path / clip.split("/")[0], c__mp3="")
    make(tmp_path, validated__tsv="\n".join(line.replace(" ", "\t") for line in (header, row)))
    ((item,), rejects) = read(tmp_path, "commonvoice")
    assert (item.audio, item.utterance.text) == (tmp_path / clip, "Hi") and not rejects
    assert item.utterance.extra["speaker"] == "me"


def test_common_voice_1_is_a_table_with_folders(tmp_path):
    make(tmp_path / "cv-valid-train", sample__mp3="")
    make(tmp_path, t__csv="filename,text,up_votes,duration\ncv-valid-train/sample.mp3,learn to,1,\n")
    ((item,), _) = read(tmp_path, "table")
    assert item.audio.parent.name == "cv-valid-train" and item.utterance.text == "learn to"
