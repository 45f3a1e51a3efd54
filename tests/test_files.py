"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from focusasr.files import restore, written_aside


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


def test_a_folder_whose_writer_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    folder_with(tmp_path / ".last.0123.old", "before")
    folder_with(tmp_path / ".last.4567.part", "after")
    folder_with(tmp_path / ".best.89ab.old", "another's")
    restore(tmp_path / "last")
    assert listing(tmp_path) == [".best.89ab.old", ".best.89ab.old/a", "last", "last/a"]
    assert (tmp_path / "last" / "a").read_text() == "before"
    restore(tmp_path / "last")
    assert (tmp_path / "last" / "a").read_text() == "before"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    folder_with(tmp_path / "a[1]", "kept")
    folder_with(tmp_path / ".a[1].0123.old", "retired")
    folder_with(tmp_path / ".a[1].4567.part", "half")
    restore(tmp_path / "a[1]")
    restore(tmp_path / "absent")
    assert listing(tmp_path) == ["a[1]", "a[1]/a"]
    assert (tmp_path / "a[1]" / "a").read_text() == "kept"
