"""Manifests: what is written is read again, and a bad line is named by its number."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.data.manifest import Utterance, parse_line, read_manifest, write_manifest
from focusasr.runtime.errors import InputError


def write(folder: Path, *lines: str, ending: str = "\n", start: bytes = b"") -> Path:
    path = folder / "set.jsonl"
    path.write_bytes(start + "".join(line + ending for line in lines).encode())
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    row = {
        "audio_filepath": "a.wav",
        "text": "ja – 你好",
        "offset": 1,
        "duration": 2.5,
        "speaker": "x",
        "tags": [1, None],
    }
    (utterance,) = read_manifest(write(tmp_path, json.dumps(row)))
    assert utterance == Utterance(tmp_path / "a.wav", "ja – 你好", 1.0, 2.5, {"speaker": "x", "tags": [1, None]})


def test_defaults(tmp_path: Path) -> None:
    (utterance,) = read_manifest(write(tmp_path, '{"audio_filepath": "a.wav", "text": ""}'))
    assert utterance == Utterance(tmp_path / "a.wav", "", 0.0, None, {})
    (utterance,) = read_manifest(
        write(tmp_path, '{"audio_filepath": "a.wav", "text": "", "offset": null, "duration": null}')
    )
    assert (utterance.offset, utterance.duration) == (0.0, None)


@pytest.mark.parametrize(("ending", "start"), [("\r\n", b""), ("\n", b"\xef\xbb\xbf"), ("\n \n\t\r\n\n", b"\n\n")])
def test_other_editors_files_are_read(tmp_path: Path, ending: str, start: bytes) -> None:
    rows = [json.dumps({"audio_filepath": f"{name}.wav", "text": name}) for name in "ab"]
    found = read_manifest(write(tmp_path, *rows, ending=ending, start=start))
    assert [utterance.text for utterance in found] == ["a", "b"]


def test_no_newline_at_the_end_and_separators_inside(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"audio_filepath": "a", "text": "x\u2028y\u0085z"}',
        '{"audio_filepath": "b", "text": ""}',
        ending="\n",
    )
    path.write_bytes(path.read_bytes().rstrip())
    assert [utterance.text for utterance in read_manifest(path)] == ["x\u2028y\u0085z", ""]


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    rows = [json.dumps({"audio_filepath": name, "text": ""}) for name in ("wav/a.wav", "/abs/b.wav", "../c.wav")]
    write(tmp_path / "data", *rows)
    monkeypatch.chdir(tmp_path)
    found = [utterance.audio for utterance in read_manifest(Path("data/set.jsonl"))]
    assert found[:2] == [tmp_path / "data/wav/a.wav", Path("/abs/b.wav")]
    assert found[2].resolve() == (tmp_path / "c.wav").resolve()
    assert all(path.is_absolute() for path in found)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{audio_filepath: 1}", "not JSON"),
        ("a.wav\thello", "not JSON"),
        ('{"audio_filepath": "a.wav"', "not JSON"),
        ("[" * 100_000, "not a flat JSON object"),
        ('["a.wav", "text"]', "expected an object with audio_filepath and text, got list"),
        ("null", "got NoneType"),
        ("{}", "audio_filepath must name a file, got None"),
        ('{"audio": "a.wav", "text": "x"}', "audio_filepath must name a file, got None"),
        ('{"audio_filepath": ""}', "audio_filepath must name a file, got ''"),
        ('{"audio_filepath": 7}', "audio_filepath must name a file, got 7"),
        ('{"audio_filepath": "a\\u0000b"}', "audio_filepath must name a file"),
        ('{"audio_filepath": "\\ud800.wav"}', "audio_filepath must name a file"),
        ('{"audio_filepath": "a.wav"}', "text is missing"),
        ('{"audio_filepath": "a.wav", "text": null}', "text must be a string"),
        ('{"audio_filepath": "a.wav", "text": ["x"]}', "text must be a string"),
        ('{"audio_filepath": "a.wav", "text": "\\ud800"}', "text must be a string of whole characters"),
        ('{"audio_filepath": "a.wav", "duration": "3"}', "duration must be seconds, a number from 0 to 1e+09, got '3'"),
        ('{"audio_filepath": "a.wav", "duration": true}', "duration must be seconds"),
        ('{"audio_filepath": "a.wav", "duration": -1}', "duration must be seconds"),
        ('{"audio_filepath": "a.wav", "offset": NaN}', "offset must be seconds"),
        ('{"audio_filepath": "a.wav", "offset": Infinity}', "offset must be seconds"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, '{"audio_filepath": "fine.wav", "text": ""}', "", line)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


def test_unreadable_manifests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        read_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match=r"folder.*preprocess"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(InputError, match=r"folder.* manifest\.jsonl$"):
        read_manifest(tmp_path)
    (tmp_path / "sound.wav").write_bytes(b"RIFF\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="no manifest"):
        read_manifest(tmp_path / "sound.wav")
    assert read_manifest(write(tmp_path)) == []


def test_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        Utterance(tmp_path / "wav" / "ä b.wav", "„ja“ \u2028 \U0001f600\n", 0.5, 1.25, {"id": "x", "speaker": None}),
        Utterance(Path("/elsewhere/c.wav"), "", 0.0, None),
    ]
    monkeypatch.chdir(tmp_path)
    write_manifest(Path("set.jsonl"), wanted)
    assert read_manifest(Path("set.jsonl")) == wanted
    rows = [json.loads(line) for line in Path("set.jsonl").read_text("utf-8").split("\n") if line]
    assert rows[0]["audio_filepath"] == "wav/ä b.wav"  # so that the folder can be moved
    assert rows[1] == {"audio_filepath": "/elsewhere/c.wav", "text": ""}
    assert os.listdir() == ["set.jsonl"]


def test_a_file_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    wanted = [Utterance(tmp_path / os.fsdecode(b"caf\xe9.wav"), "né")]
    write_manifest(tmp_path / "set.jsonl", wanted)
    assert read_manifest(tmp_path / "set.jsonl") == wanted


def test_nothing_is_left_of_a_manifest_that_failed(tmp_path: Path) -> None:
    def utterances():
        yield Utterance(tmp_path / "a.wav")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_manifest(tmp_path / "set.jsonl", utterances())
    assert not list(tmp_path.iterdir())


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
    lambda name: name[0] != "/"
)
values = st.none() | st.booleans() | st.integers() | st.text()
rows = st.builds(
    Utterance,
    audio=names.map(lambda name: Path("/data") / name),
    text=st.text(),
    offset=st.floats(0, 1e6),
    duration=st.none() | st.floats(0, 1e6),
    extra=st.dictionaries(st.text(), values).map(
        lambda extra: {k: v for k, v in extra.items() if k not in ("audio_filepath", "text", "offset", "duration")}
    ),
)


@settings(deadline=None)
@given(utterance=rows)
def test_any_utterance_survives_its_line(utterance: Utterance) -> None:
    line = json.dumps(utterance.to_json(Path("/data")), ensure_ascii=False)
    assert parse_line(line, 1, Path("/data/set.jsonl")) == utterance
