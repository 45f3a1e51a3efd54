"""lhotse manifests (cuts, recordings, supervisions) as plain or gzipped JSON Lines."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focusasr.data.columns import to_seconds
from focusasr.data.corpus import SPLIT, CorpusItems, CorpusUtterance, Reject, each, locate_from_anywhere, name_in_corpus
from focusasr.data.manifest import OWN_KEYS, Utterance
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.settings import parse_json

SUFFIXES = (".jsonl", ".jsonl.gz")


def kind_of(path: Path) -> str | None:
    """Return cuts, recordings or supervisions, judged by the first line; None for other files."""
    if not path.name.endswith(SUFFIXES):
        return None
    try:
        first = next(_objects(path))[1]
    except (StopIteration, InputError):
        return None
    if {"start", "duration"} <= first.keys() and ("supervisions" in first or "tracks" in first):
        return "cuts"
    if {"sources", "sampling_rate"} <= first.keys():
        return "recordings"
    return "supervisions" if {"recording_id", "start", "duration"} <= first.keys() else None


def manifests_in(folder: Path) -> dict[str, list[Path]]:
    """Return the lhotse manifests directly inside a folder, by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES)):
        kind = kind_of(path)
        if kind is not None:
            found.setdefault(kind, []).append(path)
    return found


def is_lhotse(path: Path) -> bool:
    """Return whether a path is a cut set, or a folder with cuts, or with recordings and supervisions."""
    if path.is_file():
        return kind_of(path) in ("cuts", "supervisions")
    found = manifests_in(path)
    return "cuts" in found or {"recordings", "supervisions"} <= found.keys()


def read_lhotse(path: Path) -> CorpusItems:
    """Yield every supervision with its part of the recording; features and mixed cuts become rejects.

    In a folder the cuts are read, or else its supervisions with its recordings. A supervisions file needs the
    recordings in its folder.
    """
    found = manifests_in(path) if path.is_dir() else {str(kind_of(path)): [path]}
    folder = path if path.is_dir() else path.parent
    cuts, supervisions = found.get("cuts", []), found.get("supervisions", [])
    recordings = [] if cuts else found.get("recordings") or manifests_in(folder).get("recordings", [])
    known = {str(one.get("id")): one for manifest in recordings for _, one in _objects(manifest)}
    manifests = cuts or supervisions
    several = len({_split_name(manifest) for manifest in manifests}) > 1
    for manifest in manifests:
        split = _split_name(manifest) if several else ""
        for where, one in _objects(manifest):
            items = _cut(one, folder, where) if cuts else iter([_supervision(one, folder, where, known)])
            yield from each(items, lambda found, split=split: found.of_split(split))  # type: ignore[misc]


def _supervision(
    supervision: dict[str, Any], folder: Path, where: str, recordings: dict[str, dict[str, Any]]
) -> CorpusUtterance | Reject:
    recording = recordings.get(str(supervision.get("recording_id")))
    if recording is None:
        reason = f"{where}: recording {supervision.get('recording_id')!r} is in no recordings file of the folder"
        return Reject("broken row", reason, text=str(supervision.get("text") or ""))
    return _found(supervision, recording, (0.0, None), (folder, where))


def _split_name(manifest: Path) -> str:
    """Return the split in a manifest's name, corpus_cuts_SPLIT.jsonl.gz, without the shard number; "" if none."""
    stem = re.sub(r"[._-]\d{4,}$|\.\d+$", "", manifest.name.partition(".jsonl")[0])
    parts = [part for part in re.split("[_.-]?(?:cuts|supervisions)[_.-]?", stem) if part]
    return parts[-1] if parts and SPLIT.search(parts[-1]) else ""


def _cut(cut: dict[str, Any], folder: Path, where: str) -> CorpusItems:
    """Yield one utterance for each supervision of a cut; its times are relative to the cut's start."""
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        seen = "a mix of several" if "tracks" in cut else "features without a recording"
        yield Reject("broken row", f"{where}: {seen}. Save the cut's audio (cuts.save_audios) and use that manifest.")
        return
    told = cut.get("supervisions") or []
    supervisions = told if isinstance(told, list) else [told]
    try:
        start = to_seconds(cut.get("start", 0.0), "start", where) or 0.0
        length = to_seconds(cut.get("duration"), "duration", where)
    except InputError as error:
        yield Reject("broken row", str(error))
        return
    if not supervisions:
        yield Reject("empty text", f"{where}: the cut {cut.get('id')} has no supervision")
    for supervision in supervisions:
        yield _found(supervision, recording, (start, length), (folder, where))


def _found(
    supervision: Any,
    recording: dict[str, Any],
    cut: tuple[float, float | None],
    place: tuple[Path, str],
) -> CorpusUtterance | Reject:
    """Return the utterance of a supervision; `cut` is the start and length that its times are relative to."""
    folder, where = place
    if not isinstance(supervision, dict):
        return Reject("broken row", f"{where}: expected a supervision, got {quote(supervision)}")
    text = str(supervision.get("text") or "")
    try:
        audio = _file(recording, folder, where)
        begin = _from_start(supervision.get("start", 0.0), where)
        length = to_seconds(supervision.get("duration"), "duration", where)
    except InputError as error:
        return Reject("broken row", str(error), text=text)
    end = None if length is None else begin + length
    if cut[1] is not None:  # a supervision may extend beyond its cut on both sides
        end = cut[1] if end is None else min(end, cut[1])
    begin = max(0.0, begin)
    keys = {name: supervision[name] for name in ("id", "speaker", "language", "gender") if supervision.get(name)}
    side, sides = supervision.get("channel"), recording["sources"][0].get("channels")
    if isinstance(sides, list) and len(sides) > 1 and type(side) is int:
        keys["channel"] = side
    if isinstance(supervision.get("custom"), dict):
        keys = {f"source_{name}" if name in OWN_KEYS else name: v for name, v in supervision["custom"].items()} | keys
    duration = None if end is None else round(max(0.0, end - begin), 6)
    utterance = Utterance(audio, text, round(cut[0] + begin, 6), duration, keys)
    return CorpusUtterance(utterance, name_in_corpus(audio, folder), where)


def _from_start(value: object, where: str) -> float:
    """Return a supervision's start, which may be before that of its cut."""
    if isinstance(value, (int, float)) and value < 0:
        return float(value)
    return to_seconds(value, "start", where) or 0.0


def _file(recording: dict[str, Any], folder: Path, where: str) -> Path:
    """Return the only source file of a recording; InputError for transforms or several sources."""
    sources = recording.get("sources")
    changes = recording.get("transforms") or []
    if any(not isinstance(one, dict) or one.get("name") != "Resample" for one in changes):
        seen = f"recording {recording.get('id')!r} has transforms (speed, volume ...)"
        raise InputError(f"{where}: {seen}. Use the manifest without them, training adds its own.")
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise InputError(f"{where}: recording {recording.get('id')!r} has not exactly one source. Join them first.")
    kind, value = sources[0].get("type"), sources[0].get("source")
    if kind != "file" or not isinstance(value, str) or not value:
        raise InputError(f"{where}: the source is a {kind!r}, and only files are read. Save the audio to files first.")
    return locate_from_anywhere(folder, value)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (position, object) for every line; InputError if the file or a line cannot be read."""
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    value = parse_json(line)
                    if not isinstance(value, dict):
                        raise InputError(f"{path}, line {number}: expected an object, got {type(value).__name__}")
                    yield f"{path}, line {number}", value
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as JSON Lines ({error})") from None
