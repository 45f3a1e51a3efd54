"""Archives and columnar files are read as the corpora that they hold, and nothing in them reaches outside."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.config import PreprocessConfig
from focusasr.data.preprocess import preprocess
from focusasr.runtime.errors import InputError

RATE_HZ = 16_000
TEXTS = {"a": "one", "b": "two"}


def wav(hz: float = 440.0, seconds: float = 0.5) -> bytes:
    out = io.BytesIO()
    soundfile.write(
        out, 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ), RATE_HZ, format="WAV"
    )
    return out.getvalue()


def members(texts: dict[str, str] = TEXTS) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for number, (name, text) in enumerate(texts.items()):
        files |= {f"{name}.wav": wav(300.0 + 100 * number + len(text)), f"{name}.txt": text.encode()}
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tarred:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tarred.addfile(info, io.BytesIO(content))
    return path


def rows(report) -> list[dict]:
    return [json.loads(line) for line in report.manifest.read_text().splitlines()]


@pytest.mark.parametrize("name", ["shard-000000.tar", "corpus.zip", "corpus.tar.gz"])
def test_archives_are_read_and_a_second_run_reuses_their_utterances(tmp_path, name):
    path = pack(tmp_path / "in" / name, members())
    report = preprocess([path], tmp_path / "out")
    assert {row["text"] for row in rows(report)} == {"one", "two"} and not report.rejects
    assert not (tmp_path / "out" / ".unpacked").exists()
    again = preprocess([path.parent], tmp_path / "out")
    assert again.reused == 2 == again.kept


def test_shards_of_splits_keep_them(tmp_path):
    for split, word in (("train", "x"), ("dev", "y")):
        for shard in range(2):
            texts = {f"{number}": f"{word}{shard}{number}" for number in range(2)}
            pack(tmp_path / "in" / f"{split}-{shard:06}.tar", members(texts))
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    assert report.splits == {"train": 4, "dev": 4} and len({row["audio_filepath"] for row in rows(report)}) == 8


def test_listed_shards_and_shards_of_one_name_are_all_read(tmp_path):
    for folder in ("train", "test"):
        pack(tmp_path / "in" / folder / "data.tar", members({"0": folder}))
    report = preprocess([tmp_path / "in"], tmp_path / "out")
    assert report.splits == {"train": 1, "test": 1}
    listed = tmp_path / "in" / "shards.list"
    listed.write_text(f"train/data.tar\n{tmp_path / 'in' / 'test' / 'data.tar'}\n")
    assert preprocess([listed], tmp_path / "other").kept == 2
    listed.write_text("train/gone.tar\n")
    with pytest.raises(InputError, match=r"shards.list: .*'train/gone.tar'"):
        preprocess([listed], tmp_path / "third")


@pytest.mark.parametrize("folder", ["", "corpus/"])
def test_a_zipped_table_is_read(tmp_path, folder):
    files = {f"{folder}wavs/a.wav": wav(), f"{folder}t.csv": b"path,text\nwavs/a.wav,one\n"}
    assert [row["text"] for row in rows(preprocess([pack(tmp_path / "c.zip", files)], tmp_path / "out"))] == ["one"]


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_nothing_in_an_archive_leaves_its_folder(tmp_path, name):
    evil = {"../../evil.wav": wav(), "/tmp/focusasr-evil.wav": wav(), "run.sh": b"exit", **members()}
    report = preprocess([pack(tmp_path / "in" / name, evil)], tmp_path / "out")
    assert report.kept == 2
    assert not [path for path in tmp_path.rglob("*") if path.stem in ("evil", "run")]
    assert not Path("/tmp/focusasr-evil.wav").exists()


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.tar.gz"])
def test_a_torn_archive_is_one_message(tmp_path, name):
    path = pack(tmp_path / name, members())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"x\..*: cannot be unpacked"):
        preprocess([path], tmp_path / "out")
    assert not (tmp_path / "out" / ".unpacked").exists()


# Parquet and arrow


def write_columns(path: Path, table: dict[str, list]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    columns = pyarrow.table(table)
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(columns, path)
        return path
    opened = pyarrow.ipc.new_file if path.stem == "file" else pyarrow.ipc.new_stream
    with opened(str(path), columns.schema) as out:
        out.write_table(columns)
    return path


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "stream.arrow", "file.arrow"])
def test_columnar_files_hold_or_name_their_audio(tmp_path, name):
    audio = [{"bytes": wav(300), "path": "x.wav"}, {"bytes": wav(500), "path": None}]
    path = write_columns(tmp_path / name, {"audio": audio, "sentence": ["one", "two"], "speaker_id": ["ann", "bob"]})
    report = preprocess([path], tmp_path / "out")
    assert [(row["text"], row["speaker"]) for row in rows(report)] == [("one", "ann"), ("two", "bob")]
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(wav())
    path = write_columns(tmp_path / name, {"path": ["a.wav"], "text": ["one"]})
    assert preprocess([path], tmp_path / "other").kept == 1


def test_columnar_files_without_text_name_their_columns(tmp_path):
    path = write_columns(tmp_path / "t.parquet", {"audio": [b""], "said": ["x"]})
    with pytest.raises(InputError, match=r"t.parquet: .*--text-column .*audio, said"):
        preprocess([path], tmp_path / "out")
    report = preprocess([path], tmp_path / "out", PreprocessConfig(text_column="said"))
    assert report.rejects == {"unreadable": 1}


def test_a_torn_parquet_is_one_message(tmp_path):
    path = write_columns(tmp_path / "t.parquet", {"audio": [wav()], "text": ["x"]})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"t.parquet: cannot be read"):
        preprocess([path], tmp_path / "out")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"t.parquet: .*pyarrow.*pip install .*\[data\]"):
        preprocess([tmp_path / "t.parquet"], tmp_path / "out")
