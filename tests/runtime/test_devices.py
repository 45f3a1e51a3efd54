"""Several processes: the same losses as one, one ordered result, and no hanging when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from focusasr.runtime.devices import Processes, translate_peer_errors
from focusasr.runtime.errors import InputError
from tests.helpers.toy_speech import TINY, write_song_book

TEXTS = ["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face", "egg", "bad"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--monitor-interval", "0.2")
SETTINGS = {
    "evaluate_every": 6, "batch_seconds": 2.5, "warmup_steps": 2, "clean_epochs": 0, "workers": 0,
    "learning_rate": 0.01, "ema_decay": 0.9, "dropout": 0.1,
}  # fmt: skip
KEEPER = """
from focusasr.cli import app as cli; from focusasr.training import logger as training_log

training_log.STEPS_PER_ROW = 1
cli.main()
"""
KILLER = """
import os, signal, sys
from focusasr.cli import app as cli
from focusasr.training.trainer import Trainer

honest = Trainer._step
def step(self, *arguments):
    if self.position.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(self, *arguments)
Trainer._step = step
cli.main()
"""


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_song_book(tmp_path, TEXTS)


def options(songs: Path, output: Path, **settings: object) -> list[str]:
    chosen = {**TINY, **SETTINGS, **settings}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in chosen.items()]
    return [
        "train",
        str(songs),
        "--dev",
        str(songs),
        "-o",
        str(output),
        "--threads",
        "1",
        *(x for p in pairs for x in p),
    ]


def call(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def kept(metrics: Path) -> list[dict[str, object]]:
    """Return every row without what the clock makes of it."""
    clock = {"audio_seconds_per_second", "waiting_share", "kind"}
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def test_shares_and_orders() -> None:
    assert [Processes(rank, 3).share(range(7)) for rank in range(3)] == [range(0, 7, 3), range(1, 7, 3), range(2, 7, 3)]
    assert list(Processes().in_order("abc", lambda mine: iter(mine.upper()))) == ["A", "B", "C"]


def test_results_of_several_processes_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    things = list(range(201))
    calls: list[list[int]] = []

    def gather(self: Processes, mine: list[list[int]]) -> list[list[int]]:
        start = sum(len(part) for part in calls) * 3
        round_ = things[start : start + 96]
        calls.extend(mine)
        return [[10 * thing for thing in round_[rank::3]] for rank in range(3)]

    monkeypatch.setattr(Processes, "gather", gather)
    found = list(Processes(0, 3).in_order(things, lambda mine: (10 * thing for thing in mine)))
    assert found == [10 * thing for thing in things]
    assert [len(part) for part in calls] == [32, 32, 3]


def test_a_lost_sister_is_told_in_a_line() -> None:
    says = "another process of this job has failed; try again"
    with pytest.raises(InputError, match=says), translate_peer_errors("try again"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes"), translate_peer_errors("try again"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, songs: Path) -> None:
    """Two processes with a batch each are one process that accumulates two: losses, WER and weights agree.

    Recordings that one of them cannot read are named once, and count in the status of both.
    """
    from focusasr.model.checkpoint import load_checkpoint

    (tmp_path / "keeper.py").write_text(KEEPER)
    broken = [tmp_path / f"broken{number}.wav" for number in range(6)]
    for path in broken:
        path.write_bytes(b"not sound")
    rows = [{"audio_filepath": str(path), "text": "bad", "duration": 1.0} for path in broken]
    (tmp_path / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = str(tmp_path / "broken.jsonl")
    two = call(*TORCHRUN, str(tmp_path / "keeper.py"), *options(songs, tmp_path / "two", steps=6), more)
    assert two.returncode == 1, two.stderr
    assert two.stdout == f"{tmp_path / 'two' / 'best'}\n"
    assert [two.stderr.count(f"left out: {path}") for path in broken] == [1] * 6, two.stderr
    one = call(
        sys.executable, str(tmp_path / "keeper.py"), *options(songs, tmp_path / "one", steps=6, accumulate=2), more
    )
    assert one.returncode == 1, one.stderr
    assert two.stderr.count("step 6,") == 1
    curves = [kept(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in curves[0]] == [1, 2, 3, 4, 5, 6, 6, 6]
    for one_row, other_row in zip(*curves, strict=True):
        assert one_row == pytest.approx(other_row, rel=1e-5)
    state = [load_checkpoint(tmp_path / name / "last") for name in ("one", "two")]
    for name, value in state[0].model.state_dict().items():
        assert value.numpy() == pytest.approx(state[1].model.state_dict()[name].numpy(), abs=1e-4), name


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_a_message(tmp_path: Path, songs: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    ended = call(*TORCHRUN, str(tmp_path / "killer.py"), *options(songs, tmp_path / "run", steps=6))
    assert ended.returncode != 0
    assert (
        "another process of this job has failed" in ended.stderr or "Signal 9 (SIGKILL) received by PID" in ended.stderr
    )
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.slow
def test_files_are_shared_and_gathered_in_order(run, tmp_path: Path, sample: Path, heard: str) -> None:
    names = [tmp_path / f"{number}.flac" for number in range(5)]
    for name in (*names[:3], names[4]):
        name.write_bytes(sample.read_bytes())
    done = call(*TORCHRUN, "-m", "focusasr", "transcribe", *map(str, names))
    there = [name for name in names if name.exists()]
    assert done.stdout == "".join(f"{name}\t{heard}\n" for name in there)
    assert done.stderr.count("3.flac: no such file") == 1, done.stderr
    assert done.returncode == 1
    command = ("transcribe", *map(str, there), "-o", str(tmp_path), "--skip-existing")
    assert run(*command).status == 0
    assert "4 of 4 files are written already" in call(*TORCHRUN, "-m", "focusasr", *command).stderr


@pytest.mark.slow
def test_two_processes_evaluate_as_one(run, tmp_path: Path, sample: Path, heard: str) -> None:
    texts = [heard, heard + " one", "nothing of it", heard.replace("a", "b"), heard]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"audio_filepath": str(sample), "text": text}) + "\n" for text in texts))
    two = call(*TORCHRUN, "-m", "focusasr", "evaluate", str(manifest), "--output", str(tmp_path / "two.jsonl"))
    one = run("evaluate", manifest, "--output", tmp_path / "one.jsonl")
    assert (two.returncode, one.status) == (0, 0), two.stderr
    rows = [[json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert len(rows[0]) == 5 and rows[0] == rows[1]
    assert two.stdout.splitlines()[:7] == one.out.splitlines()[:7]  # the latency differs
