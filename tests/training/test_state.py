"""What a run's folder holds: equal weights once, and a state that resumes, also one of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.toy_speech import write_song_book

SMALL = ("--width", 16, "--heads", 2, "--encoder-layers", 2, "--decoder-layers", 1, "--max-span", 8, "--ramp", 2)
QUICK = (*SMALL, "--batch-seconds", 4, "--workers", 0, "--warmup-steps", 2, "--evaluate-every", 2, "--threads", 1)


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_song_book(tmp_path, ["bad cab", "a fed egg", "hag", "cafe"])


def numbers_in(value: Any) -> int:
    """Return the count of numbers in the tensors of a nested state."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(numbers_in, parts))


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last" / "trainer" / "state.pt", weights_only=True)


@pytest.mark.parametrize(("decay", "copies"), [(0, 2), (0.9, 3)])
def test_equal_weights_are_written_once(run, songs: Path, decay: float, copies: int) -> None:
    """best/ and last/ of one evaluation share a file, and the state repeats no weights of last/."""
    assert run("train", songs, "-o", "out", *QUICK, "--steps", 2, "--ema-decay", decay).status == 0
    assert Path("out/best/model.safetensors").samefile("out/last/model.safetensors")
    size = numbers_in(load_file("out/last/model.safetensors"))
    assert numbers_in(state_of(Path("out"))) == pytest.approx(copies * size, rel=0.02)


@pytest.mark.parametrize("decay", [0, 0.9])
def test_a_state_of_an_earlier_version_resumes(run, songs: Path, decay: float) -> None:
    """Earlier states held the weights and their averages, whether averaging was on or off."""
    command = ("train", songs, *QUICK, "--ema-decay", decay)
    assert run(*command, "-o", "straight", "--steps", 4).status == 0
    assert run(*command, "-o", "parts", "--steps", 2).status == 0
    state, best = state_of(Path("parts")), load_file("parts/last/model.safetensors")
    averages = {"n_averaged": state.pop("averaged"), **{f"module.{name}": value for name, value in best.items()}}
    torch.save({"model": best, **state, "average": averages}, "parts/last/trainer/state.pt")
    assert run("train", "--resume", "-o", "parts", "--steps", 4).status == 0
    ones, others = (load_file(f"{name}/last/model.safetensors") for name in ("straight", "parts"))
    assert all(torch.equal(ones[name], others[name]) for name in ones)
