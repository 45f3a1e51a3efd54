"""Whisper's weights: every form of them becomes the same model, and what does not fit is refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from focusasr.audio.features import log_mel
from focusasr.config import NATIVE_SEGMENT_SECONDS, DecodingConfig
from focusasr.decoding.ctc_attention import decode
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.engine import Engine
from focusasr.runtime.errors import InputError
from focusasr.transcription.native import Recognizer
from tests.helpers.tiny_whisper import SHAPE, as_whisper, write_whisper
from tests.helpers.toy_speech import sung
from tests.helpers.whisper_formats import write_openai

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(path: Path, *says: str) -> None:
    """Check that loading gives one line that names the place and says the rest."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line and len(line) < 600
    for part in says:
        assert part in line, line


@torch.inference_mode()
def answers(checkpoint: Checkpoint) -> torch.Tensor:
    """Return the logits for some text after some sound."""
    model = checkpoint.model
    mel = log_mel(torch.from_numpy(sung("abc")), model.config.mel_bands, model.config.window_samples)[None]
    return model(mel, torch.tensor([mel.shape[1]]), torch.tensor([[3, 1, 4, 1, 5]])).logits


def same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.model.config == other.model.config
    assert torch.equal(answers(one), answers(other))
    assert as_whisper(one.tokenizer).prompt == as_whisper(other.tokenizer).prompt
    assert one.tokenizer.to_json() == other.tokenizer.to_json()


# Forms


def test_a_folder_is_read(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    config = loaded.model.config
    assert (config.positions, config.attention, config.strides, config.ctc) == ("absolute", "global", (1, 2), False)
    assert config.window_samples == 100 * 320
    assert (config.encoder_layers, config.decoder_layers, config.mel_bands) == (2, 1, 20)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(loaded.model.decoder.token_embedding.weight, weights["model.decoder.embed_tokens.weight"])
    assert config.vocabulary == loaded.tokenizer.size == len(weights["model.decoder.embed_tokens.weight"])
    assert loaded.folder == folder and "Whisper" in loaded.card and not loaded.model.training


def test_generation_settings_are_kept(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    tokenizer = as_whisper(loaded.tokenizer)
    assert loaded.whisper is tokenizer.whisper
    assert loaded.whisper.suppress_tokens == [1, 2]
    assert loaded.whisper.begin_suppress_tokens[1] == tokenizer.end
    assert loaded.whisper.alignment_heads == [(0, 1)]
    assert loaded.whisper.forced_decoder_ids == [(2, tokenizer.transcribe)]
    assert loaded.whisper.max_initial_timestamp_index == 25
    assert tokenizer.policy.language is None and loaded.whisper.task == "transcribe"


def test_older_folders_keep_generation_settings_in_config_json(folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", suppress_tokens=generation["suppress_tokens"], is_multilingual=False)
    loaded = load_checkpoint(folder)
    assert loaded.whisper is not None
    assert loaded.whisper.suppress_tokens == [1, 2] and not loaded.whisper.multilingual
    assert loaded.whisper.alignment_heads == [(0, 0), (0, 1)]  # all of the later half, where none are named
    assert loaded.tokenizer.policy.language == "en"


def test_a_fine_tuned_model_brings_its_language_and_task(folder: Path) -> None:
    tokenizer = as_whisper(load_checkpoint(folder).tokenizer)
    forced = [[1, tokenizer.languages["de"]], [2, tokenizer.translate]]
    edit_json(folder / "generation_config.json", forced_decoder_ids=forced)
    assert as_whisper(load_checkpoint(folder).tokenizer).sot_sequence == [tokenizer.start, forced[0][1], forced[1][1]]
    for spelled in ("<|es|>", "es", "spanish", "Castilian"):
        edit_json(folder / "generation_config.json", forced_decoder_ids=None, language=spelled, task="transcribe")
        prompt = as_whisper(load_checkpoint(folder).tokenizer).sot_sequence
        assert prompt == [tokenizer.start, tokenizer.languages["es"], tokenizer.transcribe]


def test_shards_are_one_model(folder: Path) -> None:
    whole = load_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same(load_checkpoint(folder), whole)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "the shard 'model-00002-of-00002.safetensors' is missing; copy the folder again")


def test_vocabulary_as_two_files(folder: Path) -> None:
    whole = load_checkpoint(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer.json is missing, and so are vocab.json and merges.txt")
    (folder / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(document["model"]["merges"]))
    added = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    same(load_checkpoint(folder), whole)


def test_half_precision_output_weights_and_bare_names(folder: Path) -> None:
    """Weights in float16 are float32 here, a tied proj_out is no weight of its own, and "model." may be missing."""
    path = folder / "model.safetensors"
    weights = {name.removeprefix("model."): value.half() for name, value in load_file(path).items()}
    save_file({**weights, "proj_out.weight": weights["decoder.embed_tokens.weight"].clone()}, path)
    loaded = load_checkpoint(folder)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    save_file({**weights, "proj_out.weight": weights["decoder.embed_tokens.weight"] * 2}, path)
    refused(folder, "proj_out differs from the token embedding")


def test_openais_file(folder: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(find_checkpoint(str(write_openai(folder, tmp_path / "small.pt"))))
    wanted = load_checkpoint(folder)
    torch.testing.assert_close(answers(loaded), answers(wanted), rtol=0, atol=0.05)  # the file's are float16
    for name, weight in loaded.model.state_dict().items():
        torch.testing.assert_close(weight, wanted.model.state_dict()[name].half().float(), rtol=0, atol=0, msg=name)
    tokenizer = as_whisper(loaded.tokenizer)
    assert tokenizer.encode("the cat") == wanted.tokenizer.encode("the cat")
    assert loaded.whisper is not None
    assert {tokenizer.start, tokenizer.no_speech, tokenizer.sot_prev} < set(loaded.whisper.suppress_tokens)
    assert loaded.whisper.begin_suppress_tokens == [*tokenizer.encode_exactly(" "), tokenizer.end]


def test_openais_file_of_a_vocabulary_that_nobody_has(folder: Path, tmp_path: Path) -> None:
    path = write_openai(folder, tmp_path / "small.pt")
    (tmp_path / "gpt2.tiktoken").unlink()
    refused(path, "its vocabulary: the weights have")


# The hub


def in_cache(folder: Path, cache: Path, name: str = "openai/whisper-tiny.en") -> Path:
    """Put a folder where the hub's client keeps what it has downloaded."""
    home = cache / ("models--" + name.replace("/", "--"))
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "snapshots").mkdir()
    return folder.rename(home / "snapshots" / COMMIT)


def test_a_name_on_the_hub_is_found_in_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = in_cache(folder, tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for local_files_only in (True, False):
        assert find_checkpoint("openai/whisper-tiny.en", local_files_only) == place
    assert load_checkpoint(place).whisper is not None


def test_a_name_that_is_nowhere(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for option, remedy in ((None, "check name and connection"), ("--local-files-only", "leave --local-files-only out")):
        result = run("info", "--model", "openai/whisper-tiny.en", *([option] if option else []))
        assert result.status == 1 and result.err.count("\n") == 1
        assert "openai/whisper-tiny.en: no such checkpoint folder here, nor in the hub's cache" in result.err
        assert remedy in result.err
    for name in ("a/b/c", "/no/where", "../where", "~/where", "two words/x"):  # no names of the hub
        with pytest.raises(InputError, match="no such checkpoint folder"):
            find_checkpoint(name)


# What is refused


def test_other_shapes_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(path).items()}  # the file is written over
    name = "model.encoder.layers.1.fc1.weight"
    save_file({**weights, name: weights[name][:-1].clone()}, path)
    refused(folder, "encoder.blocks.1.mlp.1.weight' has shape (63, 16), the configuration wants (64, 16)")
    save_file({other: value for other, value in weights.items() if other != name}, path)
    refused(folder, "encoder.blocks.1.mlp.1.weight' has shape None")
    save_file({**weights, "model.encoder.stranger": torch.zeros(3)}, path)
    refused(folder, "encoder.stranger' has shape (3,), the configuration wants None")
    save_file({"a": torch.zeros(3)}, path)
    refused(folder, "no token embedding")
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    refused(path.parent, "model.safetensors: not a whole safetensors file")
    path.unlink()
    refused(folder, "model.safetensors is missing")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2'"),
        ({"d_model": None}, "lacks the model's width"),
        ({"d_model": "wide"}, "width is 'wide'"),
        ({"d_model": 20}, "encoder_ffn_dim is 64"),
        ({"encoder_attention_heads": 4}, "decoder_attention_heads is 2"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"num_mel_bins": 80}, "feature_size is 20; expected: 80"),
        ({"encoder_layers": 3}, "encoder.blocks.2"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(folder: Path, changes: dict, says: str) -> None:
    edit_json(folder / "config.json", **changes)
    refused(folder, says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suppress_tokens": [99_999]}, "suppress_tokens has 99999, but the model has"),
        ({"alignment_heads": [[0, 4]]}, "alignment_heads has [0, 4], but the model has 1 decoder layers of 2 heads"),
        ({"suppress_tokens": "none"}, "suppress_tokens is 'none'"),
        ({"forced_decoder_ids": [[1, 2, 3]]}, "2 values"),
        ({"forced_decoder_ids": 7}, "forced_decoder_ids is 7"),
    ],
    ids=str,
)
def test_generation_settings_that_do_not_fit(folder: Path, changes: dict, says: str) -> None:
    edit_json(folder / "generation_config.json", **changes)
    refused(folder, says)


def test_heads_of_a_teacher_with_more_layers_are_not_the_models(folder: Path) -> None:
    edit_json(folder / "generation_config.json", alignment_heads=[[7, 0], [25, 1]])
    loaded = load_checkpoint(folder).whisper
    assert loaded and loaded.alignment_heads == [(0, 0), (0, 1)]


def test_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.pt"
    torch.save({"dims": {}, "model_state_dict": Trap()}, path)
    refused(path, "not one of OpenAI's .pt files, or it would run code when read")
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    refused(path, "would run code")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("saved", [{"a": 1}, [1, 2], {"dims": {}, "model_state_dict": {}}, {"dims": 3}], ids=str)
def test_other_pt_files(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "other.pt")
    refused(tmp_path / "other.pt")
    (tmp_path / "other.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:100])
    refused(tmp_path / "other.pt", "not one of OpenAI's .pt files")


# In use


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_convert_writes_a_folder_that_needs_nothing_else(run, folder: Path, tmp_path: Path, dtype: str) -> None:
    wanted = load_checkpoint(folder)
    result = run("convert", folder, tmp_path / "native", "--dtype", dtype)
    assert (result.status, result.out) == (0, f"{tmp_path / 'native'}\n")
    for path in folder.iterdir():
        path.unlink()
    loaded = load_checkpoint(tmp_path / "native")
    assert loaded.whisper == wanted.whisper and loaded.tokenizer.policy == wanted.tokenizer.policy
    stored = {
        str(value.dtype).removeprefix("torch.")
        for value in load_file(tmp_path / "native" / "model.safetensors").values()
    }
    assert stored == ({"int8", "float16", "float32"} if dtype == "int8" else {dtype})
    if dtype == "float32":
        same(loaded, wanted)
    torch.testing.assert_close(answers(loaded), answers(wanted), rtol=0, atol=0.2 if dtype == "int8" else 0.05)


def test_convert_overwrites_nothing_and_names_what_does_not_fit(run, folder: Path, tmp_path: Path) -> None:
    result = run("convert", folder, tmp_path)
    result.refused(1, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.encoder.conv1.bias"][0] = 1e5
    save_file(weights, folder / "model.safetensors")
    result = run("convert", folder, tmp_path / "half", "--dtype", "float16")
    assert result.status == 1 and "has a weight of 1e+05, too large for float16" in result.err
    assert not (tmp_path / "half").exists()


@torch.inference_mode()
def test_plain_decoding_goes_on_after_the_prompt(folder: Path) -> None:
    """Token by token, the whole text read anew each time: the slow twin."""
    loaded = load_checkpoint(folder)
    model, tokenizer = loaded.model, as_whisper(loaded.tokenizer).speaking("es")
    torch.nn.init.normal_(model.decoder.positional_embedding, std=2.0)  # so that not one token comes for ever
    mels = [log_mel(torch.from_numpy(sung(text)), 20, model.config.window_samples) for text in ("abc", "dddd")]
    answers = decode(Engine(model), mels, tokenizer, DecodingConfig())
    for mel, answer in zip(mels, answers, strict=True):
        memory = model.encode(mel[None], torch.tensor([len(mel)]))
        tokens = list(tokenizer.prompt)
        while len(tokens) < model.config.text_context - 1:
            logits = model.decoder(torch.tensor([tokens]), memory)
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.end:
                break
        wanted = [token for token in tokens[len(tokenizer.prompt) :] if token != tokenizer.end]
        assert answer.tokens == wanted
        assert len(set(wanted)) > 5


def test_long_recordings_are_cut_to_fit_the_window(folder: Path) -> None:
    recognizer = Recognizer(load_checkpoint(folder), torch.device("cpu"), DecodingConfig())
    assert recognizer.segment_seconds == 2.0
    native = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())
    assert native.segment_seconds == NATIVE_SEGMENT_SECONDS


def test_every_command_takes_a_whisper(run, folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.wav", sung("abcdefgh" * 3), 16_000)  # 3.8 s; the window is 2 s
    (tmp_path / "songs.jsonl").write_text('{"audio_filepath": "song.wav", "text": "a b c"}\n')
    for arguments in (
        ("transcribe", tmp_path / "song.wav"),
        ("evaluate", tmp_path / "songs.jsonl", "--json"),
        ("info", "--json"),
    ):
        result = run(*arguments, "--model", folder)
        assert result.status == 0, result.err
    assert json.loads(result.out)["model"]["width"] == SHAPE["d_model"]
    result = run("inspect", folder, tmp_path / "song.wav")
    assert result.status == 1 and "global attention, without spans" in result.err
