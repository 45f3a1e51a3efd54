"""Adaptation of a Whisper model to audio of its own length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from focusasr.audio.features import input_mel
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.losses import IGNORED, Size
from focusasr.runtime.errors import InputError, SettingError
from focusasr.training import adapter
from focusasr.training.adapter import AdaptStep, read_recordings
from focusasr.training.batching import Batch, PlannedExample, SpeechDataset, collate
from focusasr.training.dataset import Corpus, Findings
from focusasr.training.step import start_accelerator
from focusasr.training_config import AdaptConfig
from tests.helpers.tiny_whisper import TEXTS, as_whisper, write_whisper
from tests.helpers.toy_speech import write_song_book

SONGS = ["abc", "cab", "bad cab", "face"]
QUICK = ("--batch-seconds", 4, "--workers", 0, "--warmup-steps", 1, "--max-seconds", 1, "--join-seconds", 1,
         "--max-span", 16, "--ramp", 4, "--evaluate-every", 2, "--dev-normalizer", "none", "--threads", 1)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny", [*TEXTS, *SONGS])


@pytest.fixture(autouse=True)
def every_text_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept what a teacher with random weights writes."""
    loose = dataclasses.replace(adapter.GREEDY, logprob_threshold=None, compression_ratio_threshold=None)
    monkeypatch.setattr(adapter, "GREEDY", loose)


def step_of(folder: Path, tail_frames: int | None = 16, **settings: object) -> AdaptStep:
    teacher, student = load_checkpoint(folder), load_checkpoint(folder).model
    adapter.set_config(student, dataclasses.replace(student.config, tail_frames=tail_frames))
    chosen = AdaptConfig(**{"cut": 0.0, "padded": 0.0, "learning_rate": 1e-3, **settings})  # type: ignore[arg-type]
    accelerator = start_accelerator(chosen, torch.device("cpu"))
    tokenizer = as_whisper(teacher.tokenizer).speaking("en")
    return AdaptStep(accelerator, student, chosen, tokenizer, teacher.model, frozenset({1}))


def batch_of(step: AdaptStep, songs: Path, corpora: tuple[int, ...] = (0, 0), silence: float = 0.0) -> Batch:
    tokenizer = step.tokenizer
    recordings = read_recordings(str(songs), tokenizer.prompt, 1.0, Findings())
    written = [tokenizer.encode("the cat")] * len(recordings.utterances)
    labelled = Corpus("texts", 1.0, recordings.utterances, written, recordings.prompts)
    settings = AdaptConfig(silence=silence, speed=0.0, noise=0.0, reverberation=0.0, telephone=0.0, gain_db=0.0)
    dataset = SpeechDataset([recordings, labelled], settings, 20, tokenizer.separator, window_samples=None)
    items = [PlannedExample(((corpus, row),), 1.0, (0, 0, row), (0, 0)) for row, corpus in enumerate(corpora)]
    return collate([dataset[item] for item in items], tokenizer.end)


def loss_of(step: AdaptStep, batch: Batch) -> float:
    torch.manual_seed(0)
    return step._backward(batch, Size(1.0, float(len(batch.lengths))))[0][0]


def test_a_padded_student_computes_what_its_teacher_computes(folder: Path, tmp_path: Path) -> None:
    step = step_of(folder, padded=1.0)
    assert loss_of(step, batch_of(step, write_song_book(tmp_path, SONGS))) == pytest.approx(0.0, abs=1e-6)


def test_steps_draw_the_student_to_its_teacher(folder: Path, tmp_path: Path) -> None:
    step = step_of(folder)
    batch = batch_of(step, write_song_book(tmp_path, SONGS))
    first = loss_of(step, batch)
    for _ in range(20):
        step.apply()
        last = loss_of(step, batch)
    assert 0 < last < 0.5 * first


def test_the_teacher_and_the_shared_embedding_stay(folder: Path, tmp_path: Path) -> None:
    step = step_of(folder)
    before = {name: value.clone() for name, value in step.teacher.state_dict().items()}
    batch = batch_of(step, write_song_book(tmp_path, SONGS))
    loss_of(step, batch)
    step.apply()
    assert all(torch.equal(value, before[name]) for name, value in step.teacher.state_dict().items())
    embedding = "decoder.token_embedding.weight"
    assert torch.equal(step.model.state_dict()[embedding], before[embedding])
    assert not torch.equal(step.model.encoder.blocks[0].mlp[1].weight, before["encoder.blocks.0.mlp.1.weight"])


def test_a_batch_whose_texts_all_fail_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "GREEDY", dataclasses.replace(adapter.GREEDY, logprob_threshold=1.0))
    step = step_of(folder)
    assert loss_of(step, batch_of(step, write_song_book(tmp_path, SONGS))) == 0.0
    gradients = [weights.grad for weights in step.model.parameters() if weights.grad is not None]
    assert gradients and not any(gradient.any() for gradient in gradients)


def test_noise_means_no_speech_and_then_the_end(folder: Path, tmp_path: Path) -> None:
    step = step_of(folder, timestamps=1.0)
    batch = batch_of(step, write_song_book(tmp_path, SONGS), silence=1.0)
    assert batch.speechless.all()
    mel = torch.zeros(2, 100, 20)
    lesson = step._lesson(batch, mel, torch.zeros(2, dtype=torch.bool))
    tokenizer = step.tokenizer
    assert lesson.tokens.tolist() == [[*tokenizer.sot_sequence, tokenizer.timestamp_begin]] * 2
    assert lesson.targets.tolist() == [[tokenizer.no_speech, IGNORED, IGNORED, tokenizer.end]] * 2
    assert lesson.memory is None and not lesson.taught.any()


@pytest.mark.parametrize("timestamps", [0.0, 1.0])
def test_texts_are_learned_as_they_are_written(folder: Path, tmp_path: Path, timestamps: float) -> None:
    step = step_of(folder, timestamps=timestamps)
    batch = batch_of(step, write_song_book(tmp_path, SONGS), corpora=(1, 0))
    free = torch.tensor([False, True])
    lesson = step._lesson(batch, torch.zeros(2, 100, 20), free)
    tokenizer, text = step.tokenizer, step.tokenizer.encode("the cat")
    targets = [token for token in lesson.targets[0].tolist() if token != IGNORED]
    if timestamps:
        seconds = float(batch.samples[0]) / SAMPLE_RATE_HZ
        times = (tokenizer.timestamp_begin, tokenizer.timestamp_begin + round(seconds / 0.02))
        assert targets == [times[0], *text, times[1], tokenizer.end]
    else:
        assert targets == [*text, tokenizer.end]
    assert lesson.rows.tolist() == [1] and lesson.taught[1].any() and not lesson.taught[0].any()


@pytest.mark.parametrize(("parts", "longest"), [(2, 3.0), (1, 0.0)])
def test_texts_of_joined_and_of_long_recordings_have_no_times(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, longest: float
) -> None:
    step = step_of(folder, timestamps=1.0)
    monkeypatch.setattr(adapter, "ONE_SEGMENT_SECONDS", longest)
    batch = batch_of(step, write_song_book(tmp_path, SONGS), corpora=(1,))
    joined = batch.items[0]._replace(parts=batch.items[0].parts * parts)
    lesson = step._lesson(batch._replace(items=[joined]), torch.zeros(1, 100, 20), torch.zeros(1, dtype=torch.bool))
    assert not (lesson.targets >= step.tokenizer.timestamp_begin).any()
    assert step.tokenizer.no_timestamps in lesson.tokens[0]


def test_short_parts_keep_a_third_of_a_second(folder: Path) -> None:
    step = step_of(folder, cut=1.0)
    samples = torch.tensor([16_000, 3_000, 80_000])
    for _ in range(50):
        cut = step._cut(samples, torch.tensor([True, True, False]))
        assert cut[1] == 3_000 and cut[2] == 80_000 and 4_800 <= cut[0] <= 16_000


def test_adapt_measures_at_both_lengths_before_the_first_step(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    result = run("adapt", folder, songs, "--dev", songs, "-o", "out", "--steps", 2, *QUICK, "--attention", "hybrid")
    assert (result.status, result.out) == (0, f"{Path('out/best')}\n")
    rows = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "dev"]
    assert steps == [0, 2]
    name = f"{tmp_path.name}/songs"
    assert all({f"{name} wer", f"{name} padded wer"} <= row.keys() for row in rows if row["kind"] == "dev")
    config = load_checkpoint(Path("out/best")).model.config
    assert (config.tail_frames, config.attention, config.window_samples) == (48, "hybrid", None)


def test_the_encoder_alone_may_learn(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    command = ("adapt", folder, songs, "--texts", songs, "-o", "out", "--steps", 2, *QUICK)
    assert run(*command, "--train-only", "encoder").status == 0
    before, after = (load_checkpoint(path).model for path in (folder, Path("out/last")))
    assert all(torch.equal(one, after.decoder.state_dict()[name]) for name, one in before.decoder.state_dict().items())
    assert not torch.equal(before.encoder.stem.conv1.weight, after.encoder.stem.conv1.weight)


def test_resumed_adaptation_equals_one_that_never_stopped(
    run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = write_song_book(tmp_path, SONGS)
    command = ("adapt", folder, songs, "--texts", songs, *QUICK, "--steps", 4)
    assert run(*command, "-o", "whole").status == 0
    with monkeypatch.context() as stopped:
        stopped.setattr(adapter.Adapter, "_out_of_patience", lambda self: self.position.step == 2)
        assert run(*command, "-o", "parts").status == 0
    assert run("adapt", "--resume", "-o", "parts").status == 0
    assert json.loads(Path("parts/last/metrics.json").read_text())["position"]["step"] == 4
    whole, parts = (load_file(f"{name}/last/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_adapted_model_gets_its_audio_without_padding(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    assert run("adapt", folder, songs, "-o", "out", "--steps", 1, *QUICK).status == 0
    config = load_checkpoint(Path("out/best")).model.config
    assert config.window_samples is None and config.input_frames(100) == 100 + 48
    assert input_mel(torch.randn(200_000), config).shape[0] == 200  # the window's 2 s
    clip = next(tmp_path.rglob("*.wav"), None) or next(tmp_path.rglob("*.flac"))
    for extra in ((), ("--batched", "True"), ("--word_timestamps", "True")):
        assert run("transcribe", clip, "--model", "out/best", "-o", "texts", "-f", "json", *extra).status == 0
    assert run("adapt", "out/best", songs, "-o", "again", "--steps", 1, *QUICK).err.count("is adapted already") == 1


def test_what_cannot_be_adapted_is_refused(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    for command, status in (
        (("alnum", songs), 1),
        ((folder,), 2),
        ((folder, tmp_path / "absent.jsonl"), 1),
        ((folder, tmp_path / "absent.wav"), 1),
        ((folder, songs, "--cut", "2"), 2),
        ((folder, songs, "--tail-frames", "-1"), 2),
    ):
        result = run("adapt", *command, "-o", "out")
        assert (result.status, result.out, result.err.count("\n")) == (status, "", 1), (command, result.err)


def test_long_recordings_become_parts(tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, ["abcdefgh" * 4])
    corpus = read_recordings(f"{songs}=2", [1], 1.0, Findings())
    assert corpus.weight == 2 and len(corpus.utterances) > 1
    assert max(one.duration or 0 for one in corpus.utterances) <= 1.0
    with pytest.raises(InputError, match=r"no recording can be used"):
        (tmp_path / "empty.jsonl").write_text("")
        read_recordings(str(tmp_path / "empty.jsonl"), [1], 1.0, Findings())


def test_lengths_with_a_tail_stay_inside_the_window() -> None:
    config = ModelConfig(positions="absolute", strides=(1, 2), tail_frames=15)
    assert [config.input_frames(n) for n in (1, 100, 2984, 2990, 3000)] == [16, 116, 3000, 3000, 3000]
    assert dataclasses.replace(config, tail_frames=None).input_frames(5) == 3000
    assert ModelConfig().input_frames(5) == 5
    with pytest.raises(SettingError, match="tail_frames"):
        ModelConfig(tail_frames=3)


def test_text_of_a_short_clip_is_bounded_by_its_length(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    assert run("adapt", folder, songs, "-o", "out", "--steps", 1, *QUICK).status == 0
    clip = next(tmp_path.rglob("*.wav"), None) or next(tmp_path.rglob("*.flac"))
    seconds = soundfile.info(clip).duration
    options = ("--temperature_increment_on_fallback", "none", "--no_speech_threshold", "none")
    assert run("transcribe", clip, "--model", "out/best", "-o", "texts", "-f", "json", *options).status == 0
    segments = json.loads(Path("texts", f"{clip.stem}.json").read_text())["segments"]
    assert sum(len(segment["tokens"]) for segment in segments) <= 12 + 12 * seconds + 1
