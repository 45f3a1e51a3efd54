"""The test suites of openai-whisper and faster-whisper, run against focusasr.

    scripts/checks/peer_suites.py CLONE NAME=MODEL... [--peer] [-- PYTEST OPTIONS]

CLONE is a git clone of openai/whisper or SYSTRAN/faster-whisper, whose tests then import modules backed by focusasr;
NAME=MODEL gives a model's path for a name in those tests, such as tiny=/models/base. Tests that need a GPU, a
download, or a recording that the clone lacks are left out. With --peer the suite runs against the installed peer with
the same models, which shows what tests expect of other weights. Nothing is written to the clone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import shim_faster
import shim_openai
import whisper_peers

from focusasr.model.checkpoint import load_checkpoint

SHIMS = {"faster_whisper": shim_faster, "whisper": shim_openai}  # by the package in the clone
LEFT_OUT = ["-m", "not requires_cuda", "-k", "not download_model"]
RECORDINGS = {"physcisworks_path": "tests/data/physicsworks.wav"}  # by the fixture that names them


class Absent:
    """A pytest plugin that skips tests whose recording is not in the clone."""

    def __init__(self, clone: Path) -> None:
        self._absent = {fixture: path for fixture, path in RECORDINGS.items() if not (clone / path).is_file()}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark the tests."""
        for item in items:
            for fixture in self._absent.keys() & set(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.skip(reason=f"the clone lacks {self._absent[fixture]}"))


def put_in_place(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Make modules with these contents, by their names, importable."""
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def name_models(package: str, models: Mapping[str, Path]) -> None:
    """Let the installed peer find models under the names of the tests."""
    peer: Any = importlib.import_module(package)
    if package == "whisper":
        peer.available_models = lambda: list(models)
        peer.load_model = lambda name: whisper_peers.openai_whisper(load_checkpoint(models[name]))
    else:
        real = peer.WhisperModel.__init__
        peer.WhisperModel.__init__ = lambda self, name: real(
            self, str(models[name]), device="cpu", compute_type="float32"
        )


def main() -> int:
    """Run the suite and return pytest's status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clone", type=Path, metavar="CLONE")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--peer", action="store_true", help="run against the installed peer instead")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    clone = given.clone.resolve()
    package = next((name for name in SHIMS if (clone / name).is_dir()), None)
    if package is None or any("=" not in pair for pair in given.models):
        parser.error("expected: a clone of openai/whisper or SYSTRAN/faster-whisper, and NAME=MODEL pairs")
    models = {name: Path(path).resolve() for name, _, path in (pair.partition("=") for pair in given.models)}
    if given.peer:
        name_models(package, models)
    else:
        put_in_place(SHIMS[package].modules(models))
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.dont_write_bytecode = True
    arguments = [str(clone / "tests"), f"--rootdir={clone}", "-c", os.devnull, "-p", "no:cacheprovider", *LEFT_OUT]
    return int(pytest.main([*arguments, *options], plugins=[Absent(clone)]))


if __name__ == "__main__":
    sys.exit(main())
