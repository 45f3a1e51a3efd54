"""Whatever a file is called and whatever kind of file it is, it is heard or told in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soundfile

from focusasr.audio.load import load
from focusasr.audio.source import STDIN, Source, find_sources
from focusasr.data.preprocess import preprocess
from focusasr.runtime.errors import InputError
from focusasr.transcription.writers import output_stems
from tests.audio.test_integrity import HEAR, check_line
from tests.helpers.broken_sound import packed, tone
from tests.helpers.sandbox import guarded

NAMES = [
    "a b.wav", "  .wav", "a\nb.wav", "a\r\nb.wav", "a\tb.wav", "\x1b[31mred.wav", "a\u2028b.wav", "a\x85b.wav",
    "3.45\u202fPM.wav", "a\u3000b.wav",
    "🙂.wav", "👩‍👩‍👧.wav", "语音 ünï.wav", "u\u0308.wav", "\u202ereversed.wav", "'\"`.wav", "*.wav", "[ab].wav",
    "{a,b}.wav", "$HOME;&|<>.wav", "~.wav", "-.wav", "--help.wav", "%s%n.wav", "a.wav ", "a.wav.", "no suffix", "..wav",
    "\\n.wav", "x" * 251 + ".wav", "ü" * 125 + "x.wav", os.fsdecode(b"\xff\xfe\n.wav"), os.fsdecode(b"\xc3.wav"),
]  # fmt: skip


def shown(path: Path) -> str:
    """Return what a message calls a file, having checked that this fits one line."""
    name = Source(str(path)).name
    assert len(name.splitlines()) <= 1 and not set("\t\x1b\u202e").intersection(name)
    return name


def test_any_name_is_heard_and_any_name_can_be_told(tmp_path: Path) -> None:
    good, bad = [[tmp_path / folder / name for name in NAMES] for folder in ("good", "bad")]
    for folder, paths, data in (("good", good, packed(tone())), ("bad", bad, b"no sound" * 100)):
        (tmp_path / folder).mkdir()
        for path in paths:
            path.write_bytes(data)
    absent = [path.with_name(f"{path.name[:-5]}?") for path in good]
    paths = [*good, *bad, *absent]
    endings = guarded(HEAR, paths)
    assert [ending.gave for ending in endings] == [1.2] * len(good) + [None] * (len(bad) + len(absent))
    for path, ending in zip(paths[len(good) :], endings[len(good) :], strict=True):
        check_line(str(ending.refused), shown(path))


def test_a_folder_of_any_names_is_found_whole(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    found = {Path(source.path).name for source in find_sources([str(tmp_path)])}
    assert found == {name for name in NAMES if name.endswith(".wav") and not name.startswith(".")}


@pytest.mark.parametrize("line_break", ["\n", "\r", "\x85", "\u2028", "\x0b", "\udcff\n"])
def test_what_stands_for_nothing_is_told_in_one_line(tmp_path: Path, line_break: str) -> None:
    (tmp_path / f"a{line_break}b" / "c").mkdir(parents=True)
    for name in (f"a{line_break}b", f"a{line_break}b/*", f"a{line_break}b/*.wav"):
        with pytest.raises(InputError) as refusal:
            find_sources([str(tmp_path / name)])
        check_line(str(refusal.value), shown(tmp_path / name))


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "nothing.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    (tmp_path / "this.wav").symlink_to(tmp_path / "that.wav")
    (tmp_path / "that.wav").symlink_to(tmp_path / "this.wav")
    (tmp_path / "to pipe.wav").symlink_to(tmp_path / "pipe.wav")
    (tmp_path / "to device.wav").symlink_to("/dev/zero")
    (tmp_path / "in a file.wav").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.wav"))
        names = sorted(path.name for path in tmp_path.iterdir())
        paths = [*(tmp_path / name for name in names), tmp_path / "in a file.wav" / "b.wav"]
        devices = [Path("/dev") / name for name in ("zero", "null", "full", "random", "tty", "stdin")]
        endings = guarded(HEAR, [*paths, *filter(Path.exists, devices), "/proc/self/mem", "/proc/self/status"])
    assert len(endings) >= len(paths) + 5
    for path, ending in zip(paths, endings, strict=False):
        check_line(str(ending.refused), str(path))
    assert all(ending.refused is not None for ending in endings)
    whole = {path.name: str(ending.refused).split(": ", 1)[1] for path, ending in zip(paths, endings, strict=False)}
    assert whole["nothing.wav"].startswith("no such file") and whole["pipe.wav"].startswith("nothing comes out")
    assert whole["socket.wav"].startswith("a device") and "symbolic links" in whole["itself.wav"]


def test_pipes_are_heard(sample: Path, heard: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "late.wav")
    writer = threading.Timer(0.5, lambda: (tmp_path / "late.wav").write_bytes(packed(tone())))
    writer.start()
    assert len(load(tmp_path / "late.wav")) == 19_200
    assert len(load(Source(str(tmp_path / "late.wav"), 0.5, 0.25))) == 4000, "it is read once and kept"
    writer.join()
    within = f"'{sys.executable}' -m focusasr transcribe <(sleep 3; cat '{sample}') <(cat '{sample}') <(true)"
    done = subprocess.run(["bash", "-c", within], capture_output=True, text=True)
    assert (done.returncode, [line.split("\t")[1] for line in done.stdout.splitlines()]) == (1, [heard, heard])
    assert "nothing comes out of this pipe; start what writes into it" in done.stderr


def test_links_to_sound_are_heard_and_link_loops_of_folders_end(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(packed(tone()))
    (tmp_path / "link").symlink_to(tmp_path / "a.wav")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert [ending.gave for ending in guarded(HEAR, [tmp_path / "link", tmp_path])] == [1.2, 1.2]


# Names that results get


def test_results_of_long_names_fit_and_stay_apart(tmp_path: Path) -> None:
    sources = [Source(str(tmp_path / f"{'ü' * 120}{end}.wav")) for end in ("x", "y", "zzzzzzzzz")]
    stems = output_stems([*sources, Source(STDIN)], tmp_path)
    assert len({stem.name for stem in stems}) == 4
    for stem in stems:
        stem.with_name(f"{stem.name}.json").touch()


def test_a_corpus_of_any_names_is_prepared_whole(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in ("a\nb", os.fsdecode(b"\xff\xfe"), os.fsdecode(b"\xff\xfd"), "x" * 251, "🙂", "fine"):
        soundfile.write(f := os.fsencode(tmp_path / "corpus" / f"{name}.wav"), tone(), 16_000)
        Path(os.fsdecode(f)).with_suffix(".txt").write_text("hello there")
    for again in (False, True):
        report = preprocess([tmp_path / "corpus"], tmp_path / "out")
        assert (report.kept, report.reused) == (6, 6 if again else 0)
    names = [path.name for path in (tmp_path / "out" / "audio").iterdir()]
    assert len(names) == 6 and all(name.isprintable() for name in names)
