"""What every test gets: a folder and a home of its own, few threads, fixed seeds; and real speech, if there is any."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
HOME = Path.home()  # tests have another

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "2")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FOCUSASR_MODEL"] = "alnum"  # small and fast; tests/test_default_model.py has the default one


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for caches that may be shared by all tests (matplotlib's fonts take seconds to make)."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder, with an empty home; its child processes import this focusasr."""
    place = tmp_path_factory.mktemp("place")
    for name in ("home", "work"):
        (place / name).mkdir()
    monkeypatch.chdir(place / "work")
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "home" / ".config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "home" / ".local" / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    monkeypatch.setenv("MPLCONFIGDIR", str(caches / "matplotlib"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed every source of chance that is loaded."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(0)
        torch.set_num_threads(1)  # a second one costs these small models more than it gives


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real speech (FOCUSASR_DATA, or ../shared/data beside the repository), or skip."""
    folder = Path(os.environ.get("FOCUSASR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real speech in {folder}; FOCUSASR_DATA can name another folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def whisper_weights() -> Path:
    """Return the folder of real Whisper weights, tiny.en and base (FOCUSASR_WHISPER can name it), or skip."""
    folder = Path(os.environ.get("FOCUSASR_WHISPER", HOME / ".cache" / "focusasr-tests" / "whisper"))
    if not all((folder / name / "model.bin").is_file() for name in ("tiny.en", "base")):
        pytest.skip(f"no real Whisper weights in {folder}; FOCUSASR_WHISPER can name another folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def sound_cases() -> Path:
    """Return the folder of recordings that went wrong once (FOCUSASR_CASES, or ../shared/cases), or skip."""
    folder = Path(os.environ.get("FOCUSASR_CASES", ROOT.parent / "shared" / "cases")) / "sound"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}; FOCUSASR_CASES can name another folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def sample() -> Path:
    """Return the clip of the README's first command."""
    return ROOT / "tests" / "data" / "sample.flac"


@pytest.fixture(scope="session")
def heard(sample: Path) -> str:
    """Return what the default checkpoint hears in the sample, so that only one test depends on its being right."""
    import torch

    from focusasr.audio.source import Source
    from focusasr.config import DecodingConfig
    from focusasr.model.checkpoint import load_checkpoint
    from focusasr.model.checkpoint_folder import find_checkpoint
    from focusasr.transcription.native import Recognizer

    recognizer = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())
    (outcome,) = recognizer.transcribe([Source(str(sample))])
    assert outcome.transcript is not None and len(outcome.transcript.text) > 20
    return outcome.transcript.text


class Result:
    """Status and output of one call."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def refused(self, status: int, *named: object) -> None:
        """Assert the status, and one line on stderr alone that names everything."""
        assert (self.status, self.out) == (status, "")
        assert self.err.startswith("focusasr: ") and self.err.count("\n") == 1
        assert [one for one in map(str, named) if one not in self.err] == [], self.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Return a function that runs the command line in this process."""

    from focusasr.cli import app

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["focusasr", *map(str, arguments)])
        capfd.readouterr()
        try:
            app.main()
            status: object = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Result(int(str(status)), out, err)

    return call
