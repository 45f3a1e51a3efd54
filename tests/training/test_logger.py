"""What a run shows and keeps: a display of 80 columns, rows, samples, pictures, and where the model comes from."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from focusasr.config import PRESETS, ModelConfig
from focusasr.evaluation.wer import score
from focusasr.model.transformer import Model
from focusasr.runtime.cache import fingerprint
from focusasr.runtime.files import read_json
from focusasr.training.logger import TrainingLog, draw_curves, read_rows
from focusasr.training.run import TrainingRun, changed_manifests, commit, read_run
from focusasr.training.state import TrainingState
from focusasr.training.trainer import Trainer
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import TINY, write_song_book

FIGURES = {"total": 1234.567, "ctc": 2345.678, "attention": 3456.789, "span": 0.5}
BUSY = TrainingState(
    step=99_999, epoch=999, skipped_steps=99, seconds=3600, audio_seconds=3600 * 14_400.0,
    padded_seconds=3600 * 18_000.0, waiting_seconds=360,
)  # fmt: skip


def test_the_display_fits_80_columns(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with TrainingLog(tmp_path, TrainConfig(), console) as log:
        scores = {"a/dev": score(["a b c d", "e f"], ["a b c x", "e f"]), "b/dev": score(["a b", "c d"], ["a b", "c"])}
        log.evaluation(BUSY, scores, 0.2083, True)
        lines = log.dashboard(BUSY, FIGURES, 1.5e-3)
        log.step(BUSY, FIGURES, 1.5e-3)
    assert max(map(len, lines)) <= 80, lines
    shown = " ".join(lines)
    for part in ("epoch 999", "loss 1235", "ctc 2346", "attention 3457", "rate 1.5e-03", "99 skipped"):
        assert part in shown
    for part in ("dev WER 20.8 % (", "14400 h/h", "20 % padding", "10 % waiting", " GB"):
        assert part in shown


def test_a_dev_set_of_one_recording_has_no_interval(tmp_path: Path) -> None:
    shown = io.StringIO()
    with TrainingLog(tmp_path, TrainConfig(), Console(file=shown, width=200)) as log:
        log.evaluation(BUSY, {"dev": score(["a b c d"], ["a b c x"])}, 0.25, True)
        assert log.dev_wer == "dev WER 25.0 %"
    assert "WER % dev 25.0 *" in shown.getvalue()


def test_it_is_quiet_where_there_is_no_terminal(tmp_path: Path) -> None:
    shown = io.StringIO()
    with TrainingLog(tmp_path, TrainConfig(), Console(file=shown, width=80)) as log:
        log.step(BUSY, FIGURES, 1e-3)
    assert shown.getvalue() == ""


def test_off_a_terminal_a_line_tells_the_pace_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("focusasr.training.logger.time.monotonic", lambda: clock[0])
    with TrainingLog(tmp_path, TrainConfig(steps=10_000), Console(file=shown, width=80)) as log:
        for step in range(101, 1001):
            log.step(dataclasses.replace(BUSY, step=step), FIGURES, 1e-3)
            clock[0] += 2.0
    assert shown.getvalue().splitlines() == [
        "step 102 of 10000: 2 s a step, 5.5 h left",
        "step 121 of 10000: 2 s a step, 5.5 h left",
        "step 422 of 10000: 2 s a step, 5.3 h left",
        "step 723 of 10000: 2 s a step, 5.2 h left",
    ]


def test_rows_after_the_checkpoint_and_broken_ones_are_forgotten(tmp_path: Path) -> None:
    rows = [{"step": step, "kind": "train", "total": 1.0} for step in (20, 40, 60)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 80, "ki')
    TrainingLog(tmp_path, TrainConfig(), Console(file=io.StringIO())).go_on(40)
    assert list(read_rows(tmp_path / "metrics.jsonl")) == rows[:2]


def test_samples_after_the_checkpoint_are_forgotten_and_all_where_there_is_none(tmp_path: Path) -> None:
    texts = [f"step {step}, dev\n\nREF: step 9, a\nHYP: a\n\n" for step in (20, 40, 60)]
    (tmp_path / "samples.txt").write_text("".join(["a line of somebody else, 5\n", *texts]))
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "kind": "train", "total": 1.0}\n')
    log = TrainingLog(tmp_path, TrainConfig(), Console(file=io.StringIO()))
    log.go_on(40)
    assert (tmp_path / "samples.txt").read_text() == "".join(["a line of somebody else, 5\n", *texts[:2]])
    (tmp_path / "samples.txt").write_text("".join(texts))
    log.go_on(0)  # a run that was killed before its first checkpoint begins anew
    assert [(tmp_path / name).read_text() for name in ("samples.txt", "metrics.jsonl")] == ["", ""]


def test_curves_of_losses_rates_spans_and_temperatures(tmp_path: Path) -> None:
    rows = [
        {"step": 20, "kind": "train", "total": 1.0, "ctc": None, "attention": 0.5},
        {"step": 20, "kind": "dev", "wer": 0.5, "a/dev wer": 0.5, "a/dev cer": 0.2},
        {"step": 20, "kind": "focus", "layer 1 span_ms": 200.0, "layer 1 temperature": 1.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_keeps_samples_and_the_focus(tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, ["bad cab", "a fed egg", "hag"])
    settings = TrainConfig(steps=1, evaluate_every=1, workers=0, intermediate_ctc=0.5)
    config = ModelConfig(**{**TINY, "encoder_layers": 2})  # type: ignore[arg-type]
    run = TrainingRun((str(songs),), (str(songs),), tmp_path / "run", config, settings=settings)
    shown = io.StringIO()
    trainer = Trainer(run, torch.device("cpu"))
    with TrainingLog(run.output, settings, Console(file=shown, width=200)) as log:
        trainer.fit(log)
    samples = (run.output / "samples.txt").read_text()
    assert samples.startswith(f"step 1, {tmp_path.name}/songs\n\nREF: bad cab\nHYP: ")
    assert "REF: bad cab" in shown.getvalue()
    (focus,) = [row for row in read_rows(run.output / "metrics.jsonl") if row["kind"] == "focus"]
    names = {f"layer {layer} {figure}" for layer in (1, 2) for figure in ("span_ms", "temperature")}
    assert focus.keys() == names | {"step", "kind"}
    assert 80 < focus["layer 1 span_ms"] < 320, "between ramp and max_span"
    made = read_json(run.output / "best" / "config.json")["made_with"]
    assert torch.__version__.startswith(made["versions"]["torch"])
    (data,) = made["data"]
    assert (data["sha256"], data["utterances"]) == (fingerprint(songs), 3)
    assert changed_manifests(made, made, "data") == changed_manifests(made, made, "dev") == []
    assert Trainer(run, torch.device("cpu"), resume=True).position.best_wer is not None
    songs.write_text(songs.read_text() + "\n")
    again = Trainer(run, torch.device("cpu"), resume=True)
    assert again.position.best_wer is None, "of another dev set"
    assert any("manifest has changed since the run began" in line for line in again.summary())
    again = read_run(
        {**read_json(run.output / "best" / "config.json")["run"]}, Path("/elsewhere"), run.output, "config.json"
    )  # type: ignore[assignment]
    assert again.train == run.train


def test_intermediate_ctc_teaches_the_lower_half(tmp_path: Path) -> None:
    from focusasr.model.losses import LossWeights, joint_loss

    torch.manual_seed(0)
    model = Model(ModelConfig(**{**TINY, "encoder_layers": 4, "vocabulary": 9})).train()  # type: ignore[arg-type]
    mel, lengths = torch.rand(2, 60, 20), torch.tensor([60, 44])
    tokens, targets = torch.tensor([[1, 5, 6], [1, 7, 2]]), torch.tensor([[5, 6, 2], [7, 2, -100]])
    heard = model(mel, lengths, tokens, True)
    assert heard.middle is not None and heard.middle.shape == heard.ctc.shape
    parts = [
        joint_loss(part, targets, 0, LossWeights(1.0, intermediate_ctc=share)).ctc
        for part, share in ((heard, 0.0), (heard, 1.0), (heard, 0.3))
    ]
    assert parts[2] == pytest.approx(float(0.7 * parts[0] + 0.3 * parts[1]), rel=1e-5)
    joint_loss(heard, targets, 0, LossWeights(1.0, intermediate_ctc=1.0)).total.backward()
    learned = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in model.encoder.blocks]
    assert learned == [True, True, False, False]
    assert model(mel, lengths, tokens).middle is None


def test_the_commit_is_known_inside_git_alone(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git[:3], "init", "-q"], check=True)
    (tmp_path / "__init__.py").write_text("a")
    subprocess.run([*git, "add", "__init__.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    head = commit(tmp_path)
    assert head is not None and len(head) == 40
    (tmp_path / "__init__.py").write_text("b")
    assert commit(tmp_path) == f"{head}+changes"
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "__init__.py").touch()
    assert commit(tmp_path / "site-packages") is None, "the repository of who installed it"


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 2), ("small", 8), ("base", 25)])
def test_presets_have_about_the_weights_they_say(preset: str, millions: int) -> None:
    with torch.device("meta"):
        counts = [Model(ModelConfig(**PRESETS[preset], vocabulary=size)).parameter_count() for size in (32, 1000)]
    assert any(abs(count / 1e6 - millions) <= 0.1 * millions for count in counts), counts


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 4), (3, 5)):  # the second run goes on from step 2
        time.sleep(1.01 * (first > 1))  # TensorBoard orders files by the second
        with TrainingLog(tmp_path, TrainConfig(), Console(file=io.StringIO())) as log:
            log.go_on(first - 1)
            for step in range(first, last + 1):
                log._keep(step, "dev", {"wer": step / 10 + last})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, round(one.value, 1)) for one in events.Scalars("dev/wer")] == [
        (1, 4.1), (2, 4.2), (3, 5.3), (4, 5.4), (5, 5.5)
    ]  # fmt: skip
