"""What starting costs: modules that a command has no use for stay unloaded, and the memory that weights take."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from focusasr.runtime.process import loading

LOADED = """
import json, sys
sys.argv = ["focusasr", *{arguments}]
import focusasr.cli.app
try:
    focusasr.cli.app.main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


def modules_of(*arguments: str) -> set[str]:
    """Return the modules that a process has loaded when the command has ended."""
    code = LOADED.format(arguments=list(arguments))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def modules_of_torch() -> set[str]:
    code = "import torch, sys, json; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return set(json.loads(result.stdout))


@pytest.mark.parametrize("model", ["alnum", "default"])
def test_transcribing_loads_nothing_in_vain(sample: Path, model: str) -> None:
    """A clip at 16 kHz in FLAC needs torch and what reads it: no other torch module, no bars, no other decoders."""
    loaded = modules_of("transcribe", "--model", model, str(sample)) - modules_of_torch()
    packages = {name.split(".")[0] for name in loaded}
    vain = {
        "accelerate", "av", "huggingface_hub", "jiwer", "librosa", "matplotlib", "numba", "rich", "scipy", "sklearn",
        "silero_vad", "soxr", "sympy", "tensorboard", "torchaudio", "transformers", "urllib3", "whisper_normalizer",
    }  # fmt: skip
    assert not vain & packages, f"transcribe loads {sorted(vain & packages)}"
    assert {"focusasr", "soundfile", "tokenizers", "safetensors"} <= packages
    torch_modules = {name for name in loaded if name.startswith("torch.")}
    assert torch_modules <= {"torch.utils._device", "torch.ao.nn.quantized"}, f"transcribe loads {torch_modules}"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["train", "--help"], []], ids=str)
def test_help_version_and_completion_load_no_numbers(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not arguments:
        complete(monkeypatch, "focusasr tr")
    packages = {name.split(".")[0] for name in modules_of(*arguments)}
    numbers = {"torch", "torchaudio", "numpy", "soundfile", "tokenizers", "safetensors", "jiwer", "av"}
    assert not packages & {*numbers, "tomllib", "jinja2", "rapidfuzz", "rich"}


def complete(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Set the environment in which bash asks for completions of the last word."""
    for name, value in (("_FOCUSASR_COMPLETE", "complete_bash"), ("COMP_WORDS", typed)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("focusasr tr", {"train", "transcribe"}),
        ("focusasr transcribe --beam", {"--beam-size"}),
        ("focusasr transcribe --task tr", {"transcribe", "translate"}),
        ("focusasr transcribe x.wa", set()),  # the shell completes files
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    monkeypatch: pytest.MonkeyPatch, typed: str, completions: set[str]
) -> None:
    complete(monkeypatch, typed)
    result = subprocess.run([sys.executable, "-m", "focusasr"], capture_output=True, text=True, timeout=120)
    assert (result.returncode, set(result.stdout.split()), result.stderr) == (0, completions, "")


def test_completion_is_shown_and_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    for option in ("--show-completion", "--install-completion"):
        command = ["bash", "-c", f"'{sys.executable}' -m focusasr {option}; true"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0 and "focusasr" in result.stdout, result.stderr
    assert "focusasr" in (Path.home() / ".bashrc").read_text()


def test_no_garbage_is_collected_while_loading() -> None:
    gc.enable()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), loading():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
    gc.enable()
    gc.unfreeze()


def test_leaving_fast_loses_nothing() -> None:
    """What was printed arrives, what was registered for the end runs, and the status is kept."""
    code = "import atexit; from focusasr.runtime.process import exit_now; atexit.register(print, 'end'); "
    code += "print('text'); exit_now(3)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (3, "text\nend\n", "")


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["transcribe", "absent.wav"], 1), (["x"], 2)])
def test_status_of_the_process(arguments: list[str], status: int) -> None:
    result = subprocess.run([sys.executable, "-m", "focusasr", *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == status and "Traceback" not in result.stderr
    assert bool(result.stdout) == (status == 0) and bool(result.stderr) == (status != 0)


@pytest.mark.parametrize("coding", ["ascii:surrogateescape", "utf-8:surrogateescape"])
def test_no_letter_that_an_encoding_lacks_ends_the_work(coding: str) -> None:
    code = "from focusasr.runtime.process import open_streams; open_streams(); print('é –', '\\udcff')"
    environment = {**os.environ, "PYTHONIOENCODING": coding}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=environment)
    assert result.stdout.endswith(b" \xff\n"), result.stderr
    assert result.stdout.decode("utf-8", "replace").startswith("é –" if coding[0] == "u" else "\\xe9 \\u2013")
