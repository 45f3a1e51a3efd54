"""The command line: preprocess, train, transcribe, evaluate, inspect, info. Results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from focusasr import __version__
from focusasr.config import (
    DecodingConfig,
    InputError,
    InspectionConfig,
    ModelConfig,
    PreprocessConfig,
    TextConfig,
    TrainConfig,
    read_settings,
    read_toml,
)
from focusasr.options import BOTH_SPELLINGS, with_settings
from focusasr.progress import file_bar, progress_bar, stderr

if TYPE_CHECKING:
    from focusasr.audio import Source
    from focusasr.transcribe import Outcome, Recognizer

INTERRUPTED, CLOSED_PIPE = 130, 141

app = typer.Typer(
    no_args_is_help=True, add_completion=False, context_settings=BOTH_SPELLINGS, pretty_exceptions_enable=False
)

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="checkpoint folder; without it the default one that comes along")
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA, then MPS, then CPU), cuda, cuda:N, mps or cpu")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to PyTorch", min=0)]


def main() -> None:
    """Run the command line: one line and status 1 for a broken input, 2 for wrong usage; --debug shows tracebacks."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow busy machines by multiples
    try:
        app(args=arguments, prog_name="focusasr")
    except SystemExit as leaving:  # which Typer makes of Ctrl-C too
        if leaving.code == INTERRUPTED:
            fail(
                "interrupted; files are whole or absent. preprocess goes on by itself, train with --resume", INTERRUPTED
            )
        raise
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except InputError as error:
        if debug:
            raise
        fail(str(error), 1)
    except Exception as error:
        if debug:
            raise
        fail(f"internal error: {type(error).__name__}: {error}; --debug shows where", 1)


def fail(message: str, status: int) -> None:
    """Say one line on stderr and leave with a status."""
    print("focusasr: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error (works anywhere)")] = False,
) -> None:
    """A compact speech recognizer with focused hybrid attention, to own end to end."""
    if version:
        print(f"focusasr {__version__}")
        raise typer.Exit


def make_recognizer(model: str | None, device: str, threads: int, config: DecodingConfig) -> Recognizer:
    """Load what transcribes; torch is imported here."""
    import torch

    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.device import choose_device
    from focusasr.transcribe import Recognizer

    if threads:
        torch.set_num_threads(threads)
    chosen, _ = choose_device(device)
    return Recognizer(load_checkpoint(find_checkpoint(model), chosen), chosen, config)


@app.command(context_settings=BOTH_SPELLINGS)
@with_settings(PreprocessConfig)
def preprocess(
    inputs: Annotated[list[str], typer.Argument(help="folders, tables (CSV, TSV) or manifests of audio and text")],
    given: dict[type, dict[str, Any]],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="where audio/ and manifest.jsonl go")],
) -> None:
    """Turn audio and text as they come into 16 kHz mono files and a manifest.

    Reads audio with sidecar .txt, CSV/TSV with headers, LibriSpeech, LJSpeech and Common Voice trees, and manifests.
    What cannot be used is listed with its reason; a rerun goes on where the last one stopped.
    """
    from focusasr import preprocess as room

    config = read_settings(PreprocessConfig, given[PreprocessConfig], "preprocess")
    with file_bar("preprocessing") as tell:
        report = room.preprocess(inputs, output_dir, config, tell)
    stderr.print(report.summary(), markup=False, highlight=False, soft_wrap=True)
    print(report.manifest)
    if report.failed or not report.kept:
        raise typer.Exit(1)


@app.command(context_settings=BOTH_SPELLINGS)
@with_settings(DecodingConfig)
def transcribe(
    files: Annotated[list[str], typer.Argument(help="audio or video files, folders, globs, or - for standard input")],
    given: dict[type, dict[str, Any]],
    model: ModelOption = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="write files here")] = None,
    output_format: Annotated[
        Literal["txt", "vtt", "srt", "tsv", "json", "all"],
        typer.Option("--output-format", "-f", help="with --output-dir: which files; without: how one file is printed"),
    ] = "all",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Write down what is said in audio files.

    Without --output-dir the text goes to stdout: one file gives its text, several give PATH<TAB>TEXT, a line each,
    in the order given. A file that cannot be read is named on stderr, the others go on, and the exit status is 1.
    """
    from focusasr.audio import find_sources

    sources = find_sources(files)
    several = len(sources) > 1
    if several and output_dir is None and output_format not in ("all", "txt"):
        raise typer.BadParameter(f"--output-format {output_format} of several files needs --output-dir")
    config = read_settings(DecodingConfig, given[DecodingConfig], "transcribe")
    recognizer = make_recognizer(model, device, threads, config)
    with progress_bar(len(sources), "transcribing") as tell:
        outcomes = told(recognizer.transcribe(sources, lambda seconds: tell(0, seconds)), tell)
        if output_dir is None:
            failed = print_texts(outcomes, several, "txt" if output_format == "all" else output_format)
        else:
            failed = write_files(outcomes, sources, output_dir, output_format)
    if failed:
        if len(sources) > 1:
            print(f"focusasr: {failed} of {len(sources)} files failed", file=sys.stderr)
        raise typer.Exit(1)


def told(outcomes: Iterable[Outcome], tell: Any) -> Iterator[Outcome]:
    """Count each outcome on the progress bar, and name those that failed on stderr."""
    for outcome in outcomes:
        tell(1, 0.0)
        if outcome.error is not None:
            stderr.print(f"focusasr: {outcome.error}", markup=False, highlight=False, soft_wrap=True)
        yield outcome


def print_texts(outcomes: Iterable[Outcome], several: bool, suffix: str) -> int:
    """Print transcripts to stdout as they come; return how many failed."""
    from focusasr.output import render

    failed = 0
    for outcome in outcomes:
        if outcome.transcript is None:
            failed += 1
        elif several:
            print(f"{outcome.source.name}\t{outcome.transcript.text}", flush=True)
        elif suffix == "txt":
            print(outcome.transcript.text, flush=True)
        else:
            sys.stdout.write(render(outcome.transcript, suffix))
    return failed


def write_files(outcomes: Iterable[Outcome], sources: list[Source], folder: Path, wanted: str) -> int:
    """Write each transcript's files into the folder as it comes; return how many failed."""
    from focusasr.output import FORMATS, output_stems, write

    stems = output_stems(sources, folder)
    failed = 0
    for stem, outcome in zip(stems, outcomes, strict=True):
        if outcome.transcript is None:
            failed += 1
        else:
            write(outcome.transcript, stem, FORMATS if wanted == "all" else [wanted])
    return failed


@app.command(context_settings=BOTH_SPELLINGS)
@with_settings(DecodingConfig)
def evaluate(
    manifest: Annotated[Path, typer.Argument(help="manifest (JSON Lines with audio_filepath and text)")],
    given: dict[type, dict[str, Any]],
    model: ModelOption = None,
    normalizer: Annotated[
        Literal["none", "basic", "english"],
        typer.Option(help="what is done to both texts first: nothing, case and punctuation, Whisper's English rules"),
    ] = "basic",
    output: Annotated[Path | None, typer.Option(help="write one JSON line per utterance here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
    worst: Annotated[int, typer.Option(help="how many of the worst utterances to show", min=0)] = 5,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure word error rate on a manifest, with its 95 % interval."""
    from focusasr import evaluate as room
    from focusasr.manifest import read_manifest

    bad_lines: list[str] = []
    utterances = read_manifest(manifest, bad_lines.append)
    for line in bad_lines:
        stderr.print(f"focusasr: {line}", markup=False, highlight=False, soft_wrap=True)
    config = read_settings(DecodingConfig, given[DecodingConfig], "evaluate")
    recognizer = make_recognizer(model, device, threads, config)
    with progress_bar(len(utterances), "evaluating") as tell:

        def recognize(sources: Iterable[Source]) -> Iterator[Outcome]:
            return told(recognizer.transcribe(sources, lambda seconds: tell(0, seconds)), tell)

        evaluation = room.evaluate(recognize, utterances, normalizer)
    if output:
        room.write_rows(evaluation, output)
    if as_json:
        print(json.dumps(room.to_json(evaluation)))
    else:
        room.print_table(evaluation, Console(), worst)
    if evaluation.failures or bad_lines:
        raise typer.Exit(1)


@app.command(context_settings=BOTH_SPELLINGS)
@with_settings(TrainConfig, ModelConfig, TextConfig)
def train(
    given: dict[type, dict[str, Any]],
    manifests: Annotated[
        list[str] | None, typer.Argument(help="training manifests, each PATH or PATH=WEIGHT", show_default=False)
    ] = None,
    dev: Annotated[list[str] | None, typer.Option(help="manifest to measure on; may be given again")] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="the run's folder: best/ and last/")] = Path(
        "runs/focusasr"
    ),
    config: Annotated[Path | None, typer.Option(help="TOML file with the tables data, text, model, train")] = None,
    preset: Annotated[
        Literal["tiny", "small", "base"] | None,
        typer.Option(help="size: about 2, 8, 25 M weights (default small)"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run in --output-dir stopped")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Train a recognizer on manifests; what is on the command line wins over the TOML file."""
    import torch

    from focusasr.checkpoint import read_json
    from focusasr.device import choose_device
    from focusasr.train import Trainer, read_run
    from focusasr.training_log import TrainingLog

    settings: dict[str, Any] = read_toml(config) if config else {}
    if resume and not config:
        settings = resumed_settings(output_dir, read_json)
    folder = config.parent if config else Path()
    for table, kind in (("train", TrainConfig), ("model", ModelConfig), ("text", TextConfig)):
        settings[table] = {**settings.get(table, {}), **given[kind]}
    here = {
        "train": [str(Path(m).absolute()) for m in manifests or []],
        "dev": [str(Path(m).absolute()) for m in dev or []],
    }
    settings["data"] = {**settings.get("data", {}), **{name: paths for name, paths in here.items() if paths}}
    if preset:
        settings["model"]["preset"] = preset
    if not settings["data"].get("train"):
        raise typer.BadParameter("give a training manifest, or --config with [data] train")
    run = read_run(settings, folder, output_dir, str(config or "options"))
    if threads:
        torch.set_num_threads(threads)
    chosen, reason = choose_device(device)
    trainer = Trainer(run, chosen, resume)
    with TrainingLog(output_dir, run.settings, stderr, trainer.accelerator.is_main_process) as log:
        log.say(f"on {chosen.type}: {reason}")
        for line in trainer.summary():
            log.say(line)
        trainer.fit(log)
    if trainer.accelerator.is_main_process:
        print(output_dir / "best")
    if log.broken_seen or trainer.findings.unreadable():
        raise typer.Exit(1)  # trained, but not on all that was given


def resumed_settings(output_dir: Path, read_json: Any) -> dict[str, Any]:
    """Return the settings that the run in `output_dir` was started with."""
    path = output_dir / "last" / "config.json"
    if not path.is_file():
        raise InputError(f"{output_dir}: nothing to resume here; leave --resume out")
    kept = read_json(path)
    return {**kept.get("run", {}), "model": kept.get("model", {}), "text": kept.get("text", {})}


@app.command(context_settings=BOTH_SPELLINGS)
@with_settings(InspectionConfig)
def inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="checkpoint folder, or default")],
    recording: Annotated[str, typer.Argument(metavar="AUDIO", help="an audio file, or - for standard input")],
    given: dict[type, dict[str, Any]],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="draw a picture here (PNG)")] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="encoder layer to draw, from 1; may be given again (default: first, middle, last)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Show what the focus of a model does with a recording: span, temperature, entropy and norms per layer and head."""
    from focusasr import inspection as room
    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.device import choose_device

    config = read_settings(InspectionConfig, given[InspectionConfig], "inspect")
    model = load_checkpoint(find_checkpoint(checkpoint), choose_device(device)[0]).model
    seen = room.inspect_recording(model, recording, config, layer)
    if output:
        from focusasr.picture import draw

        draw(seen, output)
    if as_json:
        print(json.dumps(room.to_json(seen)))
    else:
        room.print_table(seen, Console())


@app.command(context_settings=BOTH_SPELLINGS)
def info(
    model: ModelOption = None,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object to stdout")] = False,
) -> None:
    """Show a checkpoint's card, the device that would compute and why, and versions."""
    from importlib.metadata import version

    from focusasr.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.config import to_settings
    from focusasr.device import choose_device

    chosen, reason = choose_device(device)
    checkpoint = load_checkpoint(find_checkpoint(model))
    packages = ("torch", "torchaudio", "tokenizers", "librosa", "jiwer", "soundfile")
    versions = {"focusasr": __version__, "python": sys.version.split()[0]} | {name: version(name) for name in packages}
    if as_json:
        facts = {"checkpoint": str(checkpoint.folder), "weights": checkpoint.model.parameter_count()}
        settings = {"model": to_settings(checkpoint.model.config), "metrics": checkpoint.metrics}
        print(json.dumps({**facts, "device": chosen.type, "reason": reason, "versions": versions, **settings}))
        return
    print(checkpoint.card.strip() + "\n")
    print(f"checkpoint  {checkpoint.folder}, {checkpoint.model.parameter_count():,} weights")
    print(f"device      {chosen} ({reason})")
    print("versions    " + ", ".join(f"{name} {number}" for name, number in versions.items()))
