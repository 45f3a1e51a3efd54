"""Training: it learns, it keeps and shows what it should, and bad data, steps and settings do no harm."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from focusasr.config import DecodingConfig, ModelConfig
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.decoding.ctc_attention import decode
from focusasr.evaluation.bootstrap import Interval
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.engine import Engine
from focusasr.runtime.errors import InputError
from focusasr.training import step as stepper
from focusasr.training import trainer as room
from focusasr.training.logger import TrainingLog
from focusasr.training.run import TrainingRun, read_run
from focusasr.training.state import TrainingState
from focusasr.training.step import average, choose_precision, learning_rate, make_optimizer, start_accelerator
from focusasr.training.trainer import MOST_BAD_STEPS, Trainer
from focusasr.training.validation import measure, read_dev_sets
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import TINY, mels, write_song_book

TEXTS = ["bad cab", "a fed egg", "hag", "deaf bee"]
CLEAN = TrainConfig(
    steps=60, learning_rate=0.01, warmup_steps=10, evaluate_every=60, ema_decay=0.9, batch_seconds=20, workers=0,
    silence=0, join=0, clean_epochs=10**9, label_smoothing=0,
)  # fmt: skip


def made_run(folder: Path, manifest: Path, dev: tuple[str, ...] = (), **settings: Any) -> TrainingRun:
    model = ModelConfig(**{**TINY, "width": 32})  # type: ignore[arg-type]
    return TrainingRun((str(manifest),), dev, folder / "run", model, settings=dataclasses.replace(CLEAN, **settings))


def trained(run: TrainingRun, resume: bool = False) -> tuple[Trainer, str]:
    """Train to the end; return the trainer and what was shown."""
    shown = io.StringIO()
    trainer = Trainer(run, torch.device("cpu"), resume)
    with TrainingLog(run.output, run.settings, Console(file=shown, width=1000)) as log:
        for line in trainer.summary():
            log.say(line)
        trainer.fit(log)
    return trainer, shown.getvalue()


def rows(run: TrainingRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_song_book(tmp_path, TEXTS)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.training.logger.draw_curves", lambda *_: None)


def test_a_tiny_model_learns_four_songs(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path, songs, (str(songs),))
    trainer, shown = trained(run)
    assert "4 utterances" in shown
    assert "WER % " in shown
    losses = [row["total"] for row in rows(run) if row["kind"] == "train"]
    assert len(losses) == 20
    assert losses[-1] < 0.2 * losses[0]
    (dev,) = [row for row in rows(run) if row["kind"] == "dev"]
    assert (dev["step"], dev["wer"]) == (60, 0.0)
    assert trainer.position.best_wer == 0.0
    for name in ("best", "last"):
        loaded = load_checkpoint(run.output / name)
        answers = decode(Engine(loaded.model), mels(TEXTS), loaded.tokenizer, DecodingConfig())
        assert [loaded.tokenizer.decode(answer.tokens) for answer in answers] == TEXTS
        assert loaded.metrics["position"]["step"] == 60
        assert f"| {tmp_path.name}/songs | 0.0 |" in loaded.card
    assert (run.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run.output / "tensorboard").iterdir())
    assert sorted(path.name for path in run.output.iterdir()) == [
        "best", "curves.png", "findings.jsonl", "last", "metrics.jsonl", "samples.txt", "tensorboard",
    ]  # fmt: skip
    assert not (run.output / "best" / "trainer").exists()


# Data that is not as it should be


def test_broken_audio_is_named_and_training_goes_on(tmp_path: Path, no_curves: None) -> None:
    songs = write_song_book(tmp_path, [*TEXTS, "cab", "fed"])
    known = [json.loads(line) for line in songs.read_text().splitlines()]
    songs.write_text(
        "".join(json.dumps({**row, "duration": 0.48} if n == 5 else row) + "\n" for n, row in enumerate(known))
    )
    (tmp_path / "songs" / "04.wav").write_bytes(b"not sound")  # found when lengths are looked up
    (tmp_path / "songs" / "05.wav").write_bytes(b"not sound")  # found when it is read
    run = made_run(tmp_path, songs, (str(songs),), steps=3, evaluate_every=3)
    trainer, shown = trained(run)
    assert trainer.position.step == 3
    assert f"left out 1 (audio cannot be read), such as {tmp_path}/songs/04.wav" in shown
    assert shown.count(f"left out: {tmp_path}/songs/05.wav: ") == 1
    assert (run.output / "last").is_dir()


def test_dev_audio_that_is_broken_is_left_out_of_the_score(tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, TEXTS)
    (tmp_path / "songs" / "02.wav").write_bytes(b"")
    trainer = Trainer(made_run(tmp_path, songs), torch.device("cpu"))
    measured = measure(trainer.stepper.best_model, trainer.tokenizer, read_dev_sets([str(songs)])[0])
    assert measured.references == ["bad cab", "a fed egg", "deaf bee"]
    assert measured.score.utterances == 3
    assert len(measured.broken) == 1
    assert "02.wav" in measured.broken[0]
    for path in (tmp_path / "songs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"songs: .*00\.wav"):
        measure(trainer.stepper.best_model, trainer.tokenizer, read_dev_sets([str(songs)])[0])


def test_manifests_without_use_are_refused_at_the_start(tmp_path: Path, songs: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"empty\.jsonl: no utterances to measure on"):
        Trainer(made_run(tmp_path, songs, (str(tmp_path / "empty.jsonl"),)), torch.device("cpu"))
    with pytest.raises(InputError, match=r"empty\.jsonl: "):
        Trainer(made_run(tmp_path, tmp_path / "empty.jsonl"), torch.device("cpu"))
    write_manifest(tmp_path / "gone.jsonl", [Utterance(tmp_path / "gone.wav", "abc", 0.0, 1.0)])
    with pytest.raises(InputError, match=r"gone\.jsonl: .* 1 \(no such audio file\)"):
        Trainer(made_run(tmp_path, tmp_path / "gone.jsonl"), torch.device("cpu"))
    assert not (tmp_path / "run").exists()


def test_without_dev_every_evaluation_is_the_best(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path, songs, steps=2, evaluate_every=1, patience=1)
    trainer, shown = trained(run)
    assert trainer.position.step == 2
    assert shown.count("no dev set *") == 2
    assert {row["kind"] for row in rows(run)} == {"train"}
    json.loads((run.output / "last" / "metrics.json").read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN
    assert (run.output / "best" / "config.json").exists()


# Steps


def test_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_rate=0.1)
    assert learning_rate(0, config) == pytest.approx(0.2)
    assert learning_rate(4, config) == pytest.approx(1.0)
    assert learning_rate(9, config) == learning_rate(10, config) == pytest.approx(2.0)
    assert learning_rate(60, config) == pytest.approx(0.2 + 1.8 / 2)
    assert learning_rate(35, config) == pytest.approx(0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(110, config) == learning_rate(500, config) == pytest.approx(0.2)
    falling = [learning_rate(step, config) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(0, TrainConfig(warmup_steps=0, learning_rate=2.0)) == pytest.approx(2.0)
    assert learning_rate(5, TrainConfig(warmup_steps=5, steps=5, learning_rate=2.0)) == pytest.approx(2.0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_against_a_loop(decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    averaged = [torch.zeros(3), torch.zeros(2, 2)]
    wanted = [[0.0] * 3, [0.0] * 4]
    for count in range(30):
        current = [torch.randn(tensor.shape, generator=draw) for tensor in averaged]
        average(decay, averaged, current, torch.tensor(count))
        kept = min(decay, (1 + count) / (10 + count))
        for row, now in zip(wanted, current, strict=True):
            row[:] = [kept * old + (1 - kept) * new for old, new in zip(row, now.flatten().tolist(), strict=True)]
    for row, tensor in zip(wanted, averaged, strict=True):
        assert tensor.flatten().tolist() == pytest.approx(row, abs=1e-5)


def test_the_average_is_what_is_saved(tmp_path: Path, songs: Path, no_curves: None) -> None:
    trainer, _ = trained(made_run(tmp_path, songs, steps=3, evaluate_every=3, ema_decay=0.9))
    saved = load_checkpoint(tmp_path / "run" / "last").model.state_dict()
    for name, value in trainer.stepper.average.module.state_dict().items():
        assert torch.equal(saved[name], value)
    assert any(not torch.equal(saved[name], value) for name, value in trainer.stepper.model.state_dict().items())
    without = Trainer(made_run(tmp_path / "other", songs, ema_decay=0), torch.device("cpu"))
    assert without.stepper.best_model is without.stepper.model


def test_weight_decay_is_for_matrices(tmp_path: Path, songs: Path) -> None:
    model = Trainer(made_run(tmp_path, songs), torch.device("cpu")).stepper.best_model
    decayed, free = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert {parameter.dim() > 1 for parameter in decayed["params"]} == {True}
    assert {parameter.dim() > 1 for parameter in free["params"]} == {False}
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    chosen: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("focusasr.training.step.Accelerator", lambda **given: chosen)
    assert start_accelerator(TrainConfig(), torch.device("cuda:1")) == [torch.device("cuda:1")]
    assert [choose_precision("auto", device) for device in (cpu, cuda)] == ["no", "bf16"]
    assert [choose_precision(wanted, cuda) for wanted in ("fp32", "bf16")] == ["no", "bf16"]


def poison(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int]) -> None:
    """Make the loss of some calls NaN."""
    calls = iter(range(10**6))

    def loss(*arguments: Any) -> Any:
        losses = honest(*arguments)
        return losses._replace(total=losses.total * (math.nan if next(calls) in bad_calls else 1.0))

    honest = stepper.joint_loss
    monkeypatch.setattr(stepper, "joint_loss", loss)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None
) -> None:
    poison(monkeypatch, {1, 4})
    seen: list[tuple[int, torch.Tensor]] = []

    def look(_log: TrainingLog, position: TrainingState, *_: object) -> None:
        weights = torch.cat([parameter.detach().flatten() for parameter in trainer.stepper.model.parameters()])
        averaged = torch.cat(
            [parameter.detach().flatten() for parameter in trainer.stepper.average.module.parameters()]
        )
        seen.append((position.bad_steps, torch.cat((weights, averaged))))

    monkeypatch.setattr(TrainingLog, "step", look)
    run = made_run(tmp_path, songs, steps=6, evaluate_every=6)
    trainer, shown = Trainer(run, torch.device("cpu")), io.StringIO()
    with TrainingLog(run.output, run.settings, Console(file=shown, width=1000)) as log:
        trainer.fit(log)
    assert [bad for bad, _ in seen] == [0, 1, 0, 0, 1, 0]
    assert trainer.position.skipped_steps == 2
    assert "2 steps skipped" in shown.getvalue()
    moved = [not torch.equal(now, before) for (_, before), (_, now) in itertools.pairwise(seen)]
    assert moved == [False, True, True, False, True]
    assert seen[-1][1].isfinite().all()


def test_an_exploding_loss_is_skipped_and_its_utterance_named(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None
) -> None:
    honest, calls = stepper.joint_loss, iter(range(10**6))

    def loss(heard: Any, targets: Any, *rest: Any) -> Any:
        losses = honest(heard, targets, *rest)
        if next(calls) != 3:
            return losses
        rows = losses.rows.clone()
        rows[1] = 1e6
        return losses._replace(attention=losses.attention * 1e4, rows=rows)

    monkeypatch.setattr(stepper, "joint_loss", loss)
    trainer, shown = trained(made_run(tmp_path, songs, steps=5, evaluate_every=5))
    (line,) = [line for line in shown.splitlines() if "skipped, " in line]
    assert line.startswith("step 4: skipped, its attention loss is ")
    assert line.partition("worst: ")[2].startswith(f"{tmp_path}/songs/0")
    assert line.partition(" (loss ")[2].startswith("1e+06)"), "the worst comes first"
    assert (trainer.position.skipped_steps, trainer.position.bad_steps) == (1, 0)
    assert trained(made_run(tmp_path / "never", songs, steps=1, explosion=0))[0].position.skipped_steps == 0


def test_a_loss_that_is_not_finite_names_its_utterance(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None
) -> None:
    bad = str(tmp_path / "songs" / "02.wav")
    honest = stepper.TrainStep._backward

    def backward(self: Any, piece: Any, whole: Any) -> Any:
        figures, rows = honest(self, piece, whole)
        if self.optimizer.param_groups[0]["lr"] == learning_rate(1, CLEAN):
            rows = [(math.nan if item.parts == ((0, 2),) else loss, item) for loss, item in rows]
            figures[0] = math.nan
        return figures, rows

    monkeypatch.setattr(stepper.TrainStep, "_backward", backward)
    _, shown = trained(made_run(tmp_path, songs, steps=3, evaluate_every=3))
    assert [line for line in shown.splitlines() if "skipped, " in line] == [
        f"step 2: skipped, its loss is nan; worst: {bad} (loss nan)"
    ]


def test_what_is_left_out_or_odd_is_named_in_a_file(tmp_path: Path, no_curves: None) -> None:
    songs = write_song_book(tmp_path, [*TEXTS, "cab"])
    lines = songs.read_text().splitlines()
    row = json.loads(lines[0])
    songs.write_text("\n".join([*lines, lines[1], json.dumps({**row, "offset": 0.5, "text": "bad cab " * 9})]) + "\n")
    dev = tmp_path / "dev.jsonl"
    dev.write_text(lines[2] + "\n")
    run = made_run(tmp_path, songs, (str(dev),), steps=1, evaluate_every=1)
    _, shown = trained(run)
    found = [json.loads(line) for line in (run.output / "findings.jsonl").read_text().splitlines()]
    audio = tmp_path / "songs"
    assert found == [
        {"utterance": f"{audio}/00.wav at 0.5 s", "reason": "too short for its text", "used": False},
        {"utterance": f"{audio}/02.wav", "reason": "is in a dev manifest too: its WER will flatter", "used": True},
        {"utterance": f"{audio}/01.wav", "reason": "stands twice in the training manifests", "used": True},
    ]
    assert "left out 1 (too short for its text)" in shown
    assert f"used, but look at 1 (stands twice in the training manifests), such as {audio}/01.wav" in shown


def test_too_many_bad_steps_end_the_run(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(10**4)))
    run = made_run(tmp_path, songs)
    with pytest.raises(InputError, match=rf"step {MOST_BAD_STEPS}: .*lower --learning-rate"):
        trained(run)
    assert not (run.output / "last").exists()


def test_patience_ends_a_run_that_does_not_get_better(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, no_curves: None
) -> None:
    wers = iter([0.5, 0.4, 0.4, 0.6, 0.1])

    def same(*arguments: Any) -> Any:
        measured = measure(*arguments)
        rates = {**measured.score.rates, "wer": Interval(next(wers), None, None)}
        return dataclasses.replace(measured, score=dataclasses.replace(measured.score, rates=rates))

    monkeypatch.setattr(room, "measure", same)
    trainer, shown = trained(made_run(tmp_path, songs, (str(songs),), evaluate_every=1, patience=2))
    assert trainer.position.step == 4
    assert trainer.position.best_wer == 0.4
    assert [line.endswith("*") for line in shown.splitlines() if ": WER %" in line] == [True, True, False, False]
    assert load_checkpoint(tmp_path / "run" / "best").metrics["position"]["step"] == 2
    assert load_checkpoint(tmp_path / "run" / "last").metrics["position"]["step"] == 4


def test_several_batches_make_one_step(tmp_path: Path, songs: Path, no_curves: None) -> None:
    trainer, _ = trained(made_run(tmp_path, songs, steps=2, evaluate_every=2, accumulate=3, batch_seconds=0.5))
    assert (trainer.position.step, trainer.position.batches, trainer.position.epoch) == (2, 6, 0)


# Settings


def test_a_run_is_read_from_tables(tmp_path: Path) -> None:
    tables = {
        "data": {"train": ["a.jsonl", "/abs/b.jsonl=3"], "dev": ["../dev.jsonl"]},
        "text": {"case": "upper"},
        "model": {"preset": "tiny", "heads": 8},
        "train": {"steps": 5},
    }
    run = read_run(tables, tmp_path, Path("out"), "run.toml")
    assert run.train == (str(tmp_path / "a.jsonl"), "/abs/b.jsonl=3")
    assert run.dev == (str(tmp_path.parent / "dev.jsonl"),)
    assert (run.model.width, run.model.heads, run.text.case, run.settings.steps) == (128, 8, "upper", 5)
    assert read_run({}, tmp_path, Path("out"), "").model.width == 224
    assert tables["model"]["preset"] == "tiny", "what was given is not changed"


def test_manifests_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = read_run({"data": {"train": ["a.jsonl"]}}, Path(), Path("out"), "")
    assert run.train == (str(tmp_path / "a.jsonl"),)  # so that another folder can resume it


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"training": {}}, ["run.toml:", "[training]", "data, text, model, train"]),
        ({"train": {"batch_second": 3}}, ["run.toml [train]:", "'batch_second'", "'batch_seconds'"]),
        ({"train": {"width": 144}}, ["run.toml [train]:", "'width'", "[model]"]),
        ({"text": {"preset": "tiny"}}, ["run.toml [text]:", "'preset'", "[model]"]),
        ({"data": {"case": "keep"}}, ["run.toml [data]:", "'case'", "[text]"]),
        ({"train": {"steps": "3"}}, ["run.toml [train]:", "steps is '3'"]),
        ({"train": 3}, ["run.toml [train]:", "table", "3"]),
        ({"data": ["a.jsonl"]}, ["run.toml [data]:", "table", "['a.jsonl']"]),
        ({"model": {"preset": "huge"}}, ["run.toml [model]:", "preset is 'huge'", "tiny, small, base"]),
        ({"model": {"preset": ["tiny"]}}, ["run.toml [model]:", "preset is ['tiny']", "tiny, small, base"]),
        ({"model": {"heads": 3}}, ["run.toml [model]:", "width is 224", "heads (3)"]),
        ({"text": {"case": "UPPER"}}, ["run.toml [text]:", "case is 'UPPER'"]),
        ({"data": {"train": "a.jsonl"}}, ["run.toml [data]:", "train is 'a.jsonl'"]),
    ],
)
def test_tables_that_are_refused(tables: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_run(tables, Path(), Path("out"), "run.toml")
    assert [one for one in named if one not in str(caught.value)] == []
