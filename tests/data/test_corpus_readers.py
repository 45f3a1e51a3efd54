"""Every layout on a faithful little tree, and what people do to tables. Audio is not opened here: empty files do."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_layouts import detect_layout
from focusasr.data.corpus_readers import read_corpora
from focusasr.runtime.errors import InputError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(path: Path, layout: str = "auto", **columns: str) -> tuple[list[CorpusUtterance], list[Reject]]:
    readings = list(read_corpora([path], layout, Columns(**columns)))
    found = [reading for reading in readings if isinstance(reading, CorpusUtterance)]
    return found, [reading for reading in readings if isinstance(reading, Reject)]


def table(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def test_texts_of_several_kinds_beside_recordings(tmp_path):
    touch(*(tmp_path / f"{name}.wav" for name in ("a", "b", "c", "talk", "bare")))
    for name in ("a", "b"):  # of an old machine, whose path is gone
        table(
            tmp_path / f"{name}.json",
            json.dumps({"audio_filepath": "/gone/x.wav", "text": f"text of {name}", "speaker": "s"}),
        )
    table(tmp_path / "c.JSON", json.dumps({"audio_filepath": "c.wav", "text": "text of c"}))
    table(tmp_path / "talk.srt", "1\n00:00:00,000 --> 00:00:02,000\nfirst cue\n")
    assert detect_layout(tmp_path, Columns()) == "sidecar"
    found, rejects = read(tmp_path)
    assert [one.utterance.text for one in found] == ["text of a", "text of b", "text of c", "first cue"]
    assert [one.audio.name for one in found] == ["a.wav", "b.wav", "c.wav", "talk.wav"]
    forms = "bare.txt, .lab, .json, .srt, .vtt, .TextGrid, .eaf"
    assert [one.reason for one in rejects] == [f"{tmp_path / 'bare.wav'}: no text file has its name; expected {forms}"]


def test_sidecars_keep_their_place_and_join_lines(tmp_path):
    touch(tmp_path / "a" / "one.wav", tmp_path / "b" / "one.flac", tmp_path / "b" / "lonely.ogg", tmp_path / ".x.wav")
    table(tmp_path / "a" / "one.txt", "first line\r\nsecond  line\r\n", "utf-8-sig")
    table(tmp_path / "b" / "one.txt", "Grüße\n")
    found, rejects = read(tmp_path)
    assert detect_layout(tmp_path, Columns()) == "sidecar"
    texts = {item.name: item.utterance.text for item in found}
    assert texts == {"a/one": "first line second line", "b/one": "Grüße"}
    assert [(item.kind, item.audio) for item in rejects] == [("no text", tmp_path / "b" / "lonely.ogg")]


def test_suffixes_in_capitals(tmp_path):
    touch(tmp_path / "A.WAV")
    table(tmp_path / "A.TXT", "hello")
    (item,), rejects = read(tmp_path)
    assert (item.utterance.text, rejects) == ("hello", [])


def test_one_audio_file_is_a_corpus(tmp_path):
    touch(tmp_path / "one.v2.wav")
    table(tmp_path / "one.v2.txt", "hello")
    (item,), _ = read(tmp_path / "one.v2.wav")
    assert (item.name, item.utterance.text) == ("one.v2", "hello")


def test_sidecar_in_another_encoding_is_one_reject(tmp_path):
    touch(tmp_path / "one.wav", tmp_path / "two.wav")
    table(tmp_path / "one.txt", "Grüße", "latin-1")
    table(tmp_path / "two.txt", "fine")
    found, (reject,) = read(tmp_path)
    assert [item.name for item in found] == ["two"]
    assert reject.kind == "unreadable text"
    assert "one.txt" in reject.reason and "UTF-8" in reject.reason and "\n" not in reject.reason


@pytest.mark.parametrize("audio_column", ["path", "file", "audio", "audio_filepath", "filename", "wav", "Path"])
@pytest.mark.parametrize("text_column", ["text", "sentence", "transcript", "transcription"])
def test_usual_column_names_are_known(tmp_path, audio_column, text_column):
    touch(tmp_path / "a.wav")
    table(tmp_path / "t.csv", f"{text_column},mood,{audio_column}\nhello,happy,a.wav\n")
    (item,), _ = read(tmp_path)
    assert (item.audio, item.utterance.text, item.utterance.extra) == (tmp_path / "a.wav", "hello", {"mood": "happy"})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_table_with_byte_order_mark_and_windows_line_ends(tmp_path, separator):
    touch(tmp_path / "clips" / "a.wav", tmp_path / "clips" / "b.wav")
    rows = [["path", "text", "speaker"], ["clips/a.wav", "one", "ann"], ["clips\\b.wav", "two", ""], ["", "", ""]]
    table(tmp_path / "t.csv", "\r\n".join(separator.join(row) for row in rows), "utf-8-sig")
    found, rejects = read(tmp_path / "t.csv")
    assert [item.utterance.text for item in found] == ["one", "two"] and not rejects
    assert [item.utterance.extra for item in found] == [{"speaker": "ann"}, {}]
    assert [item.audio for item in found] == [tmp_path / "clips" / "a.wav", tmp_path / "clips" / "b.wav"]


def test_explicit_columns_win_and_no_key_is_overwritten(tmp_path):
    touch(tmp_path / "a.wav")
    table(tmp_path / "t.csv", "path,text,clean,recording,duration\nwrong.wav,RAW,clean text,a.wav,9999\n")
    (item,), _ = read(tmp_path / "t.csv", audio="recording", text="clean")
    assert item.audio == tmp_path / "a.wav" and item.utterance.text == "clean text"
    assert item.utterance.extra == {"path": "wrong.wav", "source_text": "RAW"}
    assert (item.utterance.offset, item.utterance.duration) == (0.0, None)


def test_missing_column_names_what_is_there_and_the_option(tmp_path):
    table(tmp_path / "t.csv", "wav,said\na.wav,hello\n")
    with pytest.raises(InputError, match=r"--text-column must name one of wav, said"):
        read(tmp_path / "t.csv", "table")
    with pytest.raises(InputError, match=r"--audio-column .*looked for 'sound'"):
        read(tmp_path / "t.csv", "table", audio="sound", text="said")
    with pytest.raises(InputError, match=r"--speaker-column .*looked for 'who'"):
        read(tmp_path / "t.csv", "table", text="said", speaker="who")


def test_offset_column_chooses_a_part(tmp_path):
    rows = ["path\ttext\toffset\tduration", "a.wav\tone\t1.5\t2", "a.wav\ttwo\tx\t2", "a.wav\tthree\t-1\t2"]
    table(tmp_path / "t.tsv", "\n".join(rows))
    (item,), rejects = read(tmp_path / "t.tsv")
    assert (item.utterance.offset, item.utterance.duration) == (1.5, 2.0)
    table(tmp_path / "u.csv", "Audio,Text,Offset,Duration,Speaker\na.wav,one,1.5,2,A\n")
    (item,), _ = read(tmp_path / "u.csv")
    assert (item.utterance.offset, item.utterance.duration, item.utterance.extra) == (1.5, 2.0, {"speaker": "A"})
    assert [reject.reason.split(": ")[0] for reject in rejects] == [f"{tmp_path / 't.tsv'}, line {n}" for n in (3, 4)]


def test_quoted_cells_with_commas_quotes_and_line_breaks(tmp_path):
    table(tmp_path / "t.csv", 'path,text\n"a, b.wav","she said ""yes"",\nthen left"\nc.wav,plain\n')
    found, rejects = read(tmp_path / "t.csv")
    assert [item.utterance.text for item in found] == ['she said "yes", then left', "plain"] and not rejects
    assert found[0].name == "a, b" and found[1].where.endswith("line 4")


def test_broken_rows_are_named_and_swallow_nothing(tmp_path):
    rows = ["path,text", "a.wav,one", 'b.wav,"never closed', 'c.wav,"three"', "d.wav", "e.wav,5,more", ",six", "g.wav,"]
    table(tmp_path / "t.csv", "\n".join(rows))
    found, rejects = read(tmp_path / "t.csv")
    assert [item.utterance.text for item in found] == ["one", "three"]
    kinds = [(reject.reason.split(": ")[0].removeprefix(f"{tmp_path / 't.csv'}, "), reject.kind) for reject in rejects]
    broken = [(f"line {number}", "broken row") for number in (3, 5, 6, 7)]
    assert kinds == [*broken, ("line 8", "empty text")]


def test_stray_quotes_in_tab_separated_text(tmp_path):
    rows = ["path\ttext", 'a.wav\t"Yes, he said.', 'b.wav\t"The ""old"" way"', 'c.wav\t"A" and "B"', "d.wav\tlast"]
    table(tmp_path / "t.tsv", "\n".join(rows))
    found, _ = read(tmp_path / "t.tsv")
    assert [item.utterance.text for item in found] == ['"Yes, he said.', 'The "old" way', '"A" and "B"', "last"]


def test_unicode_names_in_either_form(tmp_path):
    name = "Größe ñ 語.wav"
    touch(tmp_path / unicodedata.normalize("NFD", name))
    table(tmp_path / "t.csv", f"path,text\n{unicodedata.normalize('NFC', name)},eins\n")
    (item,), _ = read(tmp_path / "t.csv")
    assert item.audio.is_file()


def test_repeated_rows_are_duplicates_and_several_texts_need_times(tmp_path):
    table(tmp_path / "t.csv", "path,text\na.wav,one\na.wav,one \nb.wav,two\n")
    found, (reject,) = read(tmp_path / "t.csv")
    assert [item.utterance.text for item in found] == ["one", "two"]
    assert reject.kind == "duplicate" and "line 3" in reject.reason and "line 2" in reject.reason
    table(tmp_path / "t.csv", "path,text\na.wav,one\na.wav,another\nb.wav,two\n")
    found, rejects = read(tmp_path / "t.csv")
    assert [item.utterance.text for item in found] == ["two"]
    assert [(reject.kind, reject.text) for reject in rejects] == [
        ("several texts", "one"),
        ("several texts", "another"),
    ]
    assert "line 2" in rejects[0].reason and "line 3" in rejects[0].reason and "start and end" in rejects[0].reason
    table(tmp_path / "t.csv", "path,text,start,end\na.wav,one,0,1\na.wav,another,1,2\n")
    assert len(read(tmp_path / "t.csv")[0]) == 2


def test_librispeech_tree(tmp_path):
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    touch(chapter / "84-121123-0000.flac", chapter / "84-121123-0001.flac")
    rows = ["84-121123-0000 GO DO YOU HEAR", "84-121123-0001 BUT IN LESS", "84-121123-0002"]
    table(chapter / "84-121123.trans.txt", "\n".join(rows))
    found, (reject,) = read(tmp_path)
    assert [item.utterance.text for item in found] == ["GO DO YOU HEAR", "BUT IN LESS"]
    told = {"speaker": "84", "chapter": "121123", "id": "84-121123-0000"}
    assert found[0].utterance.extra == {**told, "split": "dev-clean"}
    assert read(chapter.parent.parent)[0][0].utterance.extra == told
    assert found[0].name == "LibriSpeech/dev-clean/84/121123/84-121123-0000" and found[0].audio.is_file()
    assert reject.kind == "empty text"
    assert len(read(chapter / "84-121123.trans.txt")[0]) == 2


def test_ljspeech_prefers_the_normalized_text(tmp_path):
    touch(tmp_path / "wavs" / "LJ001-0001.wav", tmp_path / "wavs" / "LJ001-0002.wav")
    rows = [
        'LJ001-0001|Printing, in 1450, "only|Printing, in fourteen fifty, "only',
        "LJ001-0002|in being modern.|",
        "LJ001-0003 no bars",
    ]
    table(tmp_path / "metadata.csv", "\r\n".join(rows))
    assert detect_layout(tmp_path, Columns()) == detect_layout(tmp_path / "metadata.csv", Columns()) == "ljspeech"
    found, (reject,) = read(tmp_path)
    assert [item.utterance.text for item in found] == ['Printing, in fourteen fifty, "only', "in being modern."]
    assert found[0].utterance.extra == {"id": "LJ001-0001"} and found[0].audio.is_file()
    assert reject.kind == "broken row" and "line 3" in reject.reason


def common_voice(folder: Path, name: str, *rows: tuple[str, str]) -> None:
    lines = ["client_id\tpath\tsentence\tup_votes\tgender\tlocale"]
    lines += [f"client-{path}\t{path}\t{sentence}\t2\t\tde" for path, sentence in rows]
    table(folder / name, "\n".join(lines) + "\n")


def test_common_voice_reads_its_splits_apart(tmp_path):
    touch(tmp_path / "clips" / "a.mp3", tmp_path / "clips" / "b.mp3")
    common_voice(tmp_path, "train.tsv", ("a.mp3", "Eins"))
    common_voice(tmp_path, "test.tsv", ("b", "Zwei"))
    common_voice(tmp_path, "validated.tsv", ("a.mp3", "Eins"), ("b.mp3", "Zwei"))
    common_voice(tmp_path, "invalidated.tsv", ("c.mp3", "refused"))
    table(tmp_path / "clip_durations.tsv", "clip\tduration[ms]\na.mp3\t1234\n")
    found, rejects = read(tmp_path)
    assert [(item.name, item.utterance.extra["split"]) for item in found] == [("clips/b", "test"), ("clips/a", "train")]
    extra = {"speaker": "client-a.mp3", "language": "de", "up_votes": "2", "split": "train"}
    assert found[1].utterance.extra == extra and not rejects
    assert [item.utterance.text for item in read(tmp_path / "validated.tsv")[0]] == ["Eins", "Zwei"]


def test_manifest_keeps_unknown_keys_and_parts(tmp_path):
    row = {"audio_filepath": "x/a.wav", "text": "one", "offset": 2, "duration": 1.5, "speaker": "ann", "mood": [1, 2]}
    rows = [json.dumps(row), "{broken", '{"text": "no audio"}', '{"audio_filepath": "b.wav", "text": 7}']
    table(tmp_path / "all.jsonl", "\r\n".join(rows), "utf-8-sig")
    (item,), rejects = read(tmp_path)
    assert (item.utterance.offset, item.utterance.duration, item.name) == (2.0, 1.5, "x/a")
    assert item.utterance.extra == {"speaker": "ann", "mood": [1, 2]}
    assert [(reject.kind, reject.reason.split(": ")[0].split(", ")[1]) for reject in rejects] == [
        ("broken row", f"line {number}") for number in (2, 3, 4)
    ]


@pytest.mark.parametrize("name", ["metadata.jsonl", "set.json"])
def test_a_manifest_with_other_keys(tmp_path, name):
    """Those of tables are known, such as in the metadata.jsonl of Hugging Face's audio folders."""
    rows = [{"file_name": f"data/{text}.wav", "transcription": text, "text": "raw", "speaker": "ann"} for text in "ab"]
    path = table(tmp_path / name, "\n".join(map(json.dumps, rows)))
    found, rejects = read(path, audio="file_name", text="transcription")
    assert [(one.utterance.audio, one.utterance.text, one.utterance.extra) for one in found] == [
        (tmp_path / f"data/{text}.wav", text, {"speaker": "ann", "source_text": "raw"}) for text in "ab"
    ]
    assert not rejects
    with pytest.raises(InputError, match=r"--text-column .*file_name, .*'said'"):
        read(path, audio="file_name", text="said")
    assert [one.utterance.text for one in read(tmp_path)[0]] == ["raw", "raw"]


def test_folder_of_manifests_keeps_its_splits(tmp_path):
    for split in ("train", "dev"):
        table(tmp_path / f"{split}.jsonl", json.dumps({"audio_filepath": f"{split}.wav", "text": split}))
    table(tmp_path / "notes.json", '{"unrelated": 1}')
    found, _ = read(tmp_path)
    assert [(item.utterance.text, item.utterance.extra) for item in found] == [
        ("dev", {"split": "dev"}),
        ("train", {"split": "train"}),
    ]


def test_audio_elsewhere_never_leaves_the_output_folder(tmp_path):
    row = json.dumps({"audio_filepath": "../../elsewhere/a.wav", "text": "one"})
    (tmp_path / "corpus").mkdir()
    (item,), _ = read(table(tmp_path / "corpus" / "m.jsonl", row))
    assert item.name == "elsewhere/a"


@pytest.mark.parametrize("content", ["", "no header that says anything\n1,2\n", "\x00\x01"])
def test_what_is_no_corpus_is_refused_in_one_line(tmp_path, content):
    path = table(tmp_path / "t.csv", content)
    with pytest.raises(InputError) as refusal:
        read(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_tables_that_cannot_be_used_say_why_and_those_below_are_named(tmp_path):
    touch(tmp_path / "in" / "a.wav")
    table(tmp_path / "in" / "t.csv", "path,said\na.wav,x\n")
    for path in (tmp_path / "in", tmp_path / "in" / "t.csv"):
        with pytest.raises(InputError, match=r"t\.csv: .*--text-column .*path, said"):
            read(path)
    table(tmp_path / "in" / "t.csv", "path,text\na.wav,caf\xe9\n", "cp1252")
    with pytest.raises(InputError, match=r"t.csv, line 2: .*UTF-8"):
        read(tmp_path / "in")
    (tmp_path / "hub" / "train").mkdir(parents=True)
    table(tmp_path / "hub" / "train" / "metadata.csv", "file_name,text\na.wav,x\n")
    with pytest.raises(InputError, match=r": train"):
        read(tmp_path / "hub")


def test_missing_input_and_empty_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no recordings"):
        read(tmp_path)


def test_unreadable_table_beside_sidecars_does_not_matter(tmp_path):
    touch(tmp_path / "one.wav")
    table(tmp_path / "one.txt", "hello")
    table(tmp_path / "notes.csv", "Grüße,text", "latin-1")
    assert len(read(tmp_path)[0]) == 1


def test_a_manifest_of_all_leaves_the_others_their_splits(tmp_path):
    touch(tmp_path / "a.wav", tmp_path / "b.wav")
    lines = [json.dumps({"audio_filepath": f"{name}.wav", "text": name}) for name in "ab"]
    for name, some in (("all", lines), ("train", lines[:1]), ("test", lines[1:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    found, rejects = read(tmp_path)
    assert {item.utterance.text: item.utterance.extra["split"] for item in found} == {"a": "train", "b": "test"}
    assert [reject.kind for reject in rejects] == ["duplicate"] * 2
