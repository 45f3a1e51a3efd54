"""lhotse manifests (cuts, recordings, supervisions) in JSON Lines, read by the package lhotse."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from focusasr.data.corpus import SPLIT, CorpusItems, CorpusUtterance, Reject, each, locate_from_anywhere, name_in_corpus
from focusasr.data.manifest import OWN_KEYS, Utterance
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.libraries import install_command
from focusasr.runtime.settings import LONGEST_SECONDS, parse_json

KINDS = (  # of manifests, by keys of the first line
    ("cuts", {"start", "duration", "supervisions"}),
    ("cuts", {"type", "tracks"}),
    ("recordings", {"sources", "sampling_rate"}),
    ("supervisions", {"recording_id", "start", "duration"}),
)


def is_lhotse(path: Path) -> bool:
    """Return whether a path is a cut set, or a folder with cuts, or with recordings and supervisions."""
    found = _manifests(path)
    return "cuts" in found or ("supervisions" in found and (path.is_file() or "recordings" in found))


def read_lhotse(path: Path) -> CorpusItems:
    """Yield every supervision with its part of the recording; features, mixed cuts and invalid lines become rejects.

    In a folder the cuts are read, or else its supervisions with its recordings. A supervisions file needs the
    recordings in its folder.
    """
    try:
        from lhotse.serialization import deserialize_item
    except ImportError:
        raise InputError(f"{path}: needs the package lhotse. Install it: {install_command('lhotse')}") from None
    folder, found = path if path.is_dir() else path.parent, _manifests(path)
    manifests = found.get("cuts") or found.get("supervisions", [])
    recordings = [] if "cuts" in found else _manifests(folder).get("recordings", [])
    several = len({_split_name(manifest) for manifest in manifests}) > 1
    known: dict[str, Any] = {}
    for manifest in (*recordings, *manifests):
        split = _split_name(manifest) if several else ""
        for where, line in _lines(manifest):
            items: list[CorpusUtterance | Reject] = []
            try:
                item = deserialize_item(parse_json(line))
                if manifest in recordings:
                    known[item.id] = item
                else:
                    items += _utterances(item, known, folder, where)
            except Exception as error:  # lhotse checks little: an invalid line can fail anywhere
                invalid = f"not as lhotse writes it ({quote(error)}). Correct or delete the line."
                items += [Reject("broken row", f"{where}: {error if isinstance(error, InputError) else invalid}")]
            yield from each(items, partial(CorpusUtterance.of_split, split=split))


def _utterances(item: Any, recordings: dict[str, Any], folder: Path, where: str) -> CorpusItems:
    """Yield the utterance of a supervision, or of each one in a cut; InputError for audio that is not in one file."""
    from lhotse import MonoCut, SupervisionSegment
    from lhotse.augmentation import Resample
    from lhotse.cut import MixedCut

    if isinstance(item, SupervisionSegment):
        if item.recording_id not in recordings:
            raise InputError(f"recording {item.recording_id!r} is in no recordings file of the folder")
        item = MonoCut(item.id, 0.0, math.inf, 0, [item], recording=recordings[item.recording_id])
    if isinstance(item, MixedCut) or not item.has_recording:
        seen = "a mix of several" if isinstance(item, MixedCut) else "features without a recording"
        raise InputError(f"{seen}. Save the cut's audio (cuts.save_audios) and use that manifest.")
    recording, sources = item.recording, [source.type for source in item.recording.sources]
    if sources != ["file"]:
        raise InputError(f"recording {recording.id!r} is in {sources}, not in one file. Save its audio to one first.")
    if not all(isinstance(change, Resample) for change in recording.transforms or []):
        seen = f"recording {recording.id!r} has transforms (speed, volume ...)"
        raise InputError(f"{seen}. Use the manifest without them, training adds its own.")
    audio = locate_from_anywhere(folder, recording.sources[0].source)
    if not item.supervisions:
        yield Reject("empty text", f"{where}: the cut {item.id} has no supervision")
    for one in item.supervisions:  # each may extend beyond the cut on both sides
        text, row, begin = str(one.text or ""), one.to_dict(), max(0.0, one.start)
        offset, length = float(item.start + begin), float(min(one.end, item.duration) - begin)
        if not (0 <= offset <= LONGEST_SECONDS and 0 <= length <= LONGEST_SECONDS):
            reason = f"{where}: supervision {one.id!r} starts at {offset} s and lasts {length} s. Correct its times."
            yield Reject("broken row", reason, audio, text)
            continue
        extra = {f"source_{key}" if key in OWN_KEYS else key: value for key, value in row.get("custom", {}).items()}
        extra |= {key: row[key] for key in ("id", "speaker", "language", "gender") if row.get(key)}
        if recording.num_channels > 1 and isinstance(one.channel, int):
            extra["channel"] = one.channel
        utterance = Utterance(audio, text, round(offset, 6), round(length, 6), extra)
        yield CorpusUtterance(utterance, name_in_corpus(audio, folder), where)


def _split_name(manifest: Path) -> str:
    """Return the split in a manifest's name, corpus_cuts_SPLIT.jsonl.gz, without the shard number; "" if none."""
    stem = re.sub(r"[._-]\d{4,}$|\.\d+$", "", manifest.name.partition(".jsonl")[0])
    parts = [part for part in re.split("[_.-]?(?:cuts|supervisions)[_.-]?", stem) if part]
    return parts[-1] if parts and SPLIT.search(parts[-1]) else ""


def _manifests(path: Path) -> dict[str, list[Path]]:
    """Return the lhotse manifests directly inside a folder, or the file itself, by kind."""
    found: dict[str, list[Path]] = {}
    for one in sorted(path.iterdir()) if path.is_dir() else [path]:
        try:
            first = parse_json(next(_lines(one))[1]) if one.name.endswith((".jsonl", ".jsonl.gz")) else {}
        except (StopIteration, ValueError):
            continue
        kinds = [kind for kind, keys in KINDS if isinstance(first, dict) and keys <= first.keys()]
        if kinds:
            found.setdefault(kinds[0], []).append(one)
    return found


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (position, JSON) of every line that is not blank; InputError if the file cannot be read."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
            yield from ((f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Copy it again.") from None
