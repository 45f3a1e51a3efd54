"""Resuming: a run that was killed ends as one that never stopped, to the bit, and leaves no process behind."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tones import TINY, write_song_book

from focusasr.checkpoint import load_checkpoint
from focusasr.config import ModelConfig, TrainConfig
from focusasr.settings import InputError
from focusasr.train import Run, Trainer
from focusasr.training_log import TrainingLog

TEXTS = ["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face"]
SETTINGS = TrainConfig(
    steps=6, evaluate_every=3, batch_seconds=2.5, accumulate=2, warmup_steps=2, clean_epochs=0, workers=0, speed=0.05,
    learning_rate=0.01, ema_decay=0.9,
)  # fmt: skip
CHILD = """
import io, os, pickle, signal, sys, torch
from pathlib import Path
from rich.console import Console
from focusasr import training_log
from focusasr.train import Trainer
from focusasr.training_log import TrainingLog

training_log.draw_curves = lambda *_: None

class Killed(Trainer):
    def _save(self, *arguments):
        super()._save(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    torch.set_num_threads(1)
    kind = {"killed": Killed, "whole": Trainer}[sys.argv[1]]
    run = pickle.loads(Path(sys.argv[2]).read_bytes())
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        kind(run, torch.device("cpu")).fit(log)
"""


def made_run(folder: Path, manifest: Path, **settings: Any) -> Run:
    model = ModelConfig(**{**TINY, "dropout": 0.1})  # type: ignore[arg-type]
    manifests = (str(manifest),)
    return Run(manifests, manifests, folder, model, settings=dataclasses.replace(SETTINGS, **settings))


def train(run: Run, resume: bool = False) -> Trainer:
    trainer = Trainer(run, torch.device("cpu"), resume)
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        trainer.fit(log)
    return trainer


def run_child(kind: str, run: Run, folder: Path) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, which kills itself after the first checkpoint or goes on to the end."""
    (folder / "child.py").write_text(CHILD)
    (folder / "run.pickle").write_bytes(pickle.dumps(run))
    command = [sys.executable, str(folder / "child.py"), kind, str(folder / "run.pickle")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def state_of(run: Run) -> dict[str, Any]:
    """Return everything that is kept of a run except the time it took."""
    state = torch.load(run.output / "last" / "trainer" / "state.pt", weights_only=True)
    del state["position"]["seconds"]
    return {**state, "saved": load_checkpoint(run.output / "last").model.state_dict()}


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, where=f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_song_book(tmp_path, TEXTS)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.training_log.draw_curves", lambda *_: None)


def test_a_killed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = made_run(tmp_path / "straight", songs)
    train(straight)
    killed = made_run(tmp_path / "killed", songs, workers=1)
    assert run_child("killed", killed, tmp_path).returncode == -signal.SIGKILL
    assert state_of(killed)["position"]["step"] == 3
    assert [path.name for path in killed.output.iterdir() if path.suffix in (".part", ".old")] == []

    def interrupt(_log: TrainingLog, position: Any, *_: object) -> None:
        if position.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) as caught:
        patched.setattr(TrainingLog, "step", interrupt)
        train(killed, resume=True)
    assert caught.tb, "the traceback holds the batches, and is held here"
    children = torch.multiprocessing.active_children()
    for child in children:
        child.join(timeout=20)  # a busy machine needs a moment to end what was told to
    assert not [child for child in children if child.is_alive()]
    trainer = train(dataclasses.replace(killed, settings=SETTINGS), resume=True)
    assert trainer.position.step == 6
    assert_same(state_of(killed), state_of(straight))


def test_a_run_with_workers_ends_quietly_and_as_one_without(tmp_path: Path, songs: Path) -> None:
    alone = made_run(tmp_path / "alone", songs, steps=3)
    train(alone)
    helped = made_run(tmp_path / "helped", songs, steps=3, workers=1)
    child = run_child("whole", helped, tmp_path)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert_same(state_of(helped), state_of(alone))


def test_seeds_make_runs(tmp_path: Path, songs: Path) -> None:
    first, again, other = (
        made_run(tmp_path / name, songs, steps=1, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for run in (first, again, other):
        train(run)
    assert_same(state_of(first), state_of(again))
    assert not torch.equal(*(state_of(run)["model"]["ctc_head.weight"] for run in (first, other)))


def test_a_run_is_never_overwritten(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    before = (run.output / "last" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="run: holds a training run already; give --resume, or another --output-dir"):
        train(run)
    assert (run.output / "last" / "model.safetensors").read_bytes() == before
    assert train(run, resume=True).position.step == 1  # nothing is left to do


def test_nothing_to_resume(tmp_path: Path, songs: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume here; leave --resume out"):
        train(made_run(tmp_path / "run", songs), resume=True)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_resumed_is_told_in_a_line(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    path = run.output / "last" / "trainer" / "state.pt"
    whole = path.read_bytes()

    def refused(attempt: Run, says: str) -> None:
        with pytest.raises(InputError) as caught:
            Trainer(attempt, torch.device("cpu"), resume=True)
        assert str(caught.value).startswith(f"{path}: cannot be resumed from (")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(dataclasses.replace(run, model=dataclasses.replace(run.model, width=32)), "size mismatch")
    refused(dataclasses.replace(run, model=dataclasses.replace(run.model, encoder_layers=2)), "Missing key")

    class Trap:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], (tmp_path / "trap.pt").read_bytes()):
        path.write_bytes(content)
        refused(run, "")
    assert not (tmp_path / "sprung").exists()
    path.unlink()
    refused(run, "No such file")
