"""Write manifests with texts in Whisper's style, and folders of noises and rooms.

    scripts/recipes/en/texts.py DATA OUT READ

DATA holds the corpora that config.toml names; OUT gets CORPUS-train.jsonl and CORPUS-dev.jsonl, noise/ and rooms/. READ
is what `focusasr evaluate speechocean762/train.jsonl --output READ` wrote: some speakers did not say what they were
asked to, so a text is kept if a Whisper model reads at most a third of its words otherwise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Their texts are sentences with punctuation.
SPOKEN = ("common_voice_en", "common_voice_en_delta13", "ljspeech", "kathleen", "philippm")
EVALUATED = (*SPOKEN, "misc_en", "longform_en")
PLAIN = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "—": "-", "–": "-"})
MOST_WRONG = 0.34  # share of a prompt's words
CORPORA = ("an4", "fsdd", "speech_commands", "speech_commands_mini", "picovoice_keywords")
FOLDERS = {"noise": "noise", "music": "noise", "voice_without_words": "noise", "rir": "rooms"}  # by kind


def sentence(text: str) -> str:
    """Return words in lower case, single letters in capitals, the first word with a capital, a full stop at the end."""
    words = [word.upper() if len(word) == 1 else word.lower() for word in text.split()]
    line = " ".join(words)
    return f"{line[:1].upper()}{line[1:]}."


def written(text: str) -> str:
    """Return a sentence with plain quotes, without those around all of it, and with a full stop."""
    line = " ".join(text.translate(PLAIN).split())
    line = line[1:-1] if line.count('"') == 2 and line[0] == line[-1] == '"' else line
    return f"{line[:1].upper()}{line[1:]}{'.' * line[-1].isalnum()}"


def letters(text: str) -> str:
    """Return what makes two sentences the same."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def rows(manifest: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a manifest with absolute paths."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {**row, "audio_filepath": str((manifest.parent / row["audio_filepath"]).absolute())}


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write everything."""
    data, out, read = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    sets = [data / name / f"{split}.jsonl" for name in EVALUATED for split in ("dev", "test")]
    secret = {letters(row["text"]) for manifest in sets if manifest.exists() for row in rows(manifest)}
    for corpus in SPOKEN:
        spoken = [row for row in rows(data / corpus / "train.jsonl") if letters(row["text"]) not in secret]
        write(out / f"{corpus}-train.jsonl", ({**row, "text": written(row["text"])} for row in spoken))
    prompts = [row for row in rows(read) if row["words"] > 2 and not row["error"] and row["wer"] <= MOST_WRONG]
    kept = ({**row, "text": sentence(row["reference"])} for row in prompts)
    write(out / "speechocean762-train.jsonl", kept)
    for corpus in CORPORA:
        for split in ("train", "dev"):
            there = rows(data / corpus / f"{split}.jsonl")
            write(out / f"{corpus}-{split}.jsonl", ({**row, "text": sentence(row["text"])} for row in there))
    for row in rows(data / "noise_rooms_music" / "noise.jsonl"):
        if row["split"] == "train" and row["kind"] in FOLDERS:
            path = Path(row["audio_filepath"])
            link = out / FOLDERS[row["kind"]] / path.name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(path)


if __name__ == "__main__":
    main()
