"""Word error rates of Whisper models by focusasr, faster-whisper and openai-whisper, as a Markdown table.

    scripts/checks/whisper_table.py MODEL... --data MANIFEST... [--language en] [--cache FILE]

MODEL is whatever `focusasr transcribe --model` accepts. All three get the same samples and the same weights, and run
with their own defaults (5 beams, temperature fallback), on the CPU. Progress is printed on stderr. With --cache, texts
are kept, so that an interrupted or extended table does not repeat them. Peers that cannot compute a model are left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import whisper_peers

from focusasr import __version__
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.evaluation.bootstrap import compare
from focusasr.evaluation.evaluate import Evaluation, TranscriptCache, evaluate_texts
from focusasr.evaluation.wer import NORMALIZERS
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint, fingerprint_of_model
from focusasr.runtime.errors import InputError
from focusasr.transcription.loaded_model import load_recognizer
from focusasr.transcription.options import Given
from focusasr.transcription.recognizer import ModelChoice
from focusasr.transcription.result import Outcome, Transcript
from focusasr.whisper_config import LongformConfig

BEAMS = 5  # the default of all three
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PEERS = {"faster-whisper": "faster_whisper", "openai-whisper": "openai_whisper"}
SYSTEMS = (
    ("focusasr", "float32"), ("focusasr", "int8"), ("faster-whisper", "float32"), ("faster-whisper", "int8"),
    ("openai-whisper", "float32"),
)  # fmt: skip

Read = Callable[[Source], Outcome]


class System(NamedTuple):
    """A program and the type in which it computes."""

    program: str
    compute_type: str


@dataclass(frozen=True)
class Texts:
    """What a system wrote for a set: the score, and of how many clips it names the manifest's language."""

    evaluation: Evaluation
    languages: int


def read_with(system: System, path: Path, language: str | None) -> Read:
    """Return a function from a source to the outcome by a system; it loads the model."""
    if system.program == "focusasr":
        given: Given = {DecodingConfig: {"compute_type": system.compute_type}, LongformConfig: {"language": language}}
        recognizer = load_recognizer(ModelChoice(str(path), "cpu"), given).recognizer
        return lambda source: next(iter(recognizer.transcribe([source])))
    checkpoint = load_checkpoint(path)
    heard = _faster_whisper if system.program == "faster-whisper" else _openai_whisper
    transcribe = heard(checkpoint, str(path), system.compute_type, language)

    def read(source: Source) -> Outcome:
        wave = load(source)
        text, found = transcribe(wave)
        return Outcome(source, Transcript(text, [], found), None, len(wave) / SAMPLE_RATE_HZ)

    return read


def _faster_whisper(
    checkpoint: Checkpoint, name: str, compute_type: str, language: str | None
) -> Callable[..., tuple[str, str]]:
    threads = torch.get_num_threads()
    model = whisper_peers.faster_whisper(checkpoint, name, compute_type=compute_type, cpu_threads=threads)

    def transcribe(wave: object) -> tuple[str, str]:
        segments, info = model.transcribe(wave, language=language)
        return "".join(segment.text for segment in segments), info.language

    return transcribe


def _openai_whisper(
    checkpoint: Checkpoint, name: str, compute_type: str, language: str | None
) -> Callable[..., tuple[str, str]]:
    assert compute_type == "float32"
    model = whisper_peers.openai_whisper(checkpoint, name)

    def transcribe(wave: object) -> tuple[str, str]:
        import whisper

        torch.manual_seed(0)  # fallbacks sample
        options = {"beam_size": BEAMS, "best_of": 5, "temperature": TEMPERATURES, "fp16": False, "language": language}
        result = whisper.transcribe(model, wave, **options)
        return str(result["text"]), str(result["language"])

    return transcribe


def transcribed(
    system: System, path: Path, utterances: Sequence[Utterance], name: str, given: argparse.Namespace
) -> Texts:
    """Return the texts of a system for a set; those in the cache are not computed again."""
    label = f"{path.name}, {name}, {' '.join(system)}"
    reader = functools.cache(lambda: read_with(system, path, given.language))

    def recognize(sources: Iterable[Source]) -> Iterator[Outcome]:
        whole = list(sources)
        for number, source in enumerate(whole, 1):
            outcome = reader()(source)
            print(
                f"\r{label}: {number} of {len(whole)}", end="\n" * (number == len(whole)), file=sys.stderr, flush=True
            )
            yield outcome

    sources = [one.source for one in utterances]
    if given.cache is None:
        outcomes = list(recognize(sources))
    else:
        decided = {"version": _version(system), "system": system, "language": given.language}
        cache = TranscriptCache(given.cache, {**decided, "model": fingerprint_of_model(path)})
        outcomes = list(cache.recognize(recognize, sources))
    texts = [one.transcript.text if one.transcript and one.error is None else None for one in outcomes]
    found = [one.transcript.language if one.transcript else None for one in outcomes]
    right = sum(one.language == language for one, language in zip(utterances, found, strict=True))
    return Texts(evaluate_texts(utterances, texts, given.normalizer), right)


def _version(system: System) -> str:
    """Return the versions that decide a text; delete the cache after other changes of focusasr."""
    if system.program != "focusasr":
        return importlib.metadata.version(system.program)
    engine = "onnxruntime" if system.compute_type == "int8" else "torch"
    return f"{__version__}, {engine} {importlib.metadata.version(engine)}"


def rate(texts: Texts | None) -> str:
    """Return a cell: the word error rate in %, and its interval."""
    if texts is None or texts.evaluation.score is None:
        return "–"
    wer = texts.evaluation.score.rates["wer"]
    failed = len(texts.evaluation.failures)
    return f"{_percent(wer.value)}{wer.bounds(_percent, '–')}" + (f", {failed} failed" if failed else "")


def difference(first: Texts | None, second: Texts | None) -> str:
    """Return a cell: the first's word error rate minus the second's in points, and its paired interval."""
    if first is None or second is None:
        return "–"
    pairs = [
        (one.words, other.words)
        for one, other in zip(first.evaluation.rows, second.evaluation.rows, strict=True)
        if one.words and other.words
    ]
    counts = ([one.count for one, _ in pairs], [other.count for _, other in pairs], [one.words for one, _ in pairs])
    found = compare(*counts, None).difference
    return f"{_points(found.value)}{found.bounds(_points, ' to ')}"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f}"


def _points(ratio: float) -> str:
    return f"{100 * ratio:+.2f}"


def rows(model: str, manifest: Path, given: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the rows of a model and a set: error rates, and numbers of recognized languages if they were detected."""
    path = find_checkpoint(model)
    name = f"{manifest.parent.name}/{manifest.stem}"
    utterances = read_manifest(manifest)[: given.limit]
    heard: dict[System, Texts | None] = {}
    for system in map(System._make, SYSTEMS):
        if system.program not in given.programs:
            heard[system] = None
            continue
        try:
            heard[system] = transcribed(system, path, utterances, name, given)
        except InputError as error:
            if system.program == "focusasr":
                raise
            print(f"{' '.join(system)} is left out: {error}", file=sys.stderr)
            heard[system] = None
    ours = [heard[System("focusasr", kind)] for kind in ("int8", "float32")]
    score = ours[1].evaluation.score if ours[1] else None
    size = f"{len(utterances)} ({score.words if score else 0})"
    yield [path.name, name, size, *map(rate, heard.values()), difference(ours[0], ours[1])]
    whisper = load_checkpoint(path).whisper
    if given.language is None and whisper is not None and whisper.multilingual and utterances[0].language:
        cells = [f"{texts.languages} right" if texts else "–" for texts in heard.values()]
        yield [path.name, f"{name}, languages", str(len(utterances)), *cells, ""]


def head(given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines above the table's rows."""
    versions = ", ".join(f"{program} {_version(System(program, kind))}" for program, kind in SYSTEMS)
    language = f"language {given.language}" if given.language else "language detected by multilingual models"
    yield (
        f"Word error rate in % with its 95 % bootstrap interval; normalizer {given.normalizer}, {BEAMS} beams, "
        f"{language}; {versions}. The last column is a difference in points with its paired interval."
    )
    yield ""
    columns = ["model", "set", "clips (words)", *(" ".join(system) for system in SYSTEMS), "focusasr int8 − float32"]
    yield _line(columns)
    yield _line(["---"] * len(columns))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--programs", nargs="+", choices=("focusasr", *PEERS), default=("focusasr", *PEERS))
    parser.add_argument("--language", help="spoken language (default: detected)")
    parser.add_argument("--normalizer", choices=NORMALIZERS, default="english")
    parser.add_argument("--limit", type=int, help="use only the first utterances of each set")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="file that keeps the texts")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        for line in head(given):
            print(line)
        for model in given.models:
            for manifest in given.data:
                for row in rows(model, manifest, given):
                    print(_line(row), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
