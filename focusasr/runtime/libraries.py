"""Imports of native libraries, with one-line errors that name versions, cause and remedy.

`python -m focusasr.runtime.libraries` tries all of them; the installer runs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PARTNERS = {"torchaudio": "torch"}  # libraries whose binaries require some version of another one
LONGEST_CAUSE = 200


class LibraryError(ImportError):
    """A library that is missing or does not load: one line with name, version, cause and remedy."""


@contextmanager
def library(name: str) -> Iterator[None]:
    """Import inside this block; LibraryError if the library is missing or does not load."""
    try:
        yield
    except LibraryError:
        raise
    except Exception as error:  # ImportError, OSError of the loader, or any error of the library's own start-up
        raise _failure(name, error) from error


def explain(error: Exception) -> LibraryError | None:
    """Return an import error from anywhere in the program as LibraryError; None for other errors."""
    if isinstance(error, LibraryError):
        return error
    if not isinstance(error, ImportError) and not (isinstance(error, OSError) and error.errno is None):
        return None
    name = _importing(error.__traceback__) or (error.name if isinstance(error, ImportError) else None)
    return _failure(name.partition(".")[0], error) if name else None


def _importing(trace: types.TracebackType | None) -> str | None:
    """Return the library that focusasr was importing at the end of a traceback; None without one."""
    called: list[types.FrameType] = []
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("focusasr", "__main__"):
            called = []
        elif not module.startswith("importlib"):
            called.append(frame)
    importing = bool(called) and called[0].f_code.co_name == "<module>"
    return called[0].f_globals["__name__"] if importing else None


def _failure(name: str, error: Exception) -> LibraryError:
    if isinstance(error, ModuleNotFoundError) and (error.name or name).partition(".")[0] == name:
        return missing(name, "train")
    partner = PARTNERS.get(name)
    pair = f" with {partner} {_version(partner)}" if partner else ""
    cause = " ".join(str(error).split()) or type(error).__name__
    problem = f"{name} {_version(name)} does not load{pair} ({cause[:LONGEST_CAUSE]})"
    message = f"{problem}; install it again: {install_command('train')}"
    if _memory_limited():
        message += "; with a limit on memory (ulimit -v), PyTorch needs 4 GiB"
    return LibraryError(message, name=name)


def missing(name: str, extra: str) -> LibraryError:
    """Return the error about a library that is not installed; an extra of focusasr installs it."""
    return LibraryError(f"{name} is not installed; install it: {install_command(extra)}", name=name)


def install_command(extra: str) -> str:
    """Return the command that installs an extra: from the clone or the wheel that focusasr is from, if it is there."""
    import json
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    origin = {}
    with suppress(PackageNotFoundError, OSError, ValueError):
        origin = json.loads(distribution("focusasr").read_text("direct_url.json") or "{}")  # PEP 610
    source = unquote(urlsplit(origin.get("url", "")).path)
    if not source or not os.path.exists(source):
        return f"pip install 'focusasr[{extra}]'"
    constraints = os.path.join(source, "scripts", "constraints.txt")
    options = ["-c", constraints] if os.path.exists(constraints) else []
    options += ["-e"] if origin.get("dir_info", {}).get("editable") else []
    return shlex.join([sys.executable, "-m", "pip", "install", *options, f"{source}[{extra}]"])


def versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        with suppress(PackageNotFoundError, ValueError):
            found[name] = version(name)
    return found


def _version(name: str) -> str:
    return versions(name).get(name, "of unknown version")


def _memory_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


TRIED = ("torch", "onnxruntime", "soundfile", "av", "soxr", "tokenizers", "safetensors.torch", "torchaudio")


def _try(name: str) -> None:
    module = importlib.import_module(name)
    if name == "torchaudio":
        import torch

        module.functional.forced_align(torch.zeros(1, 2, 2).log_softmax(-1), torch.tensor([[1]]), blank=0)


def main() -> int:
    """Try every native library; print a line for each that does not load, and return the exit status."""
    failed = 0
    for name in TRIED:
        try:
            with library(name.partition(".")[0]):
                _try(name)
        except LibraryError as error:
            print(f"focusasr: {error}", file=sys.stderr)
            failed = 1
            if name == "torch":
                break
    return failed


if __name__ == "__main__":
    sys.exit(main())
