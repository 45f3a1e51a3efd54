"""Training that starts from weights: it begins as the source computes, and learns only what it may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focusasr.audio.features import log_mel, stack
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.decoding.ctc_attention import Hypothesis
from focusasr.model.attention import HybridAttention
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.losses import IGNORED
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError, SettingError
from focusasr.runtime.settings import read_settings
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.training import validation
from focusasr.training.augment import NO_MASKS
from focusasr.training.batching import (
    LARGEST_GAP_SECONDS,
    BatchSampler,
    Example,
    PlannedExample,
    SpeechDataset,
    collate,
)
from focusasr.training.dataset import Findings, read_corpus
from focusasr.training.finetune import (
    freeze,
    learn_only,
    remarks,
    settings_for,
    settings_from,
    style_remarks,
    warm_model,
    within_window,
)
from focusasr.training_config import TrainConfig
from tests.helpers.tiny_whisper import TEXTS, as_whisper, write_whisper
from tests.helpers.toy_speech import letters_tokenizer, mels, sung, tiny_model, write_song_book

SONGS = ["abc", "cab", "bad cab", "face", "dab", "abba", "ebb", "fade"]
QUICK = ("--batch-seconds", 40, "--workers", 0, "--warmup-steps", 2, "--ema-decay", 0, "--max-span", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny", [*TEXTS, *SONGS])


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Return a native checkpoint with global attention and a CTC head."""
    tokenizer = letters_tokenizer()
    save_checkpoint(tmp_path / "native", Checkpoint(tiny_model(tokenizer, attention="global"), tokenizer, {}, ""))
    return tmp_path / "native"


def hybrid_of(source: Checkpoint, **settings: object) -> Model:
    tables = settings_from(source, {"model": {"attention": "hybrid", "max_span": 16, **settings}})
    return warm_model(read_settings(type(source.model.config), tables["model"], "test"), source.model).eval()


def new_parts(model: Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# The beginning


@torch.inference_mode()
@pytest.mark.parametrize("decoder", ["global", "hybrid"])
def test_a_hybrid_begins_as_whisper(folder: Path, decoder: str) -> None:
    source = load_checkpoint(folder)
    model = hybrid_of(source, decoder_attention=decoder)
    wave = torch.randn(source.model.config.window_samples or 0)
    mel, lengths = stack([log_mel(wave, 20), log_mel(wave.flip(0), 20)])
    tokens = torch.tensor([[3, 1, 4, 1, 5]] * 2)
    theirs, ours = source.model(mel, lengths, tokens), model(mel, lengths, tokens)
    torch.testing.assert_close(ours.memory.states, theirs.memory.states, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
    assert len(ours.memory.spans) == 2 and not theirs.memory.spans


@torch.inference_mode()
def test_a_hybrid_begins_as_a_native_checkpoint_that_was_global(native: Path) -> None:
    source = load_checkpoint(native)
    batch = stack(mels(["abcdefgh", "ab"]))
    tokens = torch.tensor([[1, 5, 6], [1, 7, 2]])
    theirs, ours = source.model(*batch, tokens), hybrid_of(source)(*batch, tokens)
    assert theirs.ctc is not None and ours.ctc is not None
    for wanted, got in ((theirs.memory.states, ours.memory.states), (theirs.ctc, ours.ctc)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_the_projection_gets_a_gradient_at_once_and_the_spans_after_one_step(folder: Path) -> None:
    source = load_checkpoint(folder)
    model = hybrid_of(source)
    learn_only(model, TrainConfig(init_from="it", train_only="local"))
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    mel = log_mel(torch.randn(source.model.config.window_samples or 0), 20)
    layer = next(module for module in model.modules() if isinstance(module, HybridAttention))
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        model(*stack([mel]), torch.tensor([[3, 1, 4]])).logits.logsumexp(-1).sum().backward()
        assert layer.projection.weight.grad is not None and layer.projection.weight.grad[:, :16].abs().max() > 0
        assert layer.span_pred.linear.weight.grad is not None
        gradients.append(float(layer.span_pred.linear.weight.grad.abs().max()))
        optimizer.step()
    assert gradients[0] == 0 < gradients[1]


# What may learn


def test_train_only_local_leaves_whisper_as_it_is(folder: Path) -> None:
    model = hybrid_of(load_checkpoint(folder))
    learn_only(model, TrainConfig())
    assert new_parts(model) == {name for name, _ in model.named_parameters()}
    learn_only(model, TrainConfig(init_from=str(folder), train_only="local"))
    learning = new_parts(model)
    assert learning and all(name.startswith("encoder.blocks.") for name in learning)
    parts = {name.split(".")[4] for name in learning}
    assert parts == {"ln_local", "attn_local", "span_pred", "projection"}
    assert {name.split(".")[2] for name in learning} == {"0", "1"}


def test_train_only_encoder_leaves_the_decoder_as_it_is(folder: Path) -> None:
    model = hybrid_of(load_checkpoint(folder))
    learn_only(model, TrainConfig(init_from=str(folder), train_only="encoder"))
    encoder = {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    assert encoder and {name for name, one in model.named_parameters() if one.requires_grad} == encoder


def test_train_only_local_wants_something_local(folder: Path) -> None:
    with pytest.raises(InputError, match=r"train_only is 'local'.*hybrid"):
        learn_only(load_checkpoint(folder).model, TrainConfig(init_from=str(folder), train_only="local"))
    with pytest.raises(SettingError, match=r"train_only is 'local'.*init_from"):
        learn_only(hybrid_of(load_checkpoint(folder)), TrainConfig(train_only="local"))


# What is refused


@pytest.mark.parametrize("given", [{"width": 32}, {"positions": "rotary"}, {"ctc": True}, {"strides": [2, 2]}], ids=str)
def test_another_architecture_is_refused(folder: Path, given: dict) -> None:
    (name,) = given
    with pytest.raises(InputError, match=f"{name} is "):
        settings_from(load_checkpoint(folder), {"model": given})


@pytest.mark.parametrize("given", [{"widht": 3}, {"strides": 2}, {"width": [1]}, {"mel_bands": "x"}], ids=str)
def test_a_wrong_setting_beside_a_source_is_told(run, folder: Path, tmp_path: Path, given: dict) -> None:
    (tmp_path / "m.jsonl").write_text("")
    (tmp_path / "run.toml").write_text(
        f"[data]\ntrain = ['m.jsonl']\n[train]\ninit_from = '{folder}'\n[model]\n"
        + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    )
    result = run("train", "--config", tmp_path / "run.toml", "-o", tmp_path / "out")
    result.refused(2, *given)


def test_the_focus_of_a_hybrid_source_stays(native: Path) -> None:
    hybrid = load_checkpoint(native)
    model = hybrid_of(hybrid)
    there = Checkpoint(model, hybrid.tokenizer, {}, "")
    assert settings_from(there, {"model": {"dropout": 0.2, "max_span": 16}})["model"]["dropout"] == 0.2
    for given in ({"attention": "global"}, {"max_span": 20}, {"temperature": "formula"}):
        with pytest.raises(InputError, match=f"{next(iter(given))} is "):
            settings_from(there, {"model": given})


def test_what_is_not_given_is_the_sources(folder: Path) -> None:
    source = load_checkpoint(folder)
    tables = settings_from(source, {"text": {"case": "lower"}, "train": {"steps": 3}})
    assert tables["model"]["width"] == 16 and tables["model"]["attention"] == "global"
    assert (tables["text"]["case"], tables["text"]["punctuation"]) == ("lower", "keep")
    assert tables["train"] == {"steps": 3}


# What is learned on


def test_batches_open_with_whispers_prompt(folder: Path) -> None:
    tokenizer = as_whisper(load_checkpoint(folder).tokenizer)
    text = tokenizer.encode("the cat")
    item = PlannedExample(((0, 0),), 1.0, (0, 0, 0), (0, 0))
    batch = collate([Example(torch.zeros(800), NO_MASKS, 5, tokenizer.prompt, text, item, [])], tokenizer.end)
    assert batch.tokens.tolist() == [[*tokenizer.prompt, *text]]
    assert batch.targets.tolist() == [[IGNORED] * 3 + [*text, tokenizer.end]]


def test_each_text_is_learned_in_the_language_of_its_line(folder: Path, tmp_path: Path) -> None:
    source = load_checkpoint(folder)
    tokenizer = as_whisper(source.tokenizer).speaking("es")
    songs = write_song_book(tmp_path, SONGS)
    said = ["de", "German", "de-AT", "en", None, "xx", 5, ""]
    rows = [json.loads(line) for line in songs.read_text().splitlines()]
    lines = [json.dumps({**row, "language": name}) for row, name in zip(rows, said, strict=True)]
    songs.write_text("".join(line + "\n" for line in lines))
    corpus = read_corpus(str(songs), tokenizer, source.model.config, 2.0, Findings())
    codes = {number: code for code, number in tokenizer.languages.items()}
    heard = [codes[prompt[1]] for prompt in corpus.prompts]
    assert heard == ["de", "de", "de", "en", "es", "es", "es", "es"]
    settings = TrainConfig(join=1.0, join_seconds=20.0, batch_seconds=100.0, silence=0.0, clean_epochs=1)
    groups = [
        item.parts
        for epoch in range(5)
        for batch in BatchSampler([corpus], settings, 60).epoch(epoch)
        for item in batch
    ]
    assert all(len({heard[index] for _, index in parts}) == 1 for parts in groups), "one language in one item"
    assert any(len(parts) > 1 for parts in groups)
    examples = SpeechDataset([corpus], settings, 20, [])
    assert examples[PlannedExample(((0, 3),), 1.0, (0, 0, 0), (0, 0))].prompt == corpus.prompts[3]


def test_dev_texts_are_read_in_the_language_of_their_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_checkpoint(folder)
    songs = write_song_book(tmp_path, SONGS[:3])
    rows = [json.loads(line) for line in songs.read_text().splitlines()]
    songs.write_text("".join(json.dumps({**row, "language": "de"} if n else row) + "\n" for n, row in enumerate(rows)))
    prompts: list[tuple[int, int]] = []

    def decode(engine: object, mels: list[torch.Tensor], tokenizer: WhisperTokenizer, config: object) -> list:
        prompts.append((tokenizer.prompt[1] - tokenizer.start, len(mels)))
        return [Hypothesis(tokenizer.encode(f"{len(mel)}"), 0.0, 0.0) for mel in mels]

    monkeypatch.setattr(validation, "decode", decode)
    heard = validation.measure(source.model, source.tokenizer, validation.read_dev_sets([str(songs)])[0])
    assert prompts == [(1, 1), (2, 2)], "English, then German"
    assert len(heard.hypotheses) == 3


def test_items_are_padded_to_the_window_and_count_for_it(folder: Path, tmp_path: Path) -> None:
    source = load_checkpoint(folder)
    window = source.model.config.window_samples
    songs = write_song_book(tmp_path, SONGS)
    corpus = read_corpus(str(songs), source.tokenizer, source.model.config, 2.0, Findings())
    assert len(corpus.utterances) == len(SONGS)
    settings = TrainConfig(batch_seconds=6.0, join=0.0, clean_epochs=1, silence=0.0)
    batches = BatchSampler([corpus], settings, 60, shortest_seconds=2.0).epoch(0)
    assert sorted(map(len, batches)) == [2, 3, 3]
    examples = SpeechDataset([corpus], settings, 20, [], window_samples=window)
    batch = collate([examples[item] for item in batches[0]], source.tokenizer.end)
    assert batch.lengths.tolist() == [200] * len(batches[0]) and batch.padded_frames == 200 * len(batches[0])
    song = batches[0][0].parts[0][1]
    assert torch.equal(batch.waveforms[0, : batch.samples[0]], torch.from_numpy(sung(SONGS[song])))
    assert examples[batches[0][0]].tokens == corpus.tokens[song]


def test_items_fit_the_window_however_slow(folder: Path) -> None:
    config = load_checkpoint(folder).model.config
    fitted = within_window(TrainConfig(speed=0.5, join_seconds=10.0), config)
    window_seconds = (config.window_samples or 0) / SAMPLE_RATE_HZ
    assert fitted.max_seconds / (1 - 0.5) + 2 * LARGEST_GAP_SECONDS <= window_seconds == 2.0
    assert fitted.join_seconds <= fitted.max_seconds
    with pytest.raises(InputError, match="audio_context is 100"):
        within_window(TrainConfig(speed=0.7), config)


# Runs


def train(run, songs: Path, output: Path, *options: object):
    result = run("train", songs, "--dev", songs, "--output-dir", output, *QUICK, *options)
    assert result.status == 0, result.err
    return result


def test_a_whisper_learns_with_its_own_tokens_and_only_where_it_may(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    options = ("--init-from", folder, "--attention", "hybrid", "--train-only", "local", "--language", "de")
    steps = ("--steps", 4, "--evaluate-every", 2, "--speed", 0)
    result = train(run, songs, tmp_path / "run", *options, *steps)
    assert "only the local branches and their projections learn" in result.err
    assert "ctc_weight is ignored" not in result.err
    before, after = load_checkpoint(folder), load_checkpoint(tmp_path / "run" / "last")
    kept = after.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.model.state_dict().items())
    assert kept["encoder.blocks.0.attention.projection.weight"][:, :16].abs().max() > 0
    tokenizer = as_whisper(after.tokenizer)
    assert tokenizer.prompt[1] == tokenizer.languages["de"]
    assert after.whisper == before.whisper
    assert after.model.config.attention == "hybrid" and after.model.config.max_span == 16
    made = json.loads((tmp_path / "run" / "last" / "config.json").read_text())["run"]["train"]
    assert (made["init_from"], made["train_only"]) == (str(folder), "local")


def test_a_warm_start_can_be_resumed_without_its_source(run, folder: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    options = ("--init-from", folder, "--attention", "hybrid", "--train-only", "local", "--evaluate-every", 2)
    train(run, songs, tmp_path / "whole", *options, "--steps", 4)
    train(run, songs, tmp_path / "parts", *options, "--steps", 4, "--patience", 0)
    state = tmp_path / "parts" / "last" / "config.json"
    assert state.is_file()
    for path in folder.iterdir():
        path.unlink()
    result = run("train", "--resume", "--output-dir", tmp_path / "parts", "--steps", 6)
    assert result.status == 0, result.err
    whole = load_file(tmp_path / "whole" / "last" / "model.safetensors")
    further = load_file(tmp_path / "parts" / "last" / "model.safetensors")
    changed = {name for name, value in whole.items() if not torch.equal(value, further[name])}
    assert changed and all("attention" in name and "attn_global" not in name for name in changed)


def test_a_native_checkpoint_is_trained_on(run, native: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    train(run, songs, tmp_path / "run", "--init-from", native, "--steps", 2, "--evaluate-every", 2)
    before, after = load_checkpoint(native), load_checkpoint(tmp_path / "run" / "last")
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    assert after.model.config.attention == "global" and after.model.config.ctc
    moved = max(
        float((value - before.model.state_dict()[name]).abs().max()) for name, value in after.model.state_dict().items()
    )
    assert 0 < moved < 0.02  # two steps from there, not from chance


def test_a_preset_beside_a_source_is_refused(run, native: Path, tmp_path: Path) -> None:
    songs = write_song_book(tmp_path, SONGS)
    result = run("train", songs, "--init-from", native, "--preset", "base", "-o", tmp_path / "run")
    result.refused(2, "--preset base")
    result = run("train", songs, "--init-from", tmp_path / "nowhere", "-o", tmp_path / "run")
    result.refused(1, tmp_path / "nowhere")


def test_what_has_no_effect_is_said_and_a_start_that_learns_nothing_refused() -> None:
    tokenizer = letters_tokenizer()
    settings = TrainConfig(span_penalty=0.1, patience=2, intermediate_ctc=0.5)
    lines = remarks(settings, tiny_model(tokenizer, attention="global").config, tokenizer, measured=False)
    assert [line.split()[0] for line in lines] == ["intermediate_ctc", "span_penalty", "patience"]
    assert not remarks(settings, tiny_model(tokenizer, encoder_layers=2).config, tokenizer)
    model = tiny_model(tokenizer)
    learn_only(model, TrainConfig(train_only="local", init_from="x"))
    with pytest.raises(SettingError, match="freeze is 1"):
        freeze(model, 1)


# What fits a Whisper


def test_a_whisper_gets_a_rate_that_does_not_destroy_it(folder: Path, native: Path) -> None:
    whisper = load_checkpoint(folder)
    train = settings_for(whisper, settings_from(whisper, {"train": {"steps": 3}}))["train"]
    assert (train["learning_rate"], train["join"], train["steps"]) == (3e-5, 0.8, 3)
    assert settings_for(whisper, {"train": {"learning_rate": 1e-3}})["train"]["learning_rate"] == 1e-3
    assert settings_for(whisper, {"train": {"train_only": "local"}})["train"]["learning_rate"] == 2e-4
    assert settings_for(load_checkpoint(native), {"train": {}})["train"] == {}


def test_windows_are_filled_with_short_utterances(folder: Path, tmp_path: Path) -> None:
    source = load_checkpoint(folder)
    corpus = read_corpus(
        str(write_song_book(tmp_path, SONGS)), as_whisper(source.tokenizer), source.model.config, 2.0, Findings()
    )
    settings = TrainConfig(join=1.0, join_seconds=4.0, batch_seconds=100.0)
    filled = BatchSampler([corpus] * 3, settings, 60, shortest_seconds=30.0).epoch(0)
    mixed = BatchSampler([corpus] * 3, settings, 60).epoch(0)
    count = [sum(len(batch) for batch in batches) for batches in (filled, mixed)]
    assert count[0] < count[1]


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        (["YES", "RUB OUT G M E"], 2),
        (["yes", "rub out"], 1),
        (["Yes.", "Rub out"], 0),
        (["ЖУК.", "ДА!"], 1),
        (["12."], 0),
    ],
)
def test_texts_in_another_style_than_the_source_writes_are_named(folder: Path, texts: list[str], count: int) -> None:
    assert len(style_remarks(texts, load_checkpoint(folder))) == count
    assert style_remarks(texts, None) == []


def test_training_stops_when_dev_falls_apart(
    run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.4, 0.9, 1.01, 0.5])
    monkeypatch.setattr("focusasr.training.trainer.overall_wer", lambda scores: next(rates))
    songs = write_song_book(tmp_path, SONGS)
    result = run(
        "train", songs, "--dev", songs, "--init-from", folder, "-o", "out", "--steps", 3, "--evaluate-every", 1, *QUICK
    )
    assert (result.status, result.out) == (1, "")
    assert "step 2: dev WER rose from 40.0 to 101.0 %" in result.err and "--learning-rate" in result.err
    assert load_checkpoint(Path("out/best")).metrics["position"]["step"] == 0
