"""Resuming: a run that was killed ends as one that never stopped, to the bit, and leaves no process behind."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from focusasr.config import ModelConfig
from focusasr.model.checkpoint import load_checkpoint
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json
from focusasr.training.logger import TrainingLog
from focusasr.training.run import TrainingRun
from focusasr.training.trainer import Trainer
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import TINY, write_song_book

TEXTS = ["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face"]
SETTINGS = TrainConfig(
    steps=6, evaluate_every=3, batch_seconds=2.5, accumulate=2, warmup_steps=2, clean_epochs=0, workers=0, speed=0.05,
    learning_rate=0.01, ema_decay=0.9,
)  # fmt: skip
CHILD = """
import io, os, pickle, signal, sys, torch
from pathlib import Path
from rich.console import Console
from focusasr.runtime import files
from focusasr.training import logger as training_log
from focusasr.training import step as stepper
from focusasr.training import trainer as train
from focusasr.training.trainer import Trainer
from focusasr.training.logger import TrainingLog

training_log.draw_curves = lambda *_: None
train.overall_wer = lambda _: None  # every evaluation is the best

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def nth(owner, name, number, before=None):
    # The call of that number dies, before it or in its place; the others are as they were.
    honest, calls = getattr(owner, name), [0]
    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == number:
            if before:
                before(*arguments, **options)
            die()
        return honest(*arguments, **options)
    setattr(owner, name, counted)

def half(state, path):
    buffer = io.BytesIO()
    honest_save(state, buffer)
    Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])

honest_save, honest_replace = torch.save, os.replace
MOMENTS = {
    "whole": lambda: None,
    "after a checkpoint": lambda: nth(Trainer, "_out_of_patience", 4),
    "in a step": lambda: nth(stepper.TrainStep, "_backward", 9),  # the first half of step 5
    "in the clipping of a gradient": lambda: nth(torch.nn.utils, "clip_grad_norm_", 5),
    "in an evaluation": lambda: nth(train, "measure", 2),
    "in the writing of weights": lambda: nth(train, "save_checkpoint", 3),
    "in the writing of the state": lambda: nth(torch, "save", 2, half),
    "between best and last": lambda: nth(train, "written_checkpoint", 4),
    "between two renames": lambda: nth(files, "_replace_folder", 3, lambda _aside, path: honest_replace(
        path, files._beside(path, "old"))),
    "between two renames of last": lambda: nth(files, "_replace_folder", 4, lambda _aside, path: honest_replace(
        path, files._beside(path, "old"))),
}

def train_until(moment, run):
    MOMENTS[moment]()
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        Trainer(run, torch.device("cpu")).fit(log)

if __name__ == "__main__":
    torch.set_num_threads(1)
    for moment, run in pickle.loads(Path(sys.argv[1]).read_bytes()):
        pid = os.fork()
        if not pid:
            train_until(moment, run)
            os._exit(0)
        print(moment, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sep=": ")
"""
MOMENTS = [
    "in a step", "in the clipping of a gradient", "in an evaluation", "in the writing of weights",
    "in the writing of the state", "between best and last", "between two renames", "between two renames of last",
]  # fmt: skip


def made_run(folder: Path, manifest: Path, **settings: Any) -> TrainingRun:
    model = ModelConfig(**{**TINY, "dropout": 0.1})  # type: ignore[arg-type]
    manifests = (str(manifest),)
    return TrainingRun(manifests, manifests, folder, model, settings=dataclasses.replace(SETTINGS, **settings))


def train(run: TrainingRun, resume: bool = False) -> Trainer:
    trainer = Trainer(run, torch.device("cpu"), resume)
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        trainer.fit(log)
    return trainer


def run_children(folder: Path, *runs: tuple[str, TrainingRun]) -> subprocess.CompletedProcess[str]:
    """Train each run in a process of its own, which kills itself at the moment named or goes on to the end."""
    (folder / "child.py").write_text(CHILD)
    (folder / "runs.pickle").write_bytes(pickle.dumps(runs))
    command = [sys.executable, str(folder / "child.py"), str(folder / "runs.pickle")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def state_of(run: TrainingRun) -> dict[str, Any]:
    """Return everything that is kept of a run except the time it took."""
    state = torch.load(run.output / "last" / "trainer" / "state.pt", weights_only=True)
    for name in ("seconds", "waiting_seconds"):
        del state["position"][name]
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
    monkeypatch.setattr("focusasr.training.logger.draw_curves", lambda *_: None)


def test_a_killed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda _: None)
    straight = made_run(tmp_path / "straight", songs)
    train(straight)
    killed = made_run(tmp_path / "killed", songs, workers=1)
    child = run_children(tmp_path, ("after a checkpoint", killed))
    assert child.stdout == f"after a checkpoint: {-signal.SIGKILL}\n", child.stderr
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


def test_a_long_way_between_evaluations_is_kept_on_the_way(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda _: None)
    straight, killed = (made_run(tmp_path / name, songs) for name in ("straight", "killed"))
    train(straight)

    def stopped_at(step: int, resume: bool) -> None:
        def interrupt(_log: TrainingLog, position: Any, *_: object) -> None:
            if position.step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("focusasr.training.trainer.SAVE_SECONDS", 0.0)
            patched.setattr(TrainingLog, "step", interrupt)
            train(killed, resume)

    for step, resume in ((5, False), (6, True)):  # evaluations are at 3 and 6
        stopped_at(step, resume)
        assert state_of(killed)["position"]["step"] == step - 1
        assert len(read_json(killed.output / "last" / "metrics.json")["dev"]) == 1, "of the evaluation before"
    train(killed, resume=True)
    assert_same(state_of(killed), state_of(straight))


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, evaluations, the writing of a checkpoint, the two renames of a folder: the end is the same to the bit."""
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda _: None)  # every evaluation is the best
    straight = made_run(tmp_path / "straight", songs)
    train(straight)
    wanted = state_of(straight)
    runs = {moment: made_run(tmp_path / moment.replace(" ", "_"), songs) for moment in MOMENTS}
    child = run_children(tmp_path, *runs.items())
    assert child.stdout.splitlines() == [f"{moment}: {-signal.SIGKILL}" for moment in MOMENTS], child.stderr
    assert not (runs["between two renames of last"].output / "last").exists()
    for moment, run in runs.items():
        trainer = Trainer(run, torch.device("cpu"), resume=True)
        assert trainer.position.step == 3, moment
        with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
            trainer.fit(log)
        assert_same(state_of(run), wanted, moment)
        kept = sorted(path.name for path in run.output.iterdir())
        assert kept == sorted(path.name for path in straight.output.iterdir()), moment
        rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["kind"] == "focus"] == [3, 6], moment
        assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6], moment
        best = load_checkpoint(run.output / "best").model.state_dict()
        assert_same(best, load_checkpoint(straight.output / "best").model.state_dict(), moment)


def test_a_run_with_workers_ends_quietly_and_as_one_without(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda _: None)
    alone = made_run(tmp_path / "alone", songs, steps=3)
    train(alone)
    helped = made_run(tmp_path / "helped", songs, steps=3, workers=1)
    child = run_children(tmp_path, ("whole", helped))
    assert (child.returncode, child.stdout, child.stderr) == (0, "whole: 0\n", "")
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
    with pytest.raises(InputError, match=r"run: .*--resume.*--output-dir"):
        train(run)
    assert (run.output / "last" / "model.safetensors").read_bytes() == before
    assert train(run, resume=True).position.step == 1  # nothing is left to do


def test_a_run_goes_on_whose_paths_were_written_with_dots(tmp_path: Path, songs: Path) -> None:
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=1), dev=(str(songs),))
    begun = train(run)
    config = run.output / "last" / "config.json"
    kept = config.read_text().replace(str(songs), str(songs.parent / ".." / songs.parent.name / songs.name))
    config.write_text(kept)
    goes_on = Trainer(run, torch.device("cpu"), resume=True)
    changed = "manifest has changed since the run began: not the same run"
    assert goes_on.changes == [] and changed not in goes_on.findings.suspect
    assert begun.position.best_wer is not None and goes_on.position == begun.position
    songs.write_text(songs.read_text() + songs.read_text().splitlines()[0] + "\n")
    assert Trainer(run, torch.device("cpu"), resume=True).findings.suspect[changed] == [str(songs)] * 2


@pytest.mark.parametrize("dev", [{"a": {"wer": float("nan"), "new": 1}}, {"a": 5}, [], None], ids=str)
def test_scores_that_another_version_kept_stop_no_run(tmp_path: Path, songs: Path, dev: object) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    (run.output / "last" / "metrics.json").write_text(json.dumps({"dev": dev}))
    assert Trainer(run, torch.device("cpu"), resume=True).scores == {}


def test_nothing_to_resume(tmp_path: Path, songs: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        train(made_run(tmp_path / "run", songs), resume=True)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_resumed_is_told_in_a_line(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    path = run.output / "last" / "trainer" / "state.pt"
    whole = path.read_bytes()

    def refused(attempt: TrainingRun, says: str) -> None:
        with pytest.raises(InputError) as caught:
            Trainer(attempt, torch.device("cpu"), resume=True)
        assert str(caught.value).startswith(f"{path}: cannot be resumed from (")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

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


# A disk that is full, a folder that cannot be written


def limited(run: TrainingRun, bytes_left: int) -> Trainer:
    """Resume where no file may grow beyond `bytes_left`, by the system's own limit: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
        return train(run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("piece", ["model.safetensors", "trainer/state.pt"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, piece: str
) -> None:
    """The kernel refuses to write; each library that writes says so in its own way."""
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda _: None)
    run = made_run(tmp_path / "run", songs, steps=3)
    train(run)
    before = {name: files_of(run.output / name) for name in ("best", "last")}
    sizes = {name: len(content) for name, content in before["last"].items()}
    assert sizes["model.safetensors"] < sizes["trainer/state.pt"]
    longer = dataclasses.replace(run, settings=SETTINGS)
    with pytest.raises(InputError) as caught:
        limited(longer, sizes[piece] - 1000)
    line = str(caught.value)
    assert "the checkpoint of step 6 cannot be written (" in line and "\n" not in line
    assert line.endswith("--resume")
    assert files_of(run.output / "last") == before["last"]
    if piece == "model.safetensors":
        assert files_of(run.output / "best") == before["best"]
    assert [path.name for path in run.output.iterdir() if path.name.startswith(".")] == []
    train(longer, resume=True)
    straight = made_run(tmp_path / "straight", songs)
    train(straight)
    assert_same(state_of(longer), state_of(straight))


def test_a_full_disk_while_figures_are_kept(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=3)
    train(run)
    before = files_of(run.output / "last")
    with pytest.raises(InputError, match=r"run\b.*\(File too large\).*--output-dir"):
        limited(dataclasses.replace(run, settings=SETTINGS), 100)
    assert files_of(run.output / "last") == before


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path, songs: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # outside of folders that only root may enter
        Path(place).chmod(0o555)
        run = made_run(Path(place) / "run", songs)
        trainer = Trainer(run, torch.device("cpu"))
        root = os.geteuid() == 0  # who may write everywhere
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"no permission.*--output-dir"):
                TrainingLog(trainer.run.output, run.settings, Console(file=io.StringIO()))
        finally:
            if root:
                os.seteuid(0)
            Path(place).chmod(0o755)
