"""Write manifests with texts in Whisper's style, and folders of noises and rooms.

    scripts/recipes/en/texts.py DATA OUT

DATA holds the corpora that config.toml names; OUT gets CORPUS-train.jsonl and CORPUS-dev.jsonl, noise/ and rooms/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CORPORA = ("an4", "fsdd", "speech_commands", "speech_commands_mini", "picovoice_keywords")
FOLDERS = {"noise": "noise", "music": "noise", "voice_without_words": "noise", "rir": "rooms"}  # by kind


def sentence(text: str) -> str:
    """Return words in lower case, single letters in capitals, the first word with a capital, a full stop at the end."""
    words = [word.upper() if len(word) == 1 else word.lower() for word in text.split()]
    line = " ".join(words)
    return f"{line[:1].upper()}{line[1:]}."


def rows(manifest: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a manifest with absolute paths."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {**row, "audio_filepath": str((manifest.parent / row["audio_filepath"]).absolute())}


def main() -> None:
    """Write everything."""
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for corpus in CORPORA:
        for split in ("train", "dev"):
            lines = [
                json.dumps({**row, "text": sentence(row["text"])}) for row in rows(data / corpus / f"{split}.jsonl")
            ]
            (out / f"{corpus}-{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    for row in rows(data / "noise_rooms_music" / "noise.jsonl"):
        if row["split"] == "train" and row["kind"] in FOLDERS:
            path = Path(row["audio_filepath"])
            link = out / FOLDERS[row["kind"]] / path.name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(path)


if __name__ == "__main__":
    main()
