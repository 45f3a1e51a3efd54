"""Fine-tuning with --keep: the source model's own texts are the targets of recordings without transcripts."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focusasr.audio.features import input_mels
from focusasr.audio.load import load
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.engine import Engine
from focusasr.model.losses import IGNORED
from focusasr.training import adapter, keep
from focusasr.training.adapter import greedy_texts, read_recordings
from focusasr.training.batching import Batch, PlannedExample, SpeechDataset, collate
from focusasr.training.dataset import Corpus, Findings
from focusasr.training.keep import Keeper, KeepStep
from focusasr.training.step import start_accelerator
from focusasr.training_config import TrainConfig
from tests.helpers.tiny_whisper import TEXTS, as_whisper, write_whisper
from tests.helpers.toy_speech import letters_tokenizer, tiny_model, write_song_book

SONGS = ["abc", "cab", "bad cab", "face"]
QUICK = ("--batch-seconds", 6, "--workers", 0, "--warmup-steps", 1, "--evaluate-every", 2, "--threads", 1, "--join", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny", [*TEXTS, *SONGS])


@pytest.fixture(autouse=True)
def every_text_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept what a teacher with random weights writes."""
    loose = dataclasses.replace(adapter.GREEDY, logprob_threshold=None, compression_ratio_threshold=None)
    monkeypatch.setattr(adapter, "GREEDY", loose)


def step_of(folder: Path, **settings: object) -> KeepStep:
    teacher, student = load_checkpoint(folder), load_checkpoint(folder).model
    chosen = TrainConfig(**{"label_smoothing": 0.0, **settings})  # type: ignore[arg-type]
    accelerator = start_accelerator(chosen, torch.device("cpu"))
    tokenizer = as_whisper(teacher.tokenizer).speaking("en")
    return KeepStep(accelerator, student, chosen, tokenizer, teacher.model, frozenset({1}))


def batch_of(step: KeepStep, songs: Path, corpora: tuple[int, ...] = (0, 1, 1)) -> Batch:
    """Return a batch of songs whose rows are from corpus 0, with texts, or corpus 1, to keep."""
    prompt = step.tokenizer.prompt
    kept = read_recordings(str(songs), prompt, 2.0, Findings())
    texts = [step.tokenizer.encode("the cat")] * len(kept.utterances)
    settings = TrainConfig(silence=0.0, clean_epochs=1)
    dataset = SpeechDataset(
        [Corpus("labelled", 1.0, kept.utterances, texts, kept.prompts), kept], settings, 20, step.tokenizer.separator
    )
    items = [PlannedExample(((corpus, row % 4),), 1.0, (0, 0, row), (0, 0)) for row, corpus in enumerate(corpora)]
    return collate([dataset[item] for item in items], step.tokenizer.end)


@pytest.mark.parametrize("timed", [False, True])
def test_targets_of_kept_rows_are_the_texts_of_the_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    monkeypatch.setattr(keep, "TIMED", float(timed))
    step, songs = step_of(folder), write_song_book(tmp_path, SONGS)
    batch = batch_of(step, songs)
    written = step.written(batch, 0)
    labelled = [token for token in written.targets[0].tolist() if token != IGNORED]
    assert labelled == [*step.tokenizer.encode("the cat"), step.tokenizer.end]
    source = load_checkpoint(folder)
    utterances = read_recordings(str(songs), [1], 2.0, Findings()).utterances
    for row in (1, 2):
        wave = torch.from_numpy(load(utterances[row].source))
        memory = source.model.eval().encode(*input_mels(wave[None], torch.tensor([len(wave)]), source.model.config))
        (text,) = greedy_texts(Engine(source.model), step.tokenizer, memory, timed)
        assert text is not None and len(text.tokens) > 2
        targets = written.targets[row].tolist()
        assert [one for one in targets if one != IGNORED] == [*text.tokens, step.tokenizer.end]
        read = written.tokens[row, : len(text.prompt) + len(text.tokens)].tolist()
        assert read == [*text.prompt, *text.tokens]
        assert (step.tokenizer.no_timestamps in text.prompt) is not timed
        first = next(place for place, target in enumerate(targets) if target != IGNORED)
        assert first == len(text.prompt) - 1  # the token after the prompt


def test_a_failed_text_is_no_target(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.replace(adapter.GREEDY, logprob_threshold=0.0, no_speech_threshold=None)
    monkeypatch.setattr(adapter, "GREEDY", strict)
    step = step_of(folder)
    batch = batch_of(step, write_song_book(tmp_path, SONGS))
    assert (step.written(batch, 0).targets[1:] == IGNORED).all()
    with_two = step.measure([batch], 0).figures["total"]
    alone = step.measure([batch_of(step, tmp_path / "songs.jsonl", (0,))], 0).figures["total"]
    assert with_two == pytest.approx(alone, rel=1e-4)
    nothing = step.measure([batch_of(step, tmp_path / "songs.jsonl", (1, 1))], 0)
    assert nothing.figures["total"] == 0 and nothing.finite


def test_a_batch_in_parts_has_the_same_gradient(folder: Path, tmp_path: Path) -> None:
    step, songs = step_of(folder), write_song_book(tmp_path, SONGS)
    batch = batch_of(step, songs, (0, 1, 1, 0))
    whole = step.measure([batch], 0)
    step.discard()
    step.most_frames = batch.longest
    parts = step.measure([batch], 0)
    assert parts.figures["total"] == pytest.approx(whole.figures["total"], rel=1e-4)
    assert parts.norm == pytest.approx(whole.norm, rel=1e-3)


def test_keeping_holds_what_new_texts_replace(folder: Path, tmp_path: Path) -> None:
    """After the same steps on wrong texts, the source's texts are likelier with --keep than without."""
    losses = []
    for corpora in ((0, 0), (0, 0, 1, 1, 1)):
        step = step_of(folder, learning_rate=2e-3)
        songs = write_song_book(tmp_path, SONGS)
        for number in range(10):
            step.measure([batch_of(step, songs, corpora)], number)
            step.apply()
        losses.append(step.measure([batch_of(step, songs, (1, 1, 1))], 0).figures["attention"])
    assert losses[1] < 0.8 * losses[0]


def test_resumed_run_with_keep_equals_one_that_never_stopped(
    run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = write_song_book(tmp_path, SONGS)
    monkeypatch.chdir(tmp_path)
    command = ("train", songs, "--init-from", folder.name, "--keep", f"{songs}=2", *QUICK, "--steps", 4)
    whole = run(*command, "-o", "whole")
    assert whole.status == 0 and re.search(r"targets of \d recordings to keep: the texts of .*tiny", whole.err)
    with monkeypatch.context() as stopped:
        stopped.setattr(Keeper, "_out_of_patience", lambda self: self.position.step == 2)
        assert run(*command, "-o", "parts").status == 0
    monkeypatch.chdir(songs.anchor)
    assert run("train", "--resume", "-o", tmp_path / "parts").status == 0
    monkeypatch.chdir(tmp_path)
    assert json.loads(Path("parts/last/metrics.json").read_text())["position"]["step"] == 4
    ones, others = (load_file(f"{name}/last/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(ones[name], others[name]) for name in ones)
    kept = json.loads(Path("parts/last/config.json").read_text())
    assert kept["run"]["data"]["keep"] == [f"{songs}=2"]
    assert [row["weight"] for row in kept["made_with"]["data"]] == [1.0, 2.0]


def test_keep_from_a_file_is_relative_to_it(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    rows = [json.loads(line) for line in songs.read_text().splitlines()]
    songs.write_text("".join(json.dumps({**row, "text": row["text"].upper()}) + "\n" for row in rows))
    (tmp_path / "run.toml").write_text(
        f"[data]\ntrain = ['{songs.name}']\nkeep = ['{songs.name}=0.5']\n[train]\ninit_from = '{folder.name}'\n"
        "[text]\ncase = 'lower'\n"
    )
    result = run("train", "--config", tmp_path / "run.toml", "-o", "out", "--steps", 1, *QUICK)
    assert result.status == 0, result.err
    assert json.loads(Path("out/last/config.json").read_text())["run"]["data"]["keep"] == [f"{songs}=0.5"]
    assert "in capitals" not in result.err  # they are trained in lower case
    assert "own texts on" in Path("out/last/README.md").read_text()


def test_keep_without_a_whisper_model_is_refused(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    tokenizer = letters_tokenizer()
    save_checkpoint(tmp_path / "native", Checkpoint(tiny_model(tokenizer), tokenizer, {}, ""))
    for source, keep_option, status in (
        ((), songs, 2),
        (("--init-from", tmp_path / "native"), songs, 2),
        (("--init-from", folder), tmp_path / "absent.jsonl", 1),
        (("--init-from", folder), tmp_path / "absent.wav", 1),
        (("--init-from", folder), f"{songs}=0", 2),
    ):
        result = run("train", songs, *source, "--keep", keep_option, "-o", "out", *QUICK, "--steps", 1)
        assert (result.status, result.out, Path("out/last").exists()) == (status, "", False), result.err
        assert result.err.splitlines()[-1].startswith("focusasr: ") and str(keep_option) in result.err


def test_settings_of_data_belong_to_one_command(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    for command, name in (("train", "texts"), ("adapt", "keep")):
        (tmp_path / "run.toml").write_text(
            f"[data]\ntrain = ['{songs}']\n{name} = ['{songs}']\n[train]\ninit_from = '{folder}'\n"
        )
        result = run(command, "--config", tmp_path / "run.toml", "-o", "out")
        result.refused(2, name)
