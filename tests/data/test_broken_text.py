"""Broken manifests, configurations, subtitles and checkpoints: what scripts/checks/fuzz.py found, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focusasr.audio.source import Source
from focusasr.cli.run_request import RunRequest
from focusasr.data.columns import Columns
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_layouts import detect_layout
from focusasr.data.manifest import read_manifest
from focusasr.data.segment_files import read_segments
from focusasr.evaluation.hypotheses import read_hypotheses
from focusasr.model.checkpoint import load_checkpoint
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json
from focusasr.training.run import read_run
from tests.helpers.tiny_whisper import write_whisper

HUGE = "1" + "0" * 400  # fits no float
ENDLESS = "1" * 5000  # Python refuses to read so many digits
DEEP = "[" * 100_000


def refused(read, *arguments) -> str:
    """Return the one line of a refusal, which may not be endless either."""
    with pytest.raises(InputError) as refusal:
        read(*arguments)
    message = str(refusal.value)
    assert message.isprintable() and len(message) < 1000
    return message


@pytest.mark.parametrize(
    "value", [HUGE, f"-{HUGE}", "1e308", ENDLESS, DEEP, "NaN", "Infinity", "-0.1", "true", '"\\u001b"']
)
@pytest.mark.parametrize("key", ["offset", "duration"])
def test_times_of_a_manifest(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"audio_filepath": "a.wav", "text": "", "{key}": {value}}}')
    assert refused(read_manifest, path).startswith(f"{path}, line 1: ")


@pytest.mark.parametrize("value", [HUGE, "NaN", ENDLESS, DEEP])
def test_offsets_of_hypotheses(tmp_path: Path, value: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(f'{{"hypothesis": "a", "offset": {value}}}')
    assert refused(read_hypotheses, path, []).startswith(f"{path}, line 1: ")


@pytest.mark.parametrize("value", [ENDLESS, DEEP, "[1]"])
def test_json_objects(tmp_path: Path, value: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(value)
    assert refused(read_json, path).startswith(f"{path}: ")
    with pytest.raises(InputError, match="no recordings"):  # a folder of it is no corpus
        detect_layout(tmp_path, Columns())


@pytest.mark.parametrize(
    ("toml", "seen"),
    [
        ("data = 1", "'data' is 1"),
        ("model = 'x'", "'model' is 'x'"),
        (f"[train]\nsteps = {ENDLESS}", "not a TOML file"),
        (f"[train]\nsteps = {DEEP}", "not a TOML file"),
        (f"[train]\nlearning_rate = {HUGE}", "expected: a finite number"),
        (f"[train]\nlearning_rate = 0x{'f' * 5000}", "learning_rate is int"),
        ("[train]\nlearning_rate = -inf", "learning_rate is -inf"),
        ('["\\u001b\\n"]', r"unknown table [\x1b\n]"),
        ('[train]\n"\\u001b\\n" = 1', r"unknown setting '\x1b\n'"),
    ],
)
def test_configurations(tmp_path: Path, toml: str, seen: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(toml)
    message = refused(
        lambda: read_run(RunRequest({}, {}, path, tmp_path, False).tables(), tmp_path, tmp_path, str(path))
    )
    assert message.startswith(str(path)) and seen in message


def test_a_checkpoint_that_kept_no_settings_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "config.json").write_text(json.dumps({"run": 3}))
    assert "'run' is 3" in refused(RunRequest({}, {}, None, tmp_path, True).tables)


def test_a_part_of_ages_of_sound_is_refused() -> None:
    for times in ((1e308, None), (0.0, 1e308), (2e9, None)):
        assert "a.wav: " in refused(Source, "a.wav", *times)


@pytest.mark.parametrize(
    "times", [f"{'9' * 400}:00:00,000", f"{'9' * 5000}:00:00.5", "99999:00:00.0", "٣" * 9 + ":٣:٣.٣"]
)
def test_subtitles_of_ages(tmp_path: Path, times: str) -> None:
    path = tmp_path / "a.srt"
    path.write_text(f"00:01.0 --> {times}\nhi\n\n00:01.0 --> 00:02.0\n&#{ENDLESS}; there\n")
    broken, fine = read_segments(tmp_path / "a.wav", path, "a")
    assert isinstance(broken, Reject) and "is not a time span" in broken.reason
    assert isinstance(fine, CorpusUtterance) and fine.utterance.text == f"&#{ENDLESS}; there"


def test_a_front_end_that_says_anything_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    (folder / "preprocessor_config.json").write_text('{"n_fft": "\\ud800\\n"}')
    assert r"n_fft is '\ud800\n'; expected: 400" in refused(load_checkpoint, folder)
