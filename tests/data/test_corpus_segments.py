"""Parts of recordings in tables, JSON and files of segments: each row gets its own time, or none is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_readers import read_corpora
from focusasr.runtime.errors import InputError

RATE_HZ = 16_000


def tone(path: Path, seconds: float = 8.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.2), RATE_HZ)
    return path


def read(path: Path, **columns: str) -> tuple[list[CorpusUtterance], list[Reject]]:
    items = list(read_corpora([path], columns=Columns(**columns)))
    return [one for one in items if isinstance(one, CorpusUtterance)], [one for one in items if isinstance(one, Reject)]


def parts(path: Path) -> list[tuple[str, float, float | None, str]]:
    found, rejects = read(path)
    assert not rejects
    return [(one.audio.name, one.utterance.offset, one.utterance.duration, one.utterance.text) for one in found]


TWO = [("call.wav", 0.0, 4.0, "one"), ("call.wav", 4.5, 3.3, "two")]
HEADERS = [
    ("start,end", "0.0,4.0", "4.5,7.8"),
    ("Begin,End", "0,4", "4.5,7.8"),
    ("start_time,end_time", "0:00:00.0,0:00:04.0", "0:04.5,00:00:07.800"),
    ("Start Time (s),End Time (s)", "0,4", "4.5,7.8"),
    ("start_ms,end_ms", "0,4000", "4500,7800"),
    ("start,end", "0,4000", "4500,7800"),
    ("begin,duration", "0,4", "4.5,3.3"),
    ("onset,offset", "0,4", "4.5,7.8"),
    ("offset,dur", "0,4", "4.5,3.3"),
    ("segment_start,segment_end", '"0,0","4,0"', '"4,5","7,8"'),
]


@pytest.mark.parametrize(("header", "first", "second"), HEADERS)
def test_table_rows_get_their_times(tmp_path, header, first, second):
    tone(tmp_path / "call.wav")
    (tmp_path / "t.csv").write_text(f"path,{header},text\ncall.wav,{first},one\ncall.wav,{second},two\n")
    assert parts(tmp_path / "t.csv") == TWO


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"start": 0.0, "end": 4.0}, {"start": 4.5, "end": 7.8}),
        ({"start": 0, "end": 4000}, {"start": 4500, "end": 7800}),
        ({"begin": "0:00", "end": "0:04"}, {"begin": "0:04.5", "end": "0:07.8"}),
        ({"offset": 0, "duration": 4.0}, {"offset": 4.5, "duration": 3.3}),
    ],
)
@pytest.mark.parametrize("form", ["lines", "array", "by id"])
def test_json_objects_get_their_times(tmp_path, first, second, form):
    tone(tmp_path / "call.wav")
    rows = [{"audio": "call.wav", "text": "one", **first}, {"audio": "call.wav", "text": "two", **second}]
    forms = {
        "lines": "\n".join(map(json.dumps, rows)),
        "array": json.dumps(rows, indent=1),
        "by id": json.dumps({"u1": rows[0], "u2": rows[1]}),
    }
    (tmp_path / "t.json").write_text(forms[form])
    assert parts(tmp_path / "t.json") == TWO


def test_times_without_a_partner_are_other_facts(tmp_path):
    (tmp_path / "t.csv").write_text("path,text,start\na.wav,one,2020-01-01\n")
    (item,), _ = read(tmp_path / "t.csv")
    assert (item.utterance.offset, item.utterance.extra) == (0.0, {"start": "2020-01-01"})


def test_a_row_whose_end_is_not_after_its_start_is_rejected(tmp_path):
    (tmp_path / "t.csv").write_text("path,text,start,end\na.wav,one,2,1\na.wav,two,x,1\na.wav,three,1,2\n")
    found, rejects = read(tmp_path / "t.csv")
    assert [one.utterance.text for one in found] == ["three"]
    assert [one.reason.split(": ")[0][-6:] for one in rejects] == ["line 2", "line 3"]


def test_whole_numbers_stay_seconds_where_they_fit(tmp_path):
    tone(tmp_path / "call.wav")
    (tmp_path / "t.csv").write_text("path,text,start,end\ncall.wav,one,0,3\ncall.wav,two,4,60\n")
    assert [part[2] for part in parts(tmp_path / "t.csv")] == [3.0, 56.0]  # a mismatch that preprocess finds
    (tmp_path / "t.csv").write_text("path,text,start,end\ncall.wav,one,0,3000\ncall.wav,two,4,60000\n")
    assert [part[2] for part in parts(tmp_path / "t.csv")] == [3000.0, 59996.0]


@pytest.mark.parametrize("repeated", ["text,text", "Text,text", "path,path", "speaker_id,Speaker ID"])
def test_two_columns_of_one_name_are_refused(tmp_path, repeated):
    header = ",".join(dict.fromkeys(["path", "text"])) + "," + repeated if "speaker" in repeated else None
    header = header or {"text,text": "path,text,text", "Text,text": "path,Text,text"}.get(repeated, "path,text,path")
    (tmp_path / "t.csv").write_text(f"{header}\na.wav,{','.join('x' * header.count(','))}\n")
    with pytest.raises(InputError, match=r"t.csv: 2 columns have one name"):
        read(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"2 columns have one name"):
        read(tmp_path)


def test_header_names_in_any_case_with_spaces_and_the_speaker_column(tmp_path):
    (tmp_path / "t.csv").write_text("File Name,Speaker ID,Transcript\na.wav,ann,one\n")
    (item,), _ = read(tmp_path / "t.csv")
    assert (item.audio.name, item.utterance.text, item.utterance.extra) == ("a.wav", "one", {"speaker": "ann"})
    (tmp_path / "t.csv").write_text("file,text,who,speaker\na.wav,one,bob,room\n")
    (item,), _ = read(tmp_path / "t.csv", speaker="who")
    assert item.utterance.extra == {"speaker": "bob", "source_speaker": "room"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_tables_of_excel(tmp_path, encoding, separator):
    rows = [["path", "text"], ["a.wav", "Grüße"], ["b.wav", "né"]]
    (tmp_path / "t.csv").write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
    found, _ = read(tmp_path / "t.csv")
    assert [one.utterance.text for one in found] == ["Grüße", "né"]


def test_names_without_folder_are_found_one_folder_deeper(tmp_path):
    tone(tmp_path / "wavs" / "a.wav")
    for folder in ("wavs", "more"):
        tone(tmp_path / folder / "b.wav")
    (tmp_path / "t.csv").write_text("path,text\na,one\nb.wav,two\n")
    found, _ = read(tmp_path / "t.csv")
    assert [one.audio for one in found] == [tmp_path / "wavs" / "a.wav", tmp_path / "b.wav"]  # of two, none is meant


def test_joined_tables_repeat_their_header(tmp_path):
    header = "wav_filename,wav_filesize,transcript"
    (tmp_path / "all.csv").write_text(f"{header}\na.wav,10,one\n{header}\nb.wav,10,two\n")
    assert [part[3] for part in parts(tmp_path / "all.csv")] == ["one", "two"]


def test_rows_of_other_toolkits(tmp_path):
    wenet = tmp_path / "data.list"
    wenet.write_text('{"key": "u0", "wav": "a.wav", "txt": "one"}\n{"key": "u1", "wav": "b.wav", "txt": "two"}\n')
    found, _ = read(wenet)
    assert [(one.utterance.text, one.utterance.extra) for one in found] == [
        ("one", {"id": "u0"}),
        ("two", {"id": "u1"}),
    ]
    assert len(read(tmp_path)[0]) == 2
    speechbrain = tmp_path / "sb" / "train.json"
    speechbrain.parent.mkdir()
    speechbrain.write_text('{"u0": {"wav": "{data_root}/a.wav", "length": 2.5, "words": "ONE", "spk_id": "ann"}}')
    (item,), _ = read(speechbrain)
    assert (item.audio, item.utterance.text) == (speechbrain.parent / "a.wav", "ONE")
    assert item.utterance.extra == {"id": "u0", "speaker": "ann", "length": 2.5}
    assert len(read(speechbrain.parent)[0]) == 1
    nested = tmp_path / "ft.json"
    nested.write_text('{"audio": {"path": "a.wav"}, "sentence": "one", "duration": 2.0}\n' * 2)
    (item,), (twice,) = read(nested)
    assert (item.audio.name, item.utterance.duration, item.told_seconds, twice.kind) == (
        "a.wav",
        None,
        2.0,
        "duplicate",
    )
    samples = tmp_path / "samples.json"
    samples.write_text('[{"wav": {"file": "a.wav", "start": 0, "stop": 16000}, "words": "x"}]')
    ((), (reject,)) = read(samples)
    assert "times in samples" in reject.reason


@pytest.mark.parametrize("content", ["not json", "[1, 2]", '[{"text": "x"}]', "[\n{'a': 1},\n]", "3", ""])
def test_json_without_recordings_is_one_message(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    items: list[object] = []
    with pytest.raises(InputError) as refusal:
        items += read_corpora([path])
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value) and not items


# Files of segments with the name of a recording


AUDACITY = "0.000000\t4.000000\tone\n\\\t100.0\t200.0\n4.500000\t7.800000\ttwo\n"
WHISPER_TSV = "start\tend\ttext\n0\t4000\tone\n4500\t7800\ttwo\n"
LONG_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 8
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "speech"
        xmin = 0
        xmax = 8
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 4
            text = "one"
        intervals [2]:
            xmin = 4
            xmax = 4.5
            text = ""
        intervals [3]:
            xmin = 4.5
            xmax = 7.8
            text = "two"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 8
        points: size = 1
        points [1]:
            number = 3
            mark = "click"
"""
SHORT_GRID = (
    '"ooTextFile"\n"TextGrid"\n0\n8\n<exists>\n2\n"IntervalTier"\n"phones"\n0\n8\n1\n0\n4\n"w"\n'
    '"IntervalTier"\n"Ann"\n0\n8\n2\n0\n4\n"one"\n4.5\n7.8\n"two"\n'
)
ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT><TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="4000"/>
<TIME_SLOT TIME_SLOT_ID="t3" TIME_VALUE="4500"/><TIME_SLOT TIME_SLOT_ID="t4" TIME_VALUE="7800"/></TIME_ORDER>
<TIER TIER_ID="A" PARTICIPANT="ann"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1"
 TIME_SLOT_REF2="t2"><ANNOTATION_VALUE>one</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="t3" TIME_SLOT_REF2="t4">
<ANNOTATION_VALUE>two</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="words" PARENT_REF="A"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>child</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>
"""
STM = (
    ";; comment\ncall 1 ann 0.0 4.0 <o,f0> one\ncall 1 bob 4.5 7.8 two\ncall 1 x 7.8 8 ignore_time_segment_in_scoring\n"
)


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("call.txt", AUDACITY, "utf-8"),
        ("call.lab", "0.00 4.00 one\n4.50 7.80 two\n", "utf-8"),
        ("call.txt", "[00:00:00.000 --> 00:00:04.000]  one\n[00:00:04.500 --> 00:00:07.800]  two\n", "utf-8"),
        ("call.txt", "0:00\t0:04\tone\n0:04,5\t0:07.8\ttwo\n", "utf-8"),
        ("call.TXT", AUDACITY.replace(".", ","), "utf-8"),
        ("call.tsv", WHISPER_TSV, "utf-8"),
        ("call.TextGrid", LONG_GRID, "utf-8"),
        ("call.textgrid", SHORT_GRID, "utf-16"),
        ("call.eaf", ELAN, "utf-8"),
        ("call.stm", STM, "utf-8"),
    ],
)
def test_segments_become_parts_of_a_recording(tmp_path, name, content, encoding):
    tone(tmp_path / "call.wav")
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert parts(tmp_path) == TWO


def test_speakers_of_segments_are_kept(tmp_path):
    tone(tmp_path / "call.wav")
    (tmp_path / "call.eaf").write_text(ELAN)
    assert {one.utterance.extra["speaker"] for one in read(tmp_path)[0]} == {"ann"}
    (tmp_path / "call.eaf").unlink()
    (tmp_path / "call.stm").write_text(STM)
    assert [one.utterance.extra for one in read(tmp_path / "call.stm")[0]] == [
        {"speaker": "ann", "channel": 0},
        {"speaker": "bob", "channel": 0},
    ]


def test_a_tier_of_words_is_one_text(tmp_path):
    tone(tmp_path / "call.wav")
    words = SHORT_GRID.replace('"Ann"', '"words"')
    (tmp_path / "call.TextGrid").write_text(words)
    assert parts(tmp_path) == [("call.wav", 0.0, 7.8, "one two")]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("call.txt", "0.5\t0.5\tpoint\n1\t2\tfine\n", "broken row"),
        ("call.txt", "1\t2\tfine\nno times\n", "broken row"),
        ("call.TextGrid", LONG_GRID[:300], "unreadable text"),
        ("call.TextGrid", '"ooTextFile"\n"TextGrid"\n0\n1\n<exists>\n0\n', "unreadable text"),
        ("call.eaf", ELAN[:400], "unreadable text"),
        ("call.eaf", ELAN.replace(' TIME_VALUE="4000"', ""), "broken row"),
        ("call.stm", "call 1 ann 4 0 x\ncall 1 ann 1 2 fine\n", "broken row"),
    ],
)
def test_segments_that_cannot_be_used_are_rejects(tmp_path, name, content, kind):
    tone(tmp_path / "call.wav")
    (tmp_path / name).write_text(content)
    _, (reject,) = read(tmp_path)
    assert reject.kind == kind and str(tmp_path / name) in reject.reason and "\n" not in reject.reason


def test_two_texts_at_one_time_are_refused(tmp_path):
    tone(tmp_path / "call.wav")
    (tmp_path / "call.TextGrid").write_text(SHORT_GRID.replace("phones", "English").replace('"w"', '"translated"'))
    found, rejects = read(tmp_path)
    assert [one.utterance.text for one in found] == ["two"]
    assert [(one.kind, one.text) for one in rejects] == [("several texts", "translated"), ("several texts", "one")]


def test_labels_of_htk_are_refused(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "a.lab").write_text("0 2800000 sil\n2800000 5200000 one\n")
    _, (reject,) = read(tmp_path)
    assert reject.kind == "unreadable text" and "100 ns" in reject.reason


def test_other_columns_of_one_name_are_all_kept(tmp_path):
    (tmp_path / "t.csv").write_text("path,note,text,note\na.wav,x,one,y\n")
    assert read(tmp_path / "t.csv")[0][0].utterance.extra == {"note": "x", "note_2": "y"}


def test_a_text_of_timit_is_without_its_samples(tmp_path):
    tone(tmp_path / "sx1.wav")
    (tmp_path / "sx1.txt").write_text("0 46797 She had your dark suit.\n")
    assert parts(tmp_path) == [("sx1.wav", 0.0, None, "She had your dark suit.")]


def test_a_text_of_numbers_stays_a_text(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("0 1 2 3\n")
    assert parts(tmp_path)[0][3] == "0 1 2 3"


def segment_behind_the_end(folder: Path, layout: str) -> Path:
    """Write a corpus with a recording of 8 s and a segment of 7 to 13 s."""
    tone(folder / "call.wav")
    cut = {"id": "c", "start": 0, "duration": 20, "channel": 0, "type": "MonoCut"}
    cut["recording"] = {"id": "r", "sampling_rate": RATE_HZ, "num_samples": 8 * RATE_HZ, "duration": 8.0}
    cut["recording"]["sources"] = [{"type": "file", "channels": [0], "source": "call.wav"}]
    cut["supervisions"] = [{"id": "s", "recording_id": "r", "start": 7, "duration": 6, "text": "two"}]
    files = {
        "kaldi": {"wav.scp": "r call.wav", "segments": "u r 7 13", "text": "u two"},
        "table": {"t.csv": "path,text,start,end\ncall.wav,two,7,13\n"},
        "manifest": {"t.jsonl": '{"audio_filepath": "call.wav", "text": "two", "offset": 7, "duration": 6}'},
        "subtitles": {"call.srt": "1\n00:00:07,000 --> 00:00:13,000\ntwo\n"},
        "lhotse": {"cuts.jsonl": json.dumps(cut)},
    }
    for name, content in files[layout].items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("layout", ["kaldi", "table", "manifest", "subtitles", "lhotse"])
def test_a_segment_that_ends_behind_its_recording_is_found(tmp_path, layout):
    from focusasr.data.preprocess import preprocess

    if layout == "lhotse":
        pytest.importorskip("lhotse", reason="lhotse is not installed")
    report = preprocess([segment_behind_the_end(tmp_path / "in", layout)], tmp_path / "out")
    assert report.kept == 1 and report.findings == {"mismatched duration": 1}


def test_a_segment_that_begins_behind_its_recording_is_a_failure(tmp_path):
    from focusasr.data.preprocess import preprocess

    folder = segment_behind_the_end(tmp_path / "in", "kaldi")
    (folder / "segments").write_text("u r 17 23")
    report = preprocess([folder], tmp_path / "out")
    assert report.rejects == {"unreadable": 1} and report.failures
