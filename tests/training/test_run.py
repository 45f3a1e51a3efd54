"""A run that goes on otherwise than it was begun: what counts is said, what cannot change is refused, done is done."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from focusasr.config import PRESETS, ModelConfig
from focusasr.model.checkpoint import Checkpoint, save_checkpoint
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json
from focusasr.training.logger import TrainingLog, draw_curves
from focusasr.training.run import TrainingRun, changes, read_run
from focusasr.training.trainer import Trainer
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import TINY, letters_tokenizer, tiny_model, write_song_book


def made_run(folder: Path, manifest: Path, **settings: Any) -> TrainingRun:
    model = ModelConfig(**TINY)  # type: ignore[arg-type]
    manifests = (str(manifest),)
    return TrainingRun(
        manifests, manifests, folder, model, settings=TrainConfig(batch_seconds=2.5, workers=0, **settings)
    )


def train(run: TrainingRun) -> None:
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        Trainer(run, torch.device("cpu")).fit(log)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_song_book(tmp_path, ["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face"])


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.training.logger.draw_curves", lambda *_: None)


@pytest.mark.parametrize(
    ("table", "other", "was", "now"),
    [
        ("model", {"width": 32, "encoder_layers": 2}, "--width 16 --encoder-layers 1", "--width 32 --encoder-layers 2"),
        ("model", {"max_dist": 7}, "--max-dist none", "--max-dist 7"),  # which no weight shows
        ("text", {"case": "upper"}, "--case lower", "--case upper"),
        (
            "settings",
            {"train_only": "local", "freeze": 1},
            "--train-only all --freeze 0",
            "--train-only local --freeze 1",
        ),
    ],
)
def test_what_cannot_change_on_the_way_is_refused(
    tmp_path: Path, songs: Path, table: str, other: dict[str, Any], was: str, now: str
) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    attempt = dataclasses.replace(run, **{table: dataclasses.replace(getattr(run, table), **other)})
    with pytest.raises(InputError) as caught:
        Trainer(attempt, torch.device("cpu"), resume=True)
    weights = f" (--init-from {run.output / 'last'})" if table == "settings" else ""
    assert str(caught.value) == (
        f"{run.output}: was started with {was}, which cannot become {now}; use the original value, or train into "
        f"another --output-dir{weights}"
    )


def test_other_settings_count_and_are_said(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=1)
    train(run)
    other = dataclasses.replace(
        run, train=(f"{songs}=2",), dev=(), model=dataclasses.replace(run.model, dropout=0.2),
        settings=dataclasses.replace(run.settings, steps=2, weight_decay=0.5),
    )  # fmt: skip
    said = (
        f"other than before, and counts from here on: training manifests with {songs}=2 and without {songs}, --dev "
        f"without {songs}, --steps 2 (was 1), --weight-decay 0.5 (was 0.05), --dropout 0.2 (was 0.0)"
    )
    trainer = Trainer(other, torch.device("cpu"), resume=True)
    assert [line for line in trainer.summary() if line.startswith("other than")] == [said]
    assert [group["weight_decay"] for group in trainer.stepper.optimizer.param_groups] == [0.5, 0.0]
    again = Trainer(run, torch.device("cpu"), resume=True)
    assert not [line for line in again.summary() if "counts from here on" in line]


def test_another_order_of_manifests_is_said(tmp_path: Path, songs: Path) -> None:
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=1), train=(f"{songs}", f"{songs}=2"))
    turned = dataclasses.replace(run, train=run.train[::-1])
    (line,) = changes({"run": run.to_json()}, turned)
    assert line.endswith("counts from here on: training manifests in another order")


def test_a_run_that_is_done_says_how_to_go_on(tmp_path: Path, songs: Path) -> None:
    run = made_run(tmp_path / "run", songs, steps=3, evaluate_every=1, patience=1)
    shown = io.StringIO()
    position = {"step": 3, "evaluations_since_best": 1}

    def told(settings: TrainConfig) -> str:
        trainer = Trainer(dataclasses.replace(run, settings=settings), torch.device("cpu"), resume=True)
        trainer.position = dataclasses.replace(trainer.position, **position)  # type: ignore[arg-type]
        shown.truncate(0)
        with TrainingLog(run.output, settings, Console(file=shown)) as log:
            trainer.fit(log)
        return shown.getvalue().lstrip("\0")

    train(dataclasses.replace(run, settings=dataclasses.replace(run.settings, patience=0)))
    for settings, remedy in (
        (run.settings, "--steps N above 3"),
        (dataclasses.replace(run.settings, steps=9), "--patience N above 1 "),
    ):
        line = told(settings)
        assert all(part in line for part in ("step 3", remedy, f"--init-from {run.output / 'best'}"))
    position["evaluations_since_best"] = 0
    assert "done already" not in told(dataclasses.replace(run.settings, steps=4, patience=0))


def test_a_preset_of_another_size_is_refused_on_the_way(run, tmp_path: Path, songs: Path) -> None:
    train(made_run(tmp_path / "run", songs, steps=1))
    result = run("train", "--resume", "-o", tmp_path / "run", "--preset", "tiny", "--heads", 2)
    assert (result.status, result.out) == (1, "") and "--width 16 --encoder-layers 1, which cannot" in result.err
    assert "become --width 128 --encoder-layers 5;" in result.err


def test_folders_typed_lie_where_they_are_typed_and_those_of_a_file_beside_it(run, tmp_path: Path, songs: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    recipe = tmp_path / "elsewhere" / "run.toml"
    recipe.write_text(f'[data]\ntrain = ["{songs.as_posix()}"]\n[train]\nsteps = 1\nroom_folder = "rooms"\n')
    result = run("train", "--config", recipe, "-o", "run", "--noise-folder", "noises")
    assert result.status == 2 and f"noise_folder is '{Path('noises').absolute()}'" in result.err
    Path("noises").mkdir()
    soundfile.write("noises/hum.wav", np.sin(np.arange(8_000) / 5), 16_000)
    result = run("train", "--config", recipe, "-o", "run", "--noise-folder", "noises")
    assert result.status == 2 and f"room_folder is '{recipe.parent / 'rooms'}'" in result.err


def test_dev_sets_of_one_name_both_count_and_silence_is_no_measure(tmp_path: Path, songs: Path) -> None:
    other = tmp_path / "other" / songs.parent.name
    other.mkdir(parents=True)
    rows = [json.loads(line) for line in songs.read_text().splitlines()]
    for row in rows:
        row["audio_filepath"] = str(songs.parent / row["audio_filepath"])
    (other / songs.name).write_text("\n".join(map(json.dumps, rows[:2])))
    (tmp_path / "silence.jsonl").write_text("\n".join(json.dumps({**row, "text": ""}) for row in rows))
    dev = (str(songs), str(other / songs.name), str(tmp_path / "silence.jsonl"))
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=1, evaluate_every=1), dev=dev)
    train(run)
    trainer = Trainer(run, torch.device("cpu"), resume=True)
    name = f"{songs.parent.name}/{songs.stem}"
    assert [(dev.name, len(dev.utterances)) for dev in trainer.dev_sets[:2]] == [(name, len(rows)), (f"{name}-2", 2)]
    scores = read_json(run.output / "last" / "metrics.json")["dev"]
    rates = [scores[one]["wer"] for one in (name, f"{name}-2")]
    assert trainer.position.best_wer == pytest.approx(sum(rates) / 2)


def test_a_step_of_nothing_but_broken_files_is_not_taken(tmp_path: Path, songs: Path) -> None:
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=2, evaluate_every=2), dev=())
    trainer = Trainer(run, torch.device("cpu"))
    before = {name: weight.clone() for name, weight in trainer.stepper.best_model.state_dict().items()}
    for path in songs.parent.rglob("*.wav"):
        path.write_bytes(b"RIFF and no more")
    shown = io.StringIO()
    with TrainingLog(run.output, run.settings, Console(file=shown, width=300)) as log:
        trainer.fit(log)
    assert trainer.position.skipped_steps == 2 and "none of its recordings can be read" in shown.getvalue()
    for name, weight in trainer.stepper.best_model.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_manifests_are_named_without_dots_where_that_is_the_same_place(tmp_path: Path) -> None:
    tables = {"data": {"train": ["../data/m.jsonl=2"]}, "train": {"noise_folder": "../noise"}}
    (tmp_path / "scripts").mkdir()
    (tmp_path / "far" / "scripts").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "far" / "scripts")
    run = read_run(tables, tmp_path / "scripts", tmp_path, "here")
    assert (run.train, run.settings.noise_folder) == ((f"{tmp_path}/data/m.jsonl=2",), f"{tmp_path}/noise")
    run = read_run(tables, tmp_path / "linked", tmp_path, "here")  # whose .. is far/
    assert run.train == (f"{tmp_path}/linked/../data/m.jsonl=2",)


def test_a_start_typed_lies_here_and_a_size_typed_wins_over_the_file(run, tmp_path: Path, songs: Path) -> None:
    for place, width in ((Path("start"), 16), (tmp_path / "elsewhere" / "start", 32)):
        tokenizer = letters_tokenizer("abcdefgh ")
        save_checkpoint(place, Checkpoint(tiny_model(tokenizer, width=width), tokenizer, {}, ""))
    recipe = tmp_path / "elsewhere" / "run.toml"
    recipe.write_text(f'[data]\ntrain = ["{songs.as_posix()}"]\n[train]\nsteps = 1\nworkers = 0\n')
    assert run("train", "--config", recipe, "-o", "run", "--init-from", "start").status == 0
    assert read_json(Path("run/last/config.json"))["model"]["width"] == 16
    kept = Path("run/last/config.json")
    kept.write_text(kept.read_text().replace(str(Path("start").absolute()), "start"))  # as an earlier version wrote it
    more = run("train", "--config", recipe, "-o", "run", "--init-from", "start", "--resume", "--steps", 2)
    assert more.status == 0 and "--init-from" not in more.err, more.err
    recipe.write_text(recipe.read_text() + 'init_from = "start"\n')
    assert run("train", "--config", recipe, "-o", "run2").status == 0
    assert read_json(Path("run2/last/config.json"))["model"]["width"] == 32
    recipe.write_text(recipe.read_text().replace('init_from = "start"', "[model]\nwidth = 32\nctc = false"))
    assert run("train", "--config", recipe, "-o", "run3", "--preset", "tiny").status == 0
    model = read_json(Path("run3/last/config.json"))["model"]
    assert (model["width"], model["ctc"]) == (PRESETS["tiny"]["width"], False)


def test_a_checkpoint_is_no_folder_for_a_run(tmp_path: Path, songs: Path) -> None:
    tokenizer = letters_tokenizer("abcdefgh ")
    save_checkpoint(tmp_path / "run", Checkpoint(tiny_model(tokenizer), tokenizer, {}, ""))
    with pytest.raises(InputError, match=r"run: .*--output-dir"):
        train(made_run(tmp_path / "run", songs, steps=1))


def test_names_of_any_bytes_and_signs_harm_no_run(tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    write_song_book(tmp_path / "songs", ["abc", "cab"])
    songs = (tmp_path / "songs").rename(tmp_path / "d$a_{$\udce4") / "songs.jsonl"
    songs.write_text(songs.read_text().replace(str(tmp_path / "songs" / "songs"), "songs"))
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=2), dev=(str(songs),))
    train(run)
    draw_curves(run.output / "metrics.jsonl", Path("curves.png"))
    kept = read_json(tmp_path / "run" / "last" / "config.json")
    assert kept["run"]["data"]["dev"] == [str(songs)] and (tmp_path / "run" / "best" / "README.md").is_file()


def test_dev_audio_that_is_not_there_is_told_at_once_and_none_that_can_be_read_loses_no_step(
    tmp_path: Path, songs: Path
) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text('{"audio_filepath": "nope.wav", "text": "abc"}')
    run = dataclasses.replace(made_run(tmp_path / "run", songs, steps=2), dev=(str(dev),))
    with pytest.raises(InputError, match=f"{dev}: none of its recordings is there, such as {tmp_path / 'nope.wav'}"):
        Trainer(run, torch.device("cpu"))
    (tmp_path / "nope.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match="dev: no recording can be read"):
        train(run)
    assert read_json(tmp_path / "run" / "last" / "metrics.json")["position"]["step"] == 2
    (tmp_path / "nope.wav").write_bytes((tmp_path / "songs" / "00.wav").read_bytes())
    with TrainingLog(run.output, run.settings, Console(file=io.StringIO())) as log:
        Trainer(run, torch.device("cpu"), resume=True).fit(log)
    kept = read_json(run.output / "best" / "metrics.json")
    assert kept["position"]["step"] == 2 and not kept["position"]["due"] and list(kept["dev"])
