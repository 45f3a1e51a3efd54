"""Libraries that are missing or do not load: one line names the library, and commands that do not need it work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.runtime import libraries

ERRORS = {
    "ImportError": 'ImportError("libtorch_cpu.so: undefined symbol: torch_x")',
    "OSError": 'OSError("libwhatever.so.7: cannot open shared object file")',
    "ModuleNotFoundError": 'ModuleNotFoundError("No module named NAME", name="NAME")',
}
COMMANDS = {
    "transcribe": ["transcribe", "one.wav", "two.wav", "-o", "texts", "-f", "srt,json", "--word-timestamps"],
    "preprocess": ["preprocess", "corpus.jsonl", "-o", "data", "--loudness", "ebu"],
    "train": ["train", "corpus.jsonl", "-o", "run", "--steps", "1", "--width", "16", "--encoder-layers", "1",
              "--decoder-layers", "1", "--heads", "2", "--workers", "0"],
    "evaluate": ["evaluate", "corpus.jsonl"],
}  # fmt: skip
NEEDED_BY = {
    "torchaudio": ("transcribe", "preprocess"),
    "soundfile": tuple(COMMANDS),
    "av": (),
    "soxr": ("train",),
    "silero_vad": (),
    "tokenizers": ("transcribe", "train", "evaluate"),
    "jiwer": ("evaluate",),
    "matplotlib": (),
    "accelerate": ("train",),
    "torch": ("transcribe", "preprocess", "train", "evaluate"),
}
CASES = [(name, command) for name in NEEDED_BY for command in COMMANDS]


@pytest.mark.parametrize(("name", "command"), CASES)
def test_broken_library_is_named_and_other_commands_work(name: str, command: str, tmp_path: Path) -> None:
    kind = list(ERRORS)[CASES.index((name, command)) % len(ERRORS)]
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / f"{name}.py").write_text("raise " + ERRORS[kind].replace("NAME", name))
    _write_corpus()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(stubs), os.environ["PYTHONPATH"]))}
    done = subprocess.run(
        [sys.executable, "-m", "focusasr", *COMMANDS[command]], env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    told = [line for line in done.stderr.splitlines() if "does not load" in line or "is not installed" in line]
    if (name, command) == ("matplotlib", "train"):  # the curves alone are missing
        assert done.returncode == 0 and len(told) == 1
        return
    if (name, command) == ("silero_vad", "transcribe"):  # an empty text: is there speech? Nobody can say
        assert done.returncode == 0 and len(told) == 1
        return
    if command not in NEEDED_BY[name]:
        assert (done.returncode, told) == (0, []), done.stderr
        return
    assert done.returncode == 1, done.stderr
    (line,) = told
    assert line.startswith(f"focusasr: {name} ") and "constraints.txt" in line
    assert not any(word in line for word in ("memory", "one.wav", "corpus", "data/"))
    if (name, command) == ("torchaudio", "transcribe"):
        assert sorted(path.name for path in Path("texts").iterdir()) == ["one.json", "one.srt", "two.json", "two.srt"]


def _write_corpus() -> None:
    for name in ("one", "two"):
        soundfile.write(f"{name}.wav", np.sin(np.arange(16_000) / 5).astype(np.float32) / 4, 16_000)
    lines = [json.dumps({"audio_filepath": f"{name}.wav", "duration": 1.0, "text": name}) for name in ("one", "two")]
    Path("corpus.jsonl").write_text("\n".join(lines))


def test_every_library_of_this_installation_loads() -> None:
    assert libraries.main() == 0


def test_pair_that_does_not_load_names_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"torch": "2.12.1", "torchaudio": "2.11.1"}[name])
    seen = r"^torchaudio 2\.11\.1 does not load with torch 2\.12\.1 \(undef"
    with pytest.raises(libraries.LibraryError, match=seen), libraries.library("torchaudio"):
        raise OSError("undefined symbol: torch_x")


def test_errors_of_files_are_not_those_of_libraries() -> None:
    assert libraries.explain(OSError(28, "No space left on device")) is None
    assert libraries.explain(ValueError("odd")) is None
    try:
        shutil.copytree("missing", "there")
    except OSError as error:
        assert libraries.explain(error) is None
    try:
        raise shutil.Error("no number")
    except OSError as error:
        assert libraries.explain(error) is None
