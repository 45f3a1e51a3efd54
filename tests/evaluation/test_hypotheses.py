"""Texts without a model: every form that they come in finds its utterance, and what does not fit is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from focusasr.data.manifest import Utterance
from focusasr.evaluation.hypotheses import is_ignored, read_hypotheses, read_references
from focusasr.runtime.errors import InputError

SET = [
    Utterance(Path("/sound/a.wav"), "one", extra={"id": "utt-1"}),
    Utterance(Path("/sound/b.wav"), "two"),
    Utterance(Path("/sound/b.wav"), "three", offset=1.5),
]


def wrote(name: str, *lines: object) -> Path:
    path = Path(name)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_plain_lines_go_in_order_and_an_empty_line_is_an_empty_text():
    assert read_hypotheses(wrote("h.txt", "uno", "", "tre"), SET) == ["uno", "", "tre"]
    with pytest.raises(InputError, match=r"h.txt: 2 lines for 3 utterances"):
        read_hypotheses(wrote("h.txt", "uno", "due"), SET)


def test_what_transcribe_prints_finds_its_files_in_any_order():
    path = wrote("h.txt", "/sound/b.wav\tdue", "/sound/a.wav\tuno")
    assert read_hypotheses(path, SET) == ["uno", "due", None]
    assert read_hypotheses(wrote("h.txt", "/sound/b.wav", "/sound/a.wav\tuno"), SET) == ["uno", "", None]
    with pytest.raises(InputError, match=r"h.txt, line 2: no tab"):
        read_hypotheses(wrote("h.txt", "/sound/b.wav\tdue", "/sound/a.wav uno"), SET)
    with pytest.raises(InputError, match=r"h.csv: .*<TAB>.*JSON Lines"):
        read_hypotheses(wrote("h.csv", "path,text", "/sound/b.wav,due"), SET)
    relative = [Utterance(Path("clips/a.wav").absolute(), "one")]
    assert read_hypotheses(wrote("h.tsv", "clips/a.wav\tuno"), relative) == ["uno"]


def test_json_lines_are_found_by_path_offset_and_id():
    rows = [
        {"id": "utt-1", "pred_text": "uno", "text": "the reference"},
        {"audio_filepath": "/sound/b.wav", "offset": 1.5, "hypothesis": "tre", "reference": "three"},
        {"audio_filepath": "/sound/b.wav", "hypothesis": None},
    ]
    assert read_hypotheses(wrote("h.jsonl", *rows), SET) == ["uno", None, "tre"]


def test_parts_that_begin_together_are_told_apart_by_their_duration():
    parts = [Utterance(Path("/sound/b.wav"), "two", 0.0, seconds) for seconds in (1.0, 2.0)]
    rows = [
        {"audio_filepath": "/sound/b.wav", "duration": s, "text": text} for s, text in ((2.0, "both"), (1.0, "first"))
    ]
    assert read_hypotheses(wrote("h.jsonl", *rows), parts) == ["first", "both"]
    with pytest.raises(InputError, match=r"lines 1 and 3: two texts for /sound/b.wav"):
        read_hypotheses(wrote("h.jsonl", *rows, {**rows[0], "text": "other"}), parts)
    near = [{**row, "duration": row["duration"] + 0.012} for row in rows]
    assert read_hypotheses(wrote("h.jsonl", *near), parts) == ["first", "both"], "as another tool rounds them"
    far = [{**row, "duration": row["duration"] + 0.4} for row in rows]
    assert read_hypotheses(wrote("h.jsonl", *far), parts) == [None, None]
    assert read_hypotheses(wrote("h.jsonl", *({**row, "text": "same"} for row in far)), parts) == ["same", "same"]
    assert read_references(wrote("h.jsonl", rows[0]))[0].duration == 2.0


@pytest.mark.parametrize("duration", ["3.0", "x", None, float("nan"), [1]], ids=str)
def test_a_duration_that_is_none_tells_nothing_apart(duration: Any):
    row = {"audio_filepath": "/sound/b.wav", "offset": "", "duration": duration, "text": "due"}
    assert read_hypotheses(wrote("h.jsonl", row), [Utterance(Path("/sound/b.wav"), "two", 0.0, 3.0)]) == ["due"]
    with pytest.raises(InputError, match=r"h.jsonl, line 1: offset must be seconds, got 'x'"):
        read_hypotheses(wrote("h.jsonl", {**row, "offset": "x"}), SET)


def test_a_recording_is_found_under_another_suffix_where_nothing_else_is(capsys):
    prepared = [Utterance(Path(f"/data/audio/{name}.flac"), "x") for name in ("u1", "u2", "u3")]
    rows = ["recordings/u1.wav\tuno", "recordings/u2.wav\tdue", "other/u3.wav\ttre", "more/u3.wav\tdrei"]
    assert read_hypotheses(wrote("h.tsv", *rows), prepared) == ["uno", "due", None], "two are called u3"
    said = "focusasr: h.tsv: found by names without their suffix, such as recordings/u1.wav for /data/audio/u1.flac\n"
    assert capsys.readouterr().err == said
    several = [*prepared, Utterance(Path("/data/deep/u1.flac"), "y")]
    assert read_hypotheses(wrote("h.tsv", *rows), several) == [None, "due", None, None], "u1 is two"
    for other in (["/test/u1.flac\tuno", "/test/u2.flac\tdue"], ["(u1.x)\tuno", "u2.1\tdue"]):
        with pytest.raises(InputError, match="is it of another set"):
            read_hypotheses(wrote("h.tsv", *other), prepared)


def test_paths_are_read_from_the_folder_of_the_file():
    Path("run").mkdir()
    path = wrote("run/h.jsonl", {"audio_filepath": "x.wav", "text": "hi"})
    assert read_hypotheses(path, [Utterance(Path("run/x.wav").absolute(), "")]) == ["hi"]


def test_kaldi_and_sclite_files_name_their_ids():
    assert read_hypotheses(wrote("text", "utt-1 uno  uno", "b due"), SET) == ["uno  uno", "due", None]
    assert read_hypotheses(wrote("h.trn", ";; comment", "uno (utt-1)", "(b)"), SET) == ["uno", "", None]
    with pytest.raises(InputError, match=r"h.trn, line 1: no id in brackets"):
        read_hypotheses(wrote("h.trn", "uno"), SET)


def test_another_set_and_two_texts_are_refused():
    with pytest.raises(InputError, match=r"/sound/a.wav; "):
        read_hypotheses(wrote("h.tsv", "c.wav\tx"), SET)
    with pytest.raises(InputError, match=r"h: .*folder"):
        Path("h").mkdir()
        read_hypotheses(Path("h"), SET)
    with pytest.raises(InputError, match=r"lines 1 and 2: two texts for a.wav"):
        read_hypotheses(wrote("h.tsv", "a.wav\tx", "a.wav\ty"), SET)
    assert read_hypotheses(wrote("h.tsv", "a.wav\tx", "a.wav\tx"), SET)[0] == "x"


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"audio_filepath": "a.wav"}', '{"text": 3}', '{"text": "", "offset": "x"}']
)
def test_a_line_that_is_no_hypothesis_is_named(line):
    with pytest.raises(InputError, match=r"h.jsonl, line 2"):
        read_hypotheses(wrote("h.jsonl", {"text": "fine"}, line), SET)


def test_references_without_sound_are_called_by_id_or_line():
    plain = read_references(wrote("r.txt", "one two", "three"))
    assert [(str(one.audio), one.text) for one in plain] == [("r.txt:1", "one two"), ("r.txt:2", "three")]
    (keyed,) = read_references(wrote("text", "utt-9 nine"))
    assert (str(keyed.audio), keyed.text, keyed.extra) == ("utt-9", "nine", {"id": "utt-9"})
    (row,) = read_references(wrote("r.jsonl", {"id": "k", "reference": "r", "hypothesis": "h", "speaker": "ann"}))
    assert (row.text, row.extra) == ("r", {"id": "k", "speaker": "ann"})
    with pytest.raises(InputError, match="no references"):
        read_references(wrote("none.txt"))


def test_lines_find_their_utterance_by_any_path_and_never_by_a_shared_name(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    audios = [tmp_path / "h" / ".." / name for name in ("x/1.wav", "x/2.wav", "y/1.wav")]
    utterances = [Utterance(audio, "", extra={"id": place}) for place, audio in enumerate(audios)]
    path = tmp_path / "h" / "hyp.tsv"
    path.write_text("../x/1.wav\tred\n../x/2.wav\tgreen\n")
    assert read_hypotheses(path, utterances) == ["red", "green", None]
    path.write_text("1.wav\tred\n2.wav\tgreen\n")
    assert read_hypotheses(path, utterances) == [None, "green", None]
    numbered = tmp_path / "ids.jsonl"
    numbered.write_text('{"id": 0, "text": "red"}\n{"id": 2, "text": "blue"}\n')
    assert read_hypotheses(numbered, utterances) == ["red", None, "blue"]


def test_plain_lines_that_begin_with_ids_are_kaldis_under_any_name(capsys):
    references = read_references(wrote("text", "utt1 one two", "utt2 three"))
    assert read_hypotheses(wrote("10.txt", "utt2 three", "utt1 one  too"), references) == ["one  too", "three"]
    assert "10.txt: lines begin with ids, utt2 and so on" in capsys.readouterr().err
    assert read_hypotheses(wrote("10.txt", "utt1 one", "utt3 three"), references) == ["one", None]
    assert read_hypotheses(wrote("10.txt", "one two", "three"), references) == ["one two", "three"]
    with pytest.raises(InputError, match=r"utt8.* utt1"):
        read_hypotheses(wrote("10.txt", "utt8 one", "utt9 three"), references)
    capsys.readouterr()
    by_stem = [Utterance(Path(f"/sound/{name}.wav"), "x") for name in ("a", "b")]
    assert read_hypotheses(wrote("h.txt", "b due", "a uno"), by_stem) == ["uno", "due"]


def test_references_that_begin_with_ids_lose_them(capsys):
    plain = read_references(wrote("r.txt", "utt1 one two", "utt2 three"))
    assert [(one.text, one.extra) for one in plain] == [("one two", {"id": "utt1"}), ("three", {"id": "utt2"})]
    assert "r.txt: lines begin with ids, utt1 and so on" in capsys.readouterr().err
    assert read_hypotheses(wrote("h.txt", "utt2 three", "utt1 one"), plain) == ["one", "three"]
    numbered = read_references(wrote("r.txt", "0001 one", "0002 two"))
    assert [one.text for one in numbered] == ["one", "two"]


@pytest.mark.parametrize("lines", ["1990s music|2nd try", "1 2 3|2 3 1", "covid-19 is|covid-19 was", "utt1 alone"])
def test_words_with_digits_are_no_ids(lines: str):
    assert [one.text for one in read_references(wrote("r.txt", *lines.split("|")))] == lines.split("|")


def test_lines_in_another_order_are_refused():
    texts = ["the cat sat", "hello world", "do not go", "four small words"]
    references = read_references(wrote("r.txt", *texts))
    with pytest.raises(InputError, match=r"another order .* line 1 fits number 2"):
        read_hypotheses(wrote("h.txt", *texts[1:], texts[0]), references)
    commands = read_references(wrote("c.txt", *("yes no up down left right go stop".split() * 3)))
    assert read_hypotheses(wrote("h.txt", *["yes"] * 24), commands) == ["yes"] * 24
    garbage = ["x y", "z", "q", "p"]
    assert read_hypotheses(wrote("h.txt", *garbage), references) == garbage


def test_files_that_share_few_names_are_refused():
    references = [Utterance(Path(f"/a/{number}.wav"), "") for number in range(4)]
    with pytest.raises(InputError, match=r" 1 of 4 .* 4 "):
        read_hypotheses(wrote("h.tsv", "0.wav\tx", "7.wav\ty", "8.wav\ty", "9.wav\ty"), references)
    assert read_hypotheses(wrote("h.tsv", "0.wav\tx"), references) == ["x", None, None, None]


STM = (
    ";; comment",
    "rec 1 ann 0.00 2.00 <o,f0,male> the cat sat",
    "rec 1 bob 2.00 4.00 hello world",
    "rec 1 bob 4.0 5.0 ignore_time_segment_in_scoring",
)


def test_stm_is_read_as_segments():
    references = read_references(wrote("r.stm", *STM))
    assert [(str(one.audio), one.offset, one.duration, one.text) for one in references[:2]] == [
        ("rec", 0.0, 2.0, "the cat sat"),
        ("rec", 2.0, 2.0, "hello world"),
    ]
    assert [is_ignored(one) for one in references] == [False, False, True]
    assert references[0].extra == {"speaker": "ann", "channel": 0}
    other = ("rec 1 bob 2.00 4.00 hello word", "rec 1 ann 0.00 2.00 <o> the cat sits")
    assert read_hypotheses(wrote("h.stm", *other), references)[:2] == ["the cat sits", "hello word"]
    with pytest.raises(InputError, match=r"h.stm, line 1: the end"):
        read_hypotheses(wrote("h.stm", "rec 1 ann 2 1 x"), references)


def test_words_of_ctm_go_to_the_segments_that_hold_them():
    references = read_references(wrote("r.stm", *STM))
    words = ["rec 1 0.1 0.3 the", "rec 1 2.2 0.1 word", "rec 1 0.6 0.3 cat 0.9", "rec 1 4.4 0.1 noise", "rec 2 0 1 x"]
    assert read_hypotheses(wrote("h.ctm", *words), references) == ["the cat", "word", "noise"]
    by_id = [Utterance(Path("a.wav"), "", 7.0, 2.0, {"id": "u1"}), Utterance(Path("a.wav"), "", 9.0, 2.0, {"id": "u2"})]
    assert read_hypotheses(wrote("h.ctm", "u2 1 0.5 0.1 b", "u2 1 0.1 0.1 a"), by_id) == [None, "a b"]
    whole = read_references(wrote("r.ctm", "rec 1 0.5 0.2 world", "rec 1 0.1 0.2 hello"))
    assert [one.text for one in whole] == ["hello world"]
    with pytest.raises(InputError, match="no word is of an utterance"):
        read_hypotheses(wrote("h.ctm", "other 1 0 1 x"), references)
    with pytest.raises(InputError, match=r"h.ctm, line 1: expected FILE CHANNEL"):
        read_hypotheses(wrote("h.ctm", "rec 1 x"), references)


def test_subtitles_are_one_text():
    cues = ("1", "00:00:00,000 --> 00:00:01,000", "hello", "", "2", "00:00:01,000 --> 00:00:02,000", "world")
    (whole,) = read_references(wrote("r.srt", *cues))
    assert whole.text == "hello world"
    assert read_hypotheses(wrote("h.vtt", "WEBVTT", "", "00:00.000 --> 00:02.000", "hello word"), [whole]) == [
        "hello word"
    ]


@pytest.mark.parametrize(
    ("ids", "texts"), [("yes no stop", "yes|no|stop"), ("0 1 2", "2|0|1"), ("hi you we", "hi a|you b|we c")]
)
def test_plain_words_that_are_ids_too_stay_words(ids: str, texts: str, capsys):
    said = texts.split("|")
    references = [
        Utterance(Path(f"{key}.wav"), text, extra={"id": key}) for key, text in zip(ids.split(), said, strict=True)
    ]
    assert read_hypotheses(wrote("h.txt", *said), references) == said and not capsys.readouterr().err
