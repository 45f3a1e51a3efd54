"""Machines that lack something: room, memory, a home, a network, a terminal, an open stdout, the right time."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focusasr.data.manifest import Utterance, write_manifest
from focusasr.runtime.libraries import install_command
from tests.helpers.toy_speech import TINY, write_song_book

FOCUSASR = (sys.executable, "-m", "focusasr")
GIB = 2**30


def call(*arguments: object, within: str = "", environment: dict[str, str] | None = None, **options: Any) -> tuple:
    """Run the program, `within` a line of shell if need be (where "$@" stands for it); return (status, out, err)."""
    command = [*FOCUSASR, *map(str, arguments)]
    if within:
        command = ["sh", "-c", within, "sh", *command]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, **options
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def apart() -> None:
    """Skip where this user may not have mounts of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "-n", "true"], capture_output=True).returncode:
        pytest.skip("mounts and networks of one's own need root on Linux")


@pytest.mark.parametrize(
    ("within", "status", "said"),
    [
        ('{ "$@"; echo $? >status; } | true', 141, ""),
        ('"$@" >/dev/full; echo $? >status', 1, "No space left on device; "),
        ('"$@" >&-; echo $? >status', 1, "focusasr: stdout is closed"),
        ('"$@" -o out >&-; echo $? >status', 0, ""),
        ('"$@" 2>&-; echo $? >status', 0, ""),
    ],
)
def test_a_closed_or_full_stdout(sample: Path, within: str, status: int, said: str) -> None:
    _, _, err = call("transcribe", sample, within=within)
    assert int(Path("status").read_text()) == status
    assert said in err and err.count("\n") == bool(said)


def test_an_error_goes_nowhere_where_stderr_is_closed(sample: Path, heard: str) -> None:
    status, out, err = call("transcribe", sample, "missing.wav", within='exec "$@" 2>&-')
    assert (status, out, err) == (1, f"{sample}\t{heard}\n", "")


def test_an_encoding_without_the_letters(sample: Path, heard: str) -> None:
    shutil.copy(sample, "naïve ☃.flac")
    plain = {"PYTHONIOENCODING": "ascii"}
    status, out, err = call("transcribe", "naïve ☃.flac", "nö.wav", environment=plain)
    assert (status, out) == (1, f"na\\xefve \\u2603.flac\t{heard}\n")
    assert err.splitlines()[0] == "focusasr: n\\xf6.wav: no such file; check the path"
    assert call("transcribe", "naïve ☃.flac", environment={"LC_ALL": "C"})[:2] == (0, heard + "\n")


def test_no_home_no_path_no_terminal(sample: Path, heard: str) -> None:
    bare = [
        "env",
        "-i",
        "FOCUSASR_MODEL=alnum",
        f"PYTHONPATH={os.environ['PYTHONPATH']}",
        *FOCUSASR,
        "transcribe",
        str(sample),
    ]
    done = subprocess.run(bare, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, heard + "\n", "")


def limited(kind: int, size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (size, size))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")
def test_two_gibibytes_and_one_core_are_enough(sample: Path, heard: str) -> None:
    def narrow() -> None:
        limited(resource.RLIMIT_DATA, 2 * GIB)()
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    assert call("transcribe", sample, preexec_fn=narrow) == (0, heard + "\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")
def test_too_little_memory_for_pytorch_is_said_in_one_line(sample: Path) -> None:
    status, out, err = call("transcribe", sample, preexec_fn=limited(resource.RLIMIT_AS, 2 * GIB))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "PyTorch needs 4 GiB" in err or "the memory is full" in err


def test_a_full_disk_loses_nothing_that_was_written(apart: None, sample: Path, heard: str) -> None:
    Path("disk").mkdir()
    for name in ("a", "b"):
        shutil.copy(sample, f"{name}.flac")
    small = 'mount -t tmpfs -o size=16k tmpfs disk && "$@"; status=$?; cp -r disk after; exit $status'
    status, _, err = call(
        "transcribe", "a.flac", "b.flac", "-o", "disk", within=f"exec unshare -m sh -c '{small}' sh \"$@\""
    )
    assert (status, err.count("\n")) == (1, 1) and "cannot be written (No space left on device)" in err
    assert Path("after/a.txt").read_text() == heard + "\n"
    assert all(path.stat().st_size and not path.name.startswith(".") for path in Path("after").iterdir())


def test_a_folder_that_cannot_be_written(apart: None, sample: Path) -> None:
    Path("disk").mkdir()
    fixed = 'mount -t tmpfs -o ro tmpfs disk && exec "$@"'
    for command in (("transcribe", sample, "-o"), ("preprocess", write_song_book(Path(), ["bad"]), "-o")):
        status, _, err = call(*command, "disk/out", within=f"exec unshare -m sh -c '{fixed}' sh \"$@\"")
        assert (status, err.count("\n")) == (1, 1) and "Read-only file system" in err and "disk/out" in err


READ_ONLY = [
    ("transcribe", "SOUND", "-o"),
    ("transcribe", "SOUND", "--skip-existing", "-o"),
    ("preprocess", "SOUND", "-o"),
    ("evaluate", "one.jsonl", "--output"),
    ("evaluate", "one.jsonl", "--html"),
    ("train", "one.jsonl", "-o"),
    ("inspect", "default", "SOUND", "-o"),
    ("convert", "default"),
]


@pytest.mark.parametrize("command", READ_ONLY, ids=" ".join)
def test_a_folder_without_permission_is_named_before_any_work(sample: Path, command: tuple[str, ...]) -> None:
    powerless = 'exec setpriv --inh-caps=-all --bounding-set=-all "$@"' if os.geteuid() == 0 else ""
    if powerless and not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and there is no setpriv to give that up")
    write_manifest(Path("one.jsonl"), [Utterance(sample, "sarah")])
    Path("closed").mkdir(mode=0o555)
    given = [str(sample) if word == "SOUND" else word for word in command]
    status, out, err = call(*given, "closed/deep/out.png", within=powerless)
    option = {"-o": "--output" if command[0] == "inspect" else "--output-dir"}.get(command[-1], command[-1])
    remedy = f"choose another {'place' if option in ('--output', '--html') else 'folder'}"
    with_option = "" if command[0] == "convert" else f" with {option}"
    said = f"focusasr: {Path('closed').absolute()}: no permission to write there; {remedy}{with_option}\n"
    assert (status, out, err) == (1, "", said)


def test_a_full_disk_is_named_with_its_remedy(apart: None) -> None:
    Path("disk").mkdir()
    small = 'mount -t tmpfs -o size=16k tmpfs disk && exec "$@"'
    songs = write_song_book(Path(), ["bad cab"])
    for command in (("convert", "default", "disk/out"), ("preprocess", songs, "-o", "disk/out")):
        status, _, err = call(*command, within=f"exec unshare -m sh -c '{small}' sh \"$@\"")
        assert (status, err.count("\n")) == (1, 1)
        assert "disk/out: cannot be written (No space left on device)" in err


def test_no_network(apart: None, sample: Path) -> None:
    online = {"HF_HUB_OFFLINE": "0"}
    began = time.monotonic()
    status, _, err = call(
        "transcribe", sample, "--model", "openai/whisper-tiny", within='exec unshare -n "$@"', environment=online
    )
    assert (status, err.count("\n")) == (1, 1) and "or give a folder" in err
    assert time.monotonic() - began < 60, "it waited for a network that is not there"


def test_training_without_shared_memory(apart: None) -> None:
    songs = write_song_book(Path(), ["bad cab", "a fed egg", "hag", "deaf bee"])
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "workers": 2, "steps": 2}.items()]
    bare = 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"'
    status, _, err = call(
        "train", songs, "--dev", songs, "-o", "run", *options, within=f"exec unshare -m sh -c '{bare}' sh \"$@\""
    )
    assert status == 0 and "focusasr: no shared memory (Read-only file system); " in err, err
    assert Path("run/last/model.safetensors").is_file()


def test_a_run_on_a_read_only_disk_is_not_resumed(apart: None) -> None:
    songs = write_song_book(Path(), ["bad cab", "a fed egg", "hag", "deaf bee"])
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "workers": 0, "steps": 1}.items()]
    assert call("train", songs, "-o", "run", *options)[0] == 0
    fixed = 'mount --bind run run && mount -o remount,bind,ro run && exec "$@"'
    again = ("train", "--resume", "-o", "run", "--steps", "2")
    status, _, err = call(*again, within=f"exec unshare -m sh -c '{fixed}' sh \"$@\"")
    assert (status, err.count("\n")) == (1, 1), err
    assert "focusasr: run: cannot be written (Read-only file system)" in err


def test_a_package_of_the_extra_that_is_missing(run, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(Path("one.jsonl"), [Utterance(sample, "sarah")])
    monkeypatch.setitem(sys.modules, "jiwer", None)
    result = run("evaluate", "one.jsonl")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert f"focusasr: jiwer is not installed; install it: {install_command('train')}\n" == result.err
    assert run("transcribe", sample).status == 0


def test_a_clock_that_runs_backwards(run, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(sample, "a.flac")
    command = ("transcribe", "a.flac", "-o", "out", "--skip-existing")
    backwards = itertools.count(int(time.time()), -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    assert run(*command).status == 0
    os.utime("out/a.txt", (4e9, 4e9))
    os.utime("a.flac", (0, 0))
    assert "1 of 1 files are written already" in run(*command).err
    songs = write_song_book(Path(), ["bad cab", "hag"])
    for _ in range(2):
        assert run("preprocess", songs, "-o", "straight").status == 0
