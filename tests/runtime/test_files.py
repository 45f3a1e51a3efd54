"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from focusasr.runtime.files import (
    _host,
    discard_asides,
    ensure_file_writable,
    link_or_copy,
    read_lines,
    restore,
    written_aside,
)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "text.txt"
    with written_aside(path) as aside:
        aside.write_text("half")
        assert not path.exists()
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert listing(path.parent) == ["text.txt"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert listing(tmp_path) == ["text.txt"]


def test_a_pipe_stays_and_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ensure_file_writable(pipe, "")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with written_aside(pipe) as aside:
        aside.write_text("whole")
    assert os.read(reader, 100) == b"whole" and pipe.is_fifo()
    os.close(reader)
    assert listing(tmp_path) == ["pipe"]


def test_standard_output_by_its_name(tmp_path: Path) -> None:
    code = "from pathlib import Path; from focusasr.runtime.files import *; p = Path('/dev/stdout')"
    code += "\nensure_file_writable(p, '')"
    code += "\nprint('first')\nwith written_aside(p) as aside: aside.write_text('whole')\nprint('last')"
    for out in (subprocess.PIPE, (tmp_path / "out").open("wb")):
        done = subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
        assert (done.stdout or (tmp_path / "out").read_bytes()) == b"first\nwholelast\n"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: type[BaseException]) -> None:
    (tmp_path / "text.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")
    with pytest.raises(failure), written_aside(tmp_path / "text.txt") as aside:
        aside.write_text("ne")
        raise failure
    with pytest.raises(failure), written_aside(tmp_path / "folder") as aside:
        aside.mkdir()
        (aside / "b").write_text("new")
        raise failure
    assert listing(tmp_path) == ["folder", "folder/a", "text.txt"]
    assert (tmp_path / "text.txt").read_text() == (tmp_path / "folder" / "a").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with written_aside(tmp_path / "folder") as aside:
            (aside / "sub").mkdir(parents=True)
            (aside / "sub" / name).write_text(name)
    assert listing(tmp_path) == ["folder", "folder/sub", "folder/sub/second"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with written_aside(path) as one, written_aside(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to end
    assert listing(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "語" * 85, "\U0001f600" * 63])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    with written_aside(tmp_path / name) as aside:
        aside.write_text("x")
    assert listing(tmp_path) == [name]


def test_the_temporary_name_is_hidden_and_beside(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a.wav") as aside:
        aside.write_text("x")
        assert aside.parent == tmp_path
        assert aside.name.startswith(".")
        assert aside.suffix == ".part"  # no search for sound or manifests takes it for one


def folder_with(path: Path, text: str) -> None:
    path.mkdir()
    (path / "a").write_text(text)


def gone() -> int:
    """Return the number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def aside(name: str, pid: int, seconds: float, host: str | None = None, suffix: str = "part") -> str:
    return f".{name}.{host or _host()}-{pid}-{int(seconds)}-01234567.{suffix}"


def test_a_folder_whose_writer_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    dead = gone()
    folder_with(tmp_path / aside("last", dead, time.time(), suffix="old"), "before")
    folder_with(tmp_path / aside("last", dead, time.time()), "after")
    best = aside("best", dead, time.time(), suffix="old")
    folder_with(tmp_path / best, "another's")
    restore(tmp_path / "last")
    assert listing(tmp_path) == [best, f"{best}/a", "last", "last/a"]
    assert (tmp_path / "last" / "a").read_text() == "before"
    restore(tmp_path / "last")
    assert (tmp_path / "last" / "a").read_text() == "before"
    elsewhere = aside("best", 1, time.time(), "00000000", "old")  # by a machine that is no more
    folder_with(tmp_path / elsewhere, "newer")
    restore(tmp_path / "best")
    assert listing(tmp_path) == ["best", "best/a", "last", "last/a"]
    assert (tmp_path / "best" / "a").read_text() == "newer"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    dead = gone()
    folder_with(tmp_path / "a[1]", "kept")
    folder_with(tmp_path / aside("a[1]", dead, time.time(), suffix="old"), "retired")
    folder_with(tmp_path / aside("a[1]", dead, time.time()), "half")
    restore(tmp_path / "a[1]")
    restore(tmp_path / "absent")
    restore(tmp_path / "no" / "folder")
    assert listing(tmp_path) == ["a[1]", "a[1]/a"]
    assert (tmp_path / "a[1]" / "a").read_text() == "kept"


def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    now = time.time()
    killed = [aside("a.txt", gone(), now), aside("b.txt", os.getpid(), now - 1e6)]  # a number that was given again
    long_ago = aside("c.txt", 1, now, "00000000")
    kept = [aside("d.txt", os.getpid(), now), aside("e.txt", 1, now, "00000000"), ".video.mp4.part", "f.part"]
    for name in (*killed, long_ago, *kept):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / long_ago, (now - 1e6, now - 1e6))
    with written_aside(tmp_path / "text.txt") as path:
        path.write_text("whole")
    assert listing(tmp_path) == sorted([*kept, "text.txt"])


WRITER = """
import sys, time
from pathlib import Path
from focusasr.runtime.files import written_aside
with written_aside(Path(sys.argv[1])) as aside:
    aside.write_text("its own")
    print(flush=True)
    sys.stdin.read()
"""


def test_a_live_sister_goes_on_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    names = ["alive.txt", "killed.txt"]
    commands = [[sys.executable, "-c", WRITER, str(tmp_path / name)] for name in names]
    alive, killed = (subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for one in commands)
    for sister in (alive, killed):
        assert sister.stdout is not None and sister.stdout.readline()
    killed.kill()  # not waited for yet: a zombie writes nothing either
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with written_aside(tmp_path / "text.txt") as aside:
        aside.write_text("whole")
    assert [path.name.split(".")[1] for path in tmp_path.glob(".*")] == ["alive"]
    alive.communicate()
    killed.communicate()
    assert listing(tmp_path) == ["alive.txt", "text.txt"]


def test_what_is_under_way_can_be_discarded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_aside(tmp_path / "text.txt") as aside:
        aside.write_text("half")
        discard_asides()
        assert listing(tmp_path) == []


APPENDER = """
import sys
from pathlib import Path
from focusasr.runtime.files import append_line
print(flush=True)
sys.stdin.read()
for number in range(200):
    append_line(Path(sys.argv[1]), {"writer": sys.argv[2], "number": number, "text": sys.argv[2] * (number % 7) * 3000})
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"cut o')
    commands = [[sys.executable, "-c", APPENDER, str(path), letter] for letter in "abc"]
    sisters = [subprocess.Popen(one, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for one in commands]
    for sister in sisters:
        assert sister.stdout is not None and sister.stdout.readline()
    for sister in sisters:
        assert sister.stdin is not None
        sister.stdin.close()  # off they go
    assert [sister.wait() for sister in sisters] == [0, 0, 0]
    lines = list(read_lines(path))
    assert sorted((line["writer"], line["number"]) for line in lines) == [(w, n) for w in "abc" for n in range(200)]
    assert all(line["text"] == line["writer"] * (line["number"] % 7) * 3000 for line in lines)


def test_a_second_name_is_a_link_or_else_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_text("1")
    link_or_copy(source, tmp_path / "b")
    assert source.samefile(tmp_path / "b")

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "1" and not source.samefile(tmp_path / "c")
