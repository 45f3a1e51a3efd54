"""Settings: every wrong one is refused in one line that names it, what was given and what is wanted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from focusasr.config import PRESETS, DecodingConfig, ModelConfig, PreprocessConfig, TextConfig
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import read_settings, read_toml, to_settings
from focusasr.training_config import DataConfig, TrainConfig
from focusasr.whisper_config import LongformConfig, SearchConfig

KINDS = [TextConfig, ModelConfig, DataConfig, TrainConfig, DecodingConfig, PreprocessConfig]


def refusal(kind: type, settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_settings(kind, settings, "run.toml [x]")
    line = str(caught.value)
    assert line.startswith("run.toml [x]: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_fine_and_survive_json(kind: type) -> None:
    config = kind()
    assert read_settings(kind, json.loads(json.dumps(to_settings(config))), "") == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_says_what_it_is_for(kind: type) -> None:
    silent = {field.name for field in dataclasses.fields(kind) if not field.metadata.get("help")}
    assert silent == {DataConfig: {"train", "dev", "texts", "keep"}, ModelConfig: {"vocabulary"}}.get(
        kind, set()
    )  # these are no options


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_models(preset: str) -> None:
    assert read_settings(ModelConfig, PRESETS[preset], preset).width == PRESETS[preset]["width"]


def test_unknown_setting_suggests_the_near_name() -> None:
    assert refusal(TrainConfig, {"learning_rat": 1}).endswith(
        "unknown setting 'learning_rat'; did you mean 'learning_rate'?"
    )
    assert refusal(TrainConfig, {"zzzz": 1}).endswith("unknown setting 'zzzz'")


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (TrainConfig, {"steps": "many"}, "steps is 'many'"),
        (TrainConfig, {"steps": 1.5}, "steps is 1.5"),
        (TrainConfig, {"steps": True}, "steps is True"),
        (TrainConfig, {"learning_rate": "fast"}, "learning_rate is 'fast'"),
        (TrainConfig, {"learning_rate": True}, "learning_rate is True"),
        (TrainConfig, {"spec_augment": 1}, "spec_augment is 1"),
        (TrainConfig, {"steps": None}, "steps is None"),
        (TextConfig, {"language": 5}, "language is 5"),
        (TextConfig, {"case": "Lower"}, "case is 'Lower'"),
        (TextConfig, {"case": ["lower"]}, "case is ['lower']"),
        (ModelConfig, {"strides": 2}, "strides is 2"),
        (ModelConfig, {"strides": [2]}, "strides is [2]; expected: 2 values"),
        (ModelConfig, {"strides": [2, 2, 2]}, "strides is [2, 2, 2]; expected: 2 values"),
        (ModelConfig, {"strides": [2, "2"]}, "strides is '2'"),
        (ModelConfig, {"max_dist": 2.5}, "max_dist is 2.5"),
        (DataConfig, {"train": "a.jsonl"}, "train is 'a.jsonl'"),
        (DataConfig, {"train": ["a.jsonl", 3]}, "train is 3"),
    ],
)
def test_wrong_types(kind: type, settings: dict[str, Any], says: str) -> None:
    assert says in refusal(kind, settings)


@pytest.mark.parametrize("settings", [5, "tiny", ["steps"], None, True])
def test_what_is_no_table_is_refused(settings: Any) -> None:
    assert "expected a table of settings" in refusal(TrainConfig, settings)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (TrainConfig, {"steps": 0}, "steps is 0"),
        (TrainConfig, {"batch_seconds": 0}, "batch_seconds is 0.0"),
        (TrainConfig, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (TrainConfig, {"weight_decay": float("inf")}, "weight_decay is inf"),
        (TrainConfig, {"ctc_weight": 1.01}, "ctc_weight is 1.01; expected: 0 to 1"),
        (TrainConfig, {"workers": -1}, "workers is -1; expected: at least 0"),
        (TrainConfig, {"speed": 0.9}, "speed is 0.9"),
        (TrainConfig, {"seed": -1}, "seed is -1; expected: 0 to 9223372036854775807"),
        (TrainConfig, {"seed": 10**23}, "seed is 1"),
        (TextConfig, {"vocabulary_size": 10**23}, "vocabulary_size is 1"),
        (DecodingConfig, {"joint_beam_size": 10**22}, "joint_beam_size is 1"),
        (SearchConfig, {"best_of": 10**23}, "best_of is 1"),
        (LongformConfig, {"clip_timestamps": "1e307"}, "clip_timestamps is '1e307'"),
        (TrainConfig, {"ema_decay": 1.0}, "ema_decay is 1.0"),
        (ModelConfig, {"width": 100, "heads": 3}, "width is 100; expected: a multiple of 6"),
        (ModelConfig, {"width": 12, "heads": 4}, "width is 12; expected: a multiple of 8"),
        (ModelConfig, {"heads": 0}, "heads is 0; expected: 1 to 1000000"),
        (ModelConfig, {"strides": [0, 2]}, "strides is (0, 2)"),
        (ModelConfig, {"max_span": 4, "ramp": 8}, "max_span is 4; expected: at least ramp (8)"),
        (ModelConfig, {"max_dist": -1}, "max_dist is -1"),
        (ModelConfig, {"dropout": 1}, "dropout is 1.0"),
        (ModelConfig, {"text_context": 3}, "text_context is 3; expected: 4 to 4096"),
        (TextConfig, {"vocabulary_size": 7}, "vocabulary_size is 7; expected: 8 to 1000000"),
        (PreprocessConfig, {"lufs": -16}, "lufs is -16.0; expected: loudness ebu"),
        (PreprocessConfig, {"peak_db": -3}, "peak_db is -3.0; expected: loudness ebu or peak"),
        (DecodingConfig, {"batch_size": 0}, "batch_size is 0; expected: 1 to 1000000"),
        (DecodingConfig, {"ctc_weight": -0.1}, "ctc_weight is -0.1; expected: 0 to 1"),
        (DecodingConfig, {"vad_threshold": 1.0}, "vad_threshold is 1.0"),
    ],
)
def test_bounds(kind: type, settings: dict[str, Any], says: str) -> None:
    assert says in refusal(kind, settings)


def test_types_that_fit_are_taken() -> None:
    assert read_settings(TrainConfig, {"learning_rate": 1}, "").learning_rate == 1.0
    assert type(read_settings(TrainConfig, {"learning_rate": 1}, "").learning_rate) is float
    assert read_settings(ModelConfig, {"strides": [1, 2]}, "").strides == (1, 2)
    assert read_settings(ModelConfig, {"max_dist": 5}, "").max_dist == 5
    assert read_settings(ModelConfig, {"max_dist": None}, "").max_dist is None


def test_step_seconds_follow_from_the_strides() -> None:
    assert ModelConfig(strides=(2, 2)).step_seconds == pytest.approx(0.04)
    assert ModelConfig(strides=(1, 2)).step_seconds == pytest.approx(0.02)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[text]\nlanguage = "ελ"\n', encoding="utf-8")
    assert read_toml(path) == {"text": {"language": "ελ"}}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows' editor saves it
    assert read_toml(path) == {"text": {"language": "ελ"}}


@pytest.mark.parametrize("content", [b"[train\nsteps = 1", b"steps = 1\nsteps = 2", b"a = '\xff'"])
def test_toml_errors_name_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml: not a TOML file \(.+\)") as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)


def test_missing_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml: no such configuration file"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="not a TOML file"):
        read_toml(tmp_path)
