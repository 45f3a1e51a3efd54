"""Checkpoints: what is loaded computes what was saved, and a folder that is not whole is refused by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from focusasr.audio.features import stack
from focusasr.config import DEFAULT_CHECKPOINT, TextConfig
from focusasr.model import checkpoint_folder as room
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json
from focusasr.text.tokenizer import train_tokenizer
from tests.helpers.toy_speech import letters_tokenizer, mels, tiny_model

TOKENIZER = letters_tokenizer()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model(TOKENIZER, attention="hybrid", decoder_attention="hybrid")
    save_checkpoint(tmp_path / "model", Checkpoint(model, TOKENIZER, {"wer": 0.5}, "# Card\n"), {"made": "in a test"})
    return tmp_path / "model"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_settings(folder: Path, section: str, **changes: Any) -> None:
    path = folder / "config.json"
    edit_json(path, **{section: {**json.loads(path.read_text())[section], **changes}})


def refused(folder: Path, *says: str) -> None:
    """Check that loading gives one line that names the folder and says the rest."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder)
    line = str(caught.value)
    assert line.startswith(str(folder))
    assert "\n" not in line
    for part in says:
        assert part in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ctc": False, "attention": "global"},
        {"positions": "absolute", "strides": (1, 2)},
        {"temperature": "formula", "max_dist": 3, "decoder_attention": "hybrid", "sharpen_longer": False},
    ],
    ids=str,
)
@torch.inference_mode()
def test_loaded_computes_what_was_saved(tmp_path: Path, settings: dict) -> None:
    model = tiny_model(TOKENIZER, **settings)
    save_checkpoint(tmp_path / "a", Checkpoint(model, TOKENIZER, {"wer": 0.5}, "# Card\nwith ä\n"))
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.model.config == model.config
    assert not loaded.model.training
    tokens = torch.tensor([[1, 5, 6], [1, 7, 2]])
    for wanted, got in zip(
        model(*stack(mels(["ab", "c"])), tokens), loaded.model(*stack(mels(["ab", "c"])), tokens), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert loaded.tokenizer.to_json() == TOKENIZER.to_json()
    assert (loaded.metrics, loaded.card, loaded.folder) == ({"wer": 0.5}, "# Card\nwith ä\n", tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md", "config.json", "metrics.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_policy_and_run_are_kept(tmp_path: Path) -> None:
    policy = TextConfig(case="upper", tokens="bpe", language="en", vocabulary_size=50)
    tokenizer = train_tokenizer(["HELLO THERE"], policy)
    save_checkpoint(tmp_path / "a", Checkpoint(tiny_model(tokenizer), tokenizer, {}, ""), {"train": {"steps": 3}})
    assert load_checkpoint(tmp_path / "a").tokenizer.policy == policy
    assert json.loads((tmp_path / "a" / "config.json").read_text())["run"] == {"train": {"steps": 3}}


def test_a_size_that_its_tokens_have_no_use_for_is_loaded(saved: Path) -> None:
    edit_settings(saved, "text", vocabulary_size=500)
    assert load_checkpoint(saved).tokenizer.policy.vocabulary_size == 500


def test_loaded_weights_can_be_trained(saved: Path) -> None:
    model = load_checkpoint(saved).model
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in model.parameters())


def test_half_precision_is_loaded_as_float32(saved: Path) -> None:
    path = saved / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in load_checkpoint(saved).model.parameters()} == {torch.float32}


# What is refused


@pytest.mark.parametrize("piece", room.PIECES)
def test_a_missing_piece_is_named(saved: Path, piece: str) -> None:
    (saved / piece).unlink()
    refused(saved, f"{piece} is missing; copy the folder again")
    (saved / piece).mkdir()
    refused(saved, f"{piece} is missing")


def test_card_and_metrics_may_be_missing(saved: Path) -> None:
    (saved / "README.md").unlink()
    (saved / "metrics.json").unlink()
    assert (load_checkpoint(saved).card, load_checkpoint(saved).metrics) == ("", {})


@pytest.mark.parametrize("kept_bytes", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, kept_bytes: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    refused(saved, "model.safetensors: not a whole safetensors file", "copy it again")


@pytest.mark.parametrize("piece", ["config.json", "tokenizer.json", "metrics.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_broken_text_pieces(saved: Path, piece: str, content: bytes) -> None:
    (saved / piece).write_bytes(content)
    refused(saved, piece)


def test_weights_of_another_shape_are_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "ctc_head.bias": torch.zeros(3)}, path)
    refused(saved, "ctc_head.bias", "(3,)", f"({TOKENIZER.size},)", "different checkpoints")


def test_missing_and_extra_weights_are_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "stranger": torch.zeros(3)}, path)
    refused(saved, "stranger")
    save_file({name: value for name, value in weights.items() if name != "ctc_head.bias"}, path)
    refused(saved, "ctc_head.bias")


def test_config_of_another_model(saved: Path) -> None:
    edit_settings(saved, "model", width=32)
    refused(saved, "model.safetensors", "different checkpoints")


@pytest.mark.parametrize("number", [0, 2, None, "1"])
def test_format_of_another_version(saved: Path, number: Any) -> None:
    edit_json(saved / "config.json", format=number)
    refused(saved, f"format is {number!r}; this version reads 1")


def test_settings_that_do_not_exist(saved: Path) -> None:
    edit_settings(saved, "model", widht=32)
    refused(saved, "config.json: unknown setting 'widht'; did you mean 'width'?")


def test_settings_out_of_bounds(saved: Path) -> None:
    edit_settings(saved, "model", heads=3)
    refused(saved, "config.json: width is 16; expected: a multiple of 6, twice heads (3)")


@pytest.mark.parametrize("section", ["model", "text"])
@pytest.mark.parametrize("content", [None, [], "tiny"])
def test_missing_sections(saved: Path, section: str, content: Any) -> None:
    edit_json(saved / "config.json", **{section: content})
    refused(saved, f"config.json: section {section!r} is missing")


def test_tokenizer_of_another_size(saved: Path) -> None:
    (saved / "tokenizer.json").write_text(letters_tokenizer("abc").to_json())
    refused(saved, "tokenizer.json: 8 tokens, but the model has 13; it belongs to another checkpoint")


def test_nothing_pickled_is_read(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("model.safetensors", "pytorch_model.bin", "trainer.pt", "tokenizer.json"):
        whole = (saved / name).read_bytes() if (saved / name).exists() else b""
        (saved / name).write_bytes(pickle.dumps(Trap()))
        if whole:
            refused(saved, name)
            (saved / name).write_bytes(whole)
        else:
            load_checkpoint(saved)
    assert not (tmp_path / "sprung").exists()


# Where it is


def test_finding(saved: Path, tmp_path: Path) -> None:
    assert find_checkpoint(str(saved)) == saved
    (tmp_path / "run").mkdir()
    saved.rename(tmp_path / "run" / "best")
    assert find_checkpoint(str(tmp_path / "run")) == tmp_path / "run" / "best"
    with pytest.raises(InputError, match=r"nowhere: .*'focusasr train'"):
        find_checkpoint("nowhere")


def test_the_default_checkpoint_is_found_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOCUSASR_MODEL")
    monkeypatch.setattr(room, "__file__", str(tmp_path / "focusasr" / "model" / "checkpoint.py"))
    with pytest.raises(InputError, match="--model"):
        find_checkpoint(None)
    for place in (tmp_path / "checkpoints", tmp_path / "focusasr" / "checkpoints"):  # a clone's, then a wheel's
        (place / DEFAULT_CHECKPOINT).mkdir(parents=True)
        assert find_checkpoint(None) == find_checkpoint("default") == place / DEFAULT_CHECKPOINT


def test_a_loaded_checkpoint_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(saved)
    save_checkpoint(tmp_path / "again", dataclasses.replace(loaded, folder=None), {"made": "in a test"})
    for piece in (*room.PIECES, "README.md", "metrics.json"):
        assert (tmp_path / "again" / piece).read_bytes() == (saved / piece).read_bytes(), piece


def test_what_is_no_checkpoint_is_told_from_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "sound.wav").touch()
    refused(tmp_path, "no checkpoint, it has no config.json; give a folder that 'focusasr train' wrote")
    refused(tmp_path / "sound.wav", "no checkpoint, it is no folder, and no .pt")


@pytest.mark.parametrize(
    "folder", sorted((Path(__file__).parents[2] / "checkpoints").iterdir()), ids=lambda path: path.name
)
def test_the_card_has_the_measured_figures(folder: Path) -> None:
    measured = read_json(folder / "metrics.json")["test"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name, figures in measured.items():
        (row,) = re.findall(rf"^\| {re.escape(name)} \|.*\|$", card, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        plain = figures["basic"]
        assert cells[1:3] == [str(plain["utterances"]), str(plain["words"])]
        assert cells[3].startswith(f"{100 * plain['wer']:.1f} (") and cells[4] == f"{100 * plain['cer']:.1f}"
