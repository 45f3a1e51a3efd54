"""Where a model comes from: versions, the commit, and fingerprints of the data, for the checkpoint's config.json."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from focusasr import __version__
from focusasr.corpora import Corpus, parse_manifest_option
from focusasr.journal import fingerprint

PACKAGES = ("torch", "torchaudio", "accelerate", "numpy", "soxr", "soundfile", "tokenizers")


def made_with(corpora: Sequence[Corpus], dev: Sequence[str]) -> dict[str, Any]:
    """Return versions, the commit where the program runs from a git clone, and what was trained and measured on."""
    data = [
        {
            "manifest": corpus.name,
            "sha256": fingerprint(Path(corpus.name)),
            "weight": corpus.weight,
            "utterances": len(corpus.utterances),
            "hours": round(corpus.seconds / 3600, 4),
        }
        for corpus in corpora
    ]
    measured = [parse_manifest_option(option)[0] for option in dev]
    return {
        "versions": {"focusasr": __version__, "python": platform.python_version(), **_versions()},
        "commit": commit(Path(__file__).parent),
        "data": data,
        "dev": [{"manifest": str(path), "sha256": fingerprint(path)} for path in measured],
    }


def changed(before: dict[str, Any], now: dict[str, Any], kind: str) -> list[str]:
    """Return the manifests of a kind ("data" or "dev") whose fingerprint differs between what runs were `made_with`."""
    known = {row["manifest"]: row["sha256"] for row in before.get(kind, [])}
    return [row["manifest"] for row in now[kind] if known.get(row["manifest"], row["sha256"]) != row["sha256"]]


def commit(folder: Path) -> str | None:
    """Return the commit that `folder` stands at, with "+changes" where files differ from it; None outside of git.

    A repository that merely lies around an installed package, such as its user's, is none.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
