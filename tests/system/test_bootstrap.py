"""The set-up of scripts/focusasr: once, whole, from any folder, nothing of it on stdout; with a pretended Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Logs its calls; `-m venv FOLDER` puts itself there, `-m pip` installs a program that prints its arguments.
PRETENDED_PYTHON = """#!/bin/bash
case "$1 $2" in
    "-c import ensurepip, venv") exit ${NO_VENV-0} ;;
    "-c "*version_info\\[:2\\]*) echo python3.11 ;;
    "-c "*) exit 0 ;;
    "-m venv") echo venv >>"$LOG"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m focusasr.runtime.libraries")
        [[ -z ${BROKEN-} ]] || { echo "$BROKEN" >&2; exit 1; } ;;
    "-m pip")
        echo "pip ${@: -1}" >>"$LOG"
        echo "noise of pip"
        sleep ${PIP_SECONDS-0}
        printf '#!/bin/bash\\necho "said: $*"\\n' >"${0%/*}/focusasr"
        chmod +x "${0%/*}/focusasr"
        exit ${PIP_STATUS-0} ;;
esac
"""


@dataclass
class Place:
    """A repository with the scripts in it and a machine with one pretended Python."""

    repository: Path
    log: Path
    environment: dict[str, str]

    def call(self, program: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [str(program or self.repository / "scripts" / "focusasr"), "a  b", "c"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**self.environment, **settings})

    def logged(self) -> list[str]:
        """Return what was called since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.replace(str(self.repository), "ROOT") for line in lines]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    repository, programs = tmp_path / "a repository", tmp_path / "bin"
    (repository / "scripts").mkdir(parents=True)
    programs.mkdir()
    for name in ("pyproject.toml", "scripts/focusasr", "scripts/bootstrap.sh", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, repository / name)
    for name in ("bash", "chmod", "cp", "dirname", "env", "flock", "head", "mkdir", "readlink", "rm", "sleep"):
        found = shutil.which(name)
        if found:
            (programs / name).symlink_to(found)
    (programs / "python3").write_text(PRETENDED_PYTHON)
    (programs / "python3").chmod(0o755)
    log = tmp_path / "log"
    return Place(repository, log, {"PATH": str(programs), "LOG": str(log)})


def test_first_call_installs_and_later_calls_start_nothing(place: Place) -> None:
    first = place.call()
    assert (first.returncode, first.stdout) == (0, "said: a  b c\n")
    assert "5 GB" in first.stderr.splitlines()[0]
    assert place.logged() == ["venv", "pip ROOT[train]"]
    second = place.call()
    assert (second.returncode, second.stdout, second.stderr) == (0, "said: a  b c\n", "")
    assert place.logged() == []


def test_called_through_links_from_elsewhere(place: Place, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(Path("a repository") / "scripts" / "focusasr")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert place.call(tmp_path / "two").stdout == "said: a  b c\n"
    assert (place.repository / ".venv" / "installed").exists()


def test_changed_pyproject_is_installed_again(place: Place) -> None:
    place.call()
    with (place.repository / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    place.logged()
    assert place.call().returncode == 0
    assert place.logged() == ["pip ROOT[train]"]


def test_failed_or_interrupted_install_is_made_anew(place: Place) -> None:
    failed = place.call(PIP_STATUS="1")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "failed" in failed.stderr
    place.logged()
    assert place.call().returncode == 0
    assert place.logged() == ["venv", "pip ROOT[train]"]
    (place.repository / ".venv" / "unfinished").touch()
    assert place.call().returncode == 0
    assert place.logged() == ["venv", "pip ROOT[train]"]


def test_a_failed_update_leaves_what_is_there_and_is_tried_again(place: Place) -> None:
    place.call()
    with (place.repository / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    (place.repository / ".venv" / "mine").touch()
    place.logged()
    for _ in range(2):
        failed = place.call(PIP_STATUS="1")
        assert (failed.returncode, failed.stdout) == (0, "said: a  b c\n")
        assert "The update failed (see above); focusasr runs as it is" in failed.stderr
        assert place.logged() == ["pip ROOT[train]"]
    assert place.call().returncode == 0 and place.logged() == ["pip ROOT[train]"]
    assert place.call().returncode == 0 and place.logged() == []
    assert (place.repository / ".venv" / "mine").exists()


def test_folders_that_cd_looks_in_change_nothing(place: Place) -> None:
    result = place.call(CDPATH=f".:{place.repository.parent}")
    assert (result.returncode, result.stdout) == (0, "said: a  b c\n")


def test_moved_repository_is_installed_anew(place: Place) -> None:
    place.call()
    place.logged()
    place.repository = place.repository.rename(place.repository.with_name("moved"))
    assert place.call().returncode == 0
    assert place.logged() == ["venv", "pip ROOT[train]"]


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is missing")
def test_two_at_once_install_once(place: Place) -> None:
    command = [str(place.repository / "scripts" / "focusasr"), "x"]
    environment = {**place.environment, "PIP_SECONDS": "0.5"}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    assert [run.communicate(timeout=30)[0] for run in runs] == [b"said: x\n"] * 3
    assert place.logged() == ["venv", "pip ROOT[train]"]


@pytest.mark.parametrize(("settings", "remedy"), [({"NO_VENV": "1"}, "apt-get install python3.11-venv"), ({}, "3.10")])
def test_missing_python_is_told_with_the_remedy(place: Place, settings: dict[str, str], remedy: str) -> None:
    if not settings:
        (Path(place.environment["PATH"]) / "python3").unlink()
    result = place.call(**settings)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert remedy in result.stderr
    assert "apt-get install" in result.stderr


def test_waiting_policy_of_the_caller_stays(place: Place) -> None:
    place.call()
    program = place.repository / ".venv" / "bin" / "focusasr"
    program.write_text("#!/bin/bash\necho $OMP_WAIT_POLICY\n")
    assert place.call().stdout == "PASSIVE\n"
    assert place.call(OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"
    assert os.access(program, os.X_OK)


def test_changed_constraints_are_installed_again(place: Place) -> None:
    place.call()
    place.logged()
    with (place.repository / "scripts" / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert place.call().returncode == 0
    assert place.logged() == ["pip ROOT[train]"]


def test_library_that_does_not_load_fails_the_installation(place: Place) -> None:
    broken = "focusasr: torchaudio 2.11.1 does not load with torch 2.12.1"
    failed = place.call(BROKEN=broken)
    assert (failed.returncode, failed.stdout) == (1, "") and broken in failed.stderr
    assert place.call().returncode == 0


def test_constraints_hold_names_and_versions_only() -> None:
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()[1:]
    assert len(lines) > 100
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+( ; [\w<>=!.'* ]+)?", line)] == []
