"""Output files against the bytes that openai/whisper 20250625 writes, and names that never collide."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from focusasr.runtime.errors import InputError
from focusasr.transcription.result import Segment, Transcript
from focusasr.transcription.writers import FORMATS, output_stems, render, to_json_dict, write


def segment(id: int, start: float, end: float, text: str, words=None) -> Segment:
    return Segment(id, round(start * 100), start, end, text, [7, 8], 0.0, -0.25, 1.5, 0.125, words)


SHORT = Transcript(
    " Grüße -->\t5. Ja",
    [segment(0, 0.0, 2.4996, " Grüße -->\t5. "), segment(1, 59.9996, 3725.5, " Ja")],
    "de",
)
EXPECTED = {
    "txt": "Grüße -->\t5.\nJa\n",
    "vtt": "WEBVTT\n\n00:00.000 --> 00:02.500\nGrüße ->\t5.\n\n01:00.000 --> 01:02:05.500\nJa\n\n",
    "srt": "1\n00:00:00,000 --> 00:00:02,500\nGrüße ->\t5.\n\n2\n00:01:00,000 --> 01:02:05,500\nJa\n\n",
    "tsv": "start\tend\ttext\n0\t2500\tGrüße --> 5.\n60000\t3725500\tJa\n",
    "json": (
        '{"text": " Gr\\u00fc\\u00dfe -->\\t5. Ja", "segments": ['
        '{"id": 0, "seek": 0, "start": 0.0, "end": 2.4996, "text": " Gr\\u00fc\\u00dfe -->\\t5. ", "tokens": [7, 8], '
        '"temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.5, "no_speech_prob": 0.125}, '
        '{"id": 1, "seek": 6000, "start": 59.9996, "end": 3725.5, "text": " Ja", "tokens": [7, 8], '
        '"temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.5, "no_speech_prob": 0.125}], '
        '"language": "de"}'
    ),
}
EMPTY = {
    "txt": "",
    "vtt": "WEBVTT\n\n",
    "srt": "",
    "tsv": "start\tend\ttext\n",
    "json": '{"text": "", "segments": [], "language": null}',
}


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_are_those_of_whisper(tmp_path, format):
    (path,) = write(SHORT, tmp_path / "talk", [format])
    assert path == tmp_path / f"talk.{format}"
    assert path.read_bytes() == EXPECTED[format].encode()


@pytest.mark.parametrize("format", FORMATS)
def test_silence_gives_a_whole_file_without_text(format):
    assert render(Transcript("", [], None), format) == EMPTY[format]


def test_words_stand_in_json_only_where_there_are_some_and_time_the_cues():
    words = [
        {"word": " Hel", "start": 0.5, "end": 0.7, "probability": 0.9},
        {"word": "lo", "start": 0.7, "end": 1.25, "probability": 0.8},
    ]
    transcript = Transcript("Hello", [segment(0, 0.0, 2.0, " Hello", words), segment(1, 2.0, 3.0, " you")], "en")
    first, second = to_json_dict(transcript)["segments"]
    assert first["words"] == words
    assert list(first)[-1] == "words"
    assert "words" not in second
    assert render(transcript, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,250\nHello\n\n2\n00:00:02,000 --> 00:00:03,000\nyou\n\n"
    )
    assert render(transcript, "tsv").split("\n")[1] == "0\t2000\tHello"


def test_line_breaks_inside_a_segment_never_break_a_row_or_a_cue():
    transcript = Transcript("a", [segment(0, 0.0, 1.0, "a\nb\r\nc")], None)
    assert render(transcript, "txt") == "a b c\n"
    assert render(transcript, "tsv") == "start\tend\ttext\n0\t1000\ta b c\n"
    assert render(transcript, "vtt") == "WEBVTT\n\n00:00.000 --> 00:01.000\na b c\n\n"


def test_names_with_dots_keep_them_and_folders_are_made(tmp_path):
    paths = write(SHORT, tmp_path / "new" / "v1.2 talk", ("txt", "json"))
    assert [path.name for path in paths] == ["v1.2 talk.txt", "v1.2 talk.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["v1.2 talk.json", "v1.2 talk.txt"]
    assert json.loads(paths[1].read_text()) == to_json_dict(SHORT)


def test_unknown_format_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="'docx'; expected: txt, vtt, srt, tsv, json"):
        write(SHORT, tmp_path / "talk", ["txt", "docx"])
    assert list(tmp_path.iterdir()) == []


def test_number_that_json_lacks_writes_nothing(tmp_path):
    broken = Transcript("", [Segment(0, 0, 0.0, 1.0, "", [], 0.0, float("nan"), 0.0, 0.0)], None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(broken, tmp_path / "talk", FORMATS)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        write(SHORT, tmp_path / "file" / "talk", ["txt"])
    (tmp_path / "talk.txt").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write(SHORT, tmp_path / "talk", ["txt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "talk.txt"]


@dataclass(frozen=True)
class Input:
    """What `output_stems` reads of an audio source."""

    path: str


def stems(*paths: str) -> list[str]:
    return [stem.as_posix() for stem in output_stems([Input(path) for path in paths], Path("out"))]  # type: ignore[misc]


def test_outputs_are_named_like_their_files():
    assert stems("x/a.wav", "/y/b.tar.mp3", "-") == ["out/a", "out/b.tar", "out/stdin"]
    assert stems() == []


def test_two_inputs_of_one_base_name_never_overwrite_each_other():
    assert stems("a.wav", "a.mp3", "b.wav") == ["out/a.wav", "out/a.mp3", "out/b"]
    assert stems("x/a.wav", "y/a.wav") == ["out/x-a.wav", "out/y-a.wav"]
    assert stems("p/x/a.wav", "q/x/a.wav", "q/x/a.mp3") == ["out/p-x-a.wav", "out/q-x-a.wav", "out/a.mp3"]
    assert stems("-", "stdin.wav") == ["out/stdin", "out/stdin.wav"]
    assert stems("a.wav", "A.wav", "e\u0301.wav", "\u00e9.mp3")[2:] == ["out/e\u0301.wav", "out/\u00e9.mp3"]


def test_names_do_not_depend_on_the_order_of_the_inputs():
    paths = ["x/a.wav", "y/a.wav", "y/a.mp3", "x-a.wav", "a.wav.flac", "z/A.ogg"]
    forward, backward = stems(*paths), stems(*reversed(paths))
    assert dict(zip(paths, forward, strict=True)) == dict(zip(reversed(paths), backward, strict=True))
    assert len({name.casefold() for name in forward}) == len(paths)


def test_one_file_given_twice_is_numbered():
    assert stems("a.wav", "a.wav", "./a.wav", "a-2.wav") == ["out/a", "out/a-3", "out/a-4", "out/a-2"]
    assert stems("-", "-") == ["out/stdin", "out/stdin-2"]


def test_file_names_that_differ_only_in_where_the_dash_is_stay_apart():
    names = stems("/a-b/c.wav", "/a/b-c.wav", "/b-c.wav")
    assert len(set(names)) == 3


def test_no_name_leads_out_of_the_output_folder(tmp_path):
    odd = ("..wav", "...wav", "../x.wav", ".wav", "b\nc.wav", "d\\..\\e.wav", "..", "...", "a" * 251 + ".wav")
    assert stems(*odd[:4]) == ["out/..wav", "out/...wav", "out/x", "out/.wav"]
    folder = tmp_path / "inner" / "out"
    for stem in output_stems([Input(name) for name in odd], folder):  # type: ignore[misc]
        write(SHORT, stem, FORMATS)
    assert len([*folder.iterdir()]) == len(odd) * len(FORMATS)
    assert ([*tmp_path.iterdir()], [*folder.parent.iterdir()]) == ([folder.parent], [folder])


def test_names_that_are_too_long_are_cut_and_stay_apart():
    paths = ["a" * 251 + ".wav", "b/" + "a" * 251 + ".wav", "b/" + "a" * 250 + "b.wav", "é" * 125 + ".wav"]
    paths += ["/" + "c/" * 400 + "x.wav", "/" + "c/" * 401 + "x.wav", "x.wav"]
    names = [Path(stem).name for stem in stems(*paths)]
    assert len(set(names)) == len(names) and max(len(name.encode()) for name in names) <= 245
    assert names[3] == "é" * 120
