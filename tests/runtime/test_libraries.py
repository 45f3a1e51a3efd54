"""Libraries that are missing or do not load: one line names the library, and commands that do not need it work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
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


@pytest.mark.parametrize("editable", [True, False])
def test_the_command_that_installs_an_extra_names_the_clone(
    editable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "my clone"
    (clone / "scripts").mkdir(parents=True)
    (clone / "scripts" / "constraints.txt").touch()
    origin = {"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}}
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(json.dumps(origin)))
    constraints = shlex.quote(f"{clone}/scripts/constraints.txt")
    expected = f"-m pip install -c {constraints} {'-e ' if editable else ''}'{clone}[serve]'"
    assert libraries.install_command("serve") == f"{shlex.quote(sys.executable)} {expected}"


@pytest.mark.parametrize("origin", [None, "{", '{"url": "file:///no/such/folder", "dir_info": {}}', '{"url": ""}'])
def test_without_a_clone_the_command_names_the_package(origin: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(origin))
    assert libraries.install_command("serve") == "pip install 'focusasr[serve]'"


class Distribution:
    """An installed package with the text of its `direct_url.json`."""

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin
