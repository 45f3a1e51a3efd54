"""Bad checkpoints: each is refused in one line that names it, soon, in little memory, and nothing in it is run."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from focusasr.model import hub
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.torch_weights import as_int8
from focusasr.model.weights import Weight, from_int8
from focusasr.runtime.errors import InputError
from tests.helpers.bad_checkpoints import KINDS, SECONDS, all_bad
from tests.helpers.bad_weights import MARKER, traps
from tests.helpers.toy_speech import letters_tokenizer, tiny_model

MOST_GROWN_MB = 64  # the good ones take 57 at most: PyTorch and the tokenizer, the first time each is used
EVERY = 7  # of the absurd sizes so many-th is tried here; `python -m tests.helpers.bad_checkpoints` tries all


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which all are tried, with the good ones they are made of."""
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def reports(place: Path) -> list[dict[str, Any]]:
    """Return what happened to each bad checkpoint, in a process of its own with little memory left to take."""
    program = [sys.executable, "-m", "tests.helpers.bad_checkpoints", "0", str(EVERY)]
    done = subprocess.run(program, cwd=place, capture_output=True, text=True, timeout=600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    return [line for line in lines if "seconds" in line]


def named(reports: list[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(report[key] for key in ("kind", "name", *keys)) for report in reports]


def test_there_are_many_of_every_kind(reports: list[dict[str, Any]]) -> None:
    names = {(bad.kind, bad.name) for bad in all_bad()}
    assert len(names) == len(all_bad()) > 1000
    tried = Counter(report["kind"] for report in reports if not report["works"])
    assert min(tried[kind] for kind in KINDS) > 30, tried


def test_nothing_is_executed(reports: list[dict[str, Any]]) -> None:
    assert not [line for line in named(reports, "sprung") if line[-1]]
    assert sum("trap" in report["name"] for report in reports) > 50


def test_a_trap_springs_where_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in traps():
        if "runpy" not in name:  # which runs what the others make
            pickle.loads(content)
            assert Path(MARKER).exists(), name
            Path(MARKER).unlink()


def test_the_bad_are_refused_by_name_and_the_good_work(reports: list[dict[str, Any]]) -> None:
    assert not [line for line in named(reports, "crash") if line[-1]]
    wrong = [report for report in reports if report["works"] is not None and report["works"] == bool(report["refusal"])]
    assert not named(wrong, "works", "refusal")
    refusals = [report for report in reports if report["refusal"]]
    lines = {report["refusal"]: report for report in refusals}
    assert not [line for line in lines if not line.startswith("bad/in/") or "\n" in line or len(line) > 600]


def test_memory_and_time_stay_small(reports: list[dict[str, Any]]) -> None:
    assert not [line for line in named(reports, "grown_mb") if line[-1] > MOST_GROWN_MB]
    assert not [line for line in named(reports, "seconds") if line[-1] > SECONDS]


# The command line


SOME = (
    "native trap-touch-2-bare-as-model.safetensors", "native weights-nan", "native header-length-4294967296",
    "native config-encoder_layers-1000000000000", "native config.json-deep-lists", "native tokenizer_ids_far",
    "whisper trap-system-4-bin-only", "whisper shard-'\\x00'", "whisper config-d_model-1000000000000",
    "whisper tokenizer-of-another-model", "converted generation-suppress_tokens-[1000000000]", "pt trap-system-4-zip",
    "pt records-bomb", "pt calls-builtins.bytearray", "pt wide", "pt folder",
    "ct2 rows-4294967295", "ct2 trap-system-4-zip", "bin trap-touch-2-zip", "ggml tokens-2147483647",
    "ggml truncated-0.5",
)  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_the_command_line_says_one_line(
    name: str, run, reports: list[dict[str, Any]], place: Path, sample: Path, tmp_path: Path
) -> None:
    (bad,) = [bad for bad in all_bad() if f"{bad.kind} {bad.name}" == name]
    (good,) = (place / "good" / bad.kind).glob({"pt": "*.pt", "ggml": "*.bin"}.get(bad.kind, "model"))
    path = shutil.copytree(good.parent, tmp_path / "in") / good.name
    bad.spoil(path)
    result = run("transcribe", sample, "--model", path)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"focusasr: {path}") and result.err.count("\n") == 1 and len(result.err) < 600
    assert not list(Path().iterdir())  # neither a trap's marker nor an output


# Names


NO_NAMES = (
    "../x", "a/../../b", "/etc", "a/b/c", "a/..", "../..", "./..", "a/.", "..", "a\0/b", "a/b\0", "\0", "a\n/b",
    "a/b\n", "a\\..\\b", "a/..\\b", "hf://a/b", "https://example.com/a/b", "file:///etc/passwd", "~/a", "a/b@main",
    "a/b:c", "a/b%2f",
    "a//b", "a/", "/a/b", "-a/b", "a/b ", " a/b", "a/ä", "x" * 5000, "a/" + "b" * 97, "a/" + "b" * 100_000, "",
    "models--a--b/../c", "openai/whisper-tiny.en/..",
)  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name[:30]))
def test_no_name_leads_out_of_the_cache(name: str, run, sample: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name))
    if name not in ("/etc", "..", "../..", "./..", ""):  # which are folders
        with pytest.raises(InputError, match=r"no such checkpoint folder"):
            find_checkpoint(name, model_dir=tmp_path / "cache")
    result = run("transcribe", sample, "--model", name, "--model-dir", tmp_path / "cache")
    assert result.status == 1 and result.err.count("\n") == 1 and len(result.err) < 600
    assert not asked and not (tmp_path / "cache").exists()


def test_names_of_the_hub_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or "place")
    names = ["openai/whisper-tiny.en", "a/b", "a_1/b-2.c", "a/" + "b" * 96]
    for name in names:
        assert find_checkpoint(name) == Path("place")
    assert asked == names and hub.download("c/d") == Path("place")


def test_int8_storage_is_computed_as_stored(tmp_path: Path) -> None:
    tokenizer = letters_tokenizer()
    model = tiny_model(tokenizer, max_span=8)
    folder = tmp_path / "stored"
    save_checkpoint(folder, Checkpoint(model, tokenizer, {}, ""), dtype=torch.int8)
    loaded = load_checkpoint(folder).model
    again = tmp_path / "again"
    save_checkpoint(again, Checkpoint(loaded, tokenizer, {}, ""), dtype=torch.int8)
    first, second = (load_file(place / "model.safetensors") for place in (folder, again))
    integers = [name for name, value in first.items() if value.dtype == torch.int8]
    assert len(integers) > 10 and all(torch.equal(first[name], second[name]) for name in integers)
    weight = model.state_dict()["encoder.blocks.0.mlp.1.weight"]
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((loaded.state_dict()["encoder.blocks.0.mlp.1.weight"] - weight).abs() <= 0.501 * step).all()


def test_halves_of_a_projection_have_scales_of_their_own() -> None:
    local, other = torch.full((2, 3), 0.001), torch.eye(3)[:2]
    name = "encoder.blocks.0.attention.projection.weight"
    stored = as_int8({name: torch.cat((local, other), dim=1)})
    assert stored[name][:, :3].eq(127).all() and stored[name + ".scale"].shape == (2, 2)


def test_int8_scales_of_another_shape_are_refused() -> None:
    values, scales = np.ones((4, 4), np.int8), np.ones((3, 1), np.float32)
    weights = {"a": Weight((4, 4), lambda: values), "a.scale": Weight((3, 1), lambda: scales)}
    with pytest.raises(InputError, match="scales of shape"):
        from_int8(weights)["a"].read()
