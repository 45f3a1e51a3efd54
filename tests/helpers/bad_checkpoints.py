"""Bad checkpoints, each made of a small good one by one change; as a program it loads them all and says what happened.

A line of JSON for each: whether it was refused and how, the seconds, how far memory grew (MB), whether code ran.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import soundfile
import torch

from focusasr.audio.source import Source
from focusasr.config import ModelConfig
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.runtime.errors import InputError
from focusasr.training.trainer import Trainer
from focusasr.transcription.loaded_model import load_recognizer
from focusasr.transcription.recognizer import ModelChoice
from tests.helpers.bad_formats import bad_formats
from tests.helpers.bad_pieces import parts, saved, shards, texts, tokenizers, torch_files
from tests.helpers.bad_weights import MARKER, Bad, changed, pickled_traps, reweighted, weights_of
from tests.helpers.tiny_whisper import SHAPE, write_whisper
from tests.helpers.toy_speech import TINY, letters_tokenizer, sung, tiny_model
from tests.helpers.whisper_formats import write_bin, write_ctranslate2, write_ggml, write_openai

ADDRESS_SPACE_MB = 300  # that loading and transcribing may reserve beyond what the process has
SECONDS = 10  # of computing
ABSURD = (0, -1, 1, 10**6, 10**12, 10**30, 1.5, "a", None, float("nan"), True, [], "missing")
FREE = {
    "attention",
    "decoder_attention",
    "temperature",
    "positions",
    "base",
    "max_dist",
    "max_span",
    "initial_span",
    "ramp",
    "win_size",
    "sharpen_longer",
    "temp_scale",
    "audio_context",
    "text_context",
    "strides",
    "dropout",
}  # settings that weights need not agree with: what is within bounds works
HEADS = {"heads", "encoder_attention_heads", "n_audio_head", "n_text_head"}
HUGGING_FACE = (
    "num_mel_bins d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads "
    "encoder_ffn_dim decoder_ffn_dim max_source_positions max_target_positions"
).split()
OPENAI = (
    "n_mels n_audio_state n_audio_head n_audio_layer n_audio_ctx n_text_ctx n_text_state n_text_head n_text_layer"
).split()
GENERATION = (
    "suppress_tokens begin_suppress_tokens forced_decoder_ids alignment_heads max_initial_timestamp_index"
).split()
NO_GENERATION = (-1, 10**12, "a", 1.5, [10**9], [-1], ["a"], [[0, 10**9]], [[0]], [[[]]], {"a": 1}, True)
CONVERTED = {
    "vocabulary": 1799, "mel_bands": 20, "width": 16, "encoder_layers": 2, "decoder_layers": 1, "conv_kernel": 0,
    "ctc": False, "audio_context": 100, "text_context": 64,
}  # fmt: skip
KINDS = ("native", "whisper", "converted", "pt", "state", "ct2", "bin", "ggml")
NATIVE = {**{field.name: field.default for field in dataclasses.fields(ModelConfig)}, **TINY, "vocabulary": 13}


def sizes() -> Iterator[Bad]:
    """Yield absurd values of every setting; where a setting says what the weights say anyway it works."""
    for name, good in NATIVE.items():
        for value in ABSURD:
            same = type(value) is type(good) and value == good
            missing = value == "missing" and good == ModelConfig.__dataclass_fields__[name].default
            works = None if name in FREE | HEADS else same or missing
            yield Bad("native", f"config-{name}-{value}", changed("config.json", "model", name, value=value), works)
    for name, good in CONVERTED.items():
        for value in ABSURD:
            same = type(value) is type(good) and value == good
            works = None if value == "missing" else same
            yield Bad("converted", f"config-{name}-{value}", changed("config.json", "model", name, value=value), works)
    for name in sorted(FREE - {"audio_context", "text_context"}):
        for value in (*ABSURD[:-3], [1, 1], [8, 8], [10**9, 10**9], "hybrid", "rotary"):
            yield Bad("converted", f"config-{name}-{value}", changed("config.json", "model", name, value=value), None)
    for name in HUGGING_FACE:
        for value in ABSURD:
            lenient = value == "missing" and name.partition("_")[2] in ("ffn_dim", "attention_heads")
            works = None if lenient else SHAPE[name] == value and type(value) is int
            yield Bad("whisper", f"config-{name}-{value}", changed("config.json", name, value=value), works)
    for name in OPENAI:
        for value in ABSURD:
            spoil = saved(lambda file, name=name, value=value: _set(file["dims"], name, value))
            yield Bad("pt", f"dims-{name}-{value}", spoil, name == "n_text_layer" and value == 1 and value is not True)


def generation() -> Iterator[Bad]:
    for name in GENERATION:
        for value in NO_GENERATION:
            yield Bad("whisper", f"generation-{name}-{value}", changed("generation_config.json", name, value=value))
            yield Bad("converted", f"generation-{name}-{value}", changed("config.json", "whisper", name, value=value))


def small() -> Iterator[Bad]:
    """Yield whole models of sizes that nobody would train: they work or are refused."""
    one_head = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    for changes in (
        {"max_target_positions": 4}, {"num_mel_bins": 1},
        {"max_source_positions": 1, "max_target_positions": 4},
        {"d_model": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, **one_head},
        {"d_model": 4, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, **one_head},
    ):  # fmt: skip
        yield Bad("whisper", f"small-{changes}", functools.partial(write_whisper, **changes), None)
    yield Bad("converted", "without-positions", _without_positions, None)


def _without_positions(folder: Path) -> None:
    """Leave out what makes a Whisper of a model of our own."""
    changed("config.json", "model", "positions", value="rotary")(folder)
    reweighted(lambda weights: [weights.pop(name) for name in [*weights] if "position" in name])(folder)


def _set(table: dict[str, Any], name: str, value: Any) -> None:
    if value == "missing":
        del table[name]
    else:
        table[name] = value


def all_bad() -> list[Bad]:
    """Return every bad checkpoint, and the good ones that they are made of."""
    good = [Bad(kind, "good", lambda path: None, works=True) for kind in KINDS]
    weights = [bad for kind in ("native", "whisper") for bad in weights_of(kind)]
    pieces = [bad for kind in ("native", "whisper") for bad in texts(kind)]
    rest = [
        pickled_traps(),
        sizes(),
        generation(),
        small(),
        tokenizers(),
        parts(),
        shards(),
        torch_files(),
        bad_formats(),
    ]
    return [*good, *weights, *pieces, *(bad for group in rest for bad in group)]


def write_good(folder: Path) -> dict[str, Path]:
    """Write a small checkpoint of every kind; return where."""
    tokenizer = letters_tokenizer()
    native = Checkpoint(
        tiny_model(tokenizer, attention="hybrid", decoder_attention="hybrid"), tokenizer, {}, "# Card\n"
    )
    save_checkpoint(folder / "native" / "model", native)
    whisper = write_whisper(folder / "whisper" / "model")
    save_checkpoint(folder / "converted" / "model", load_checkpoint(whisper))
    (folder / "pt").mkdir()
    (folder / "state").mkdir()
    state = {"model": native.model.state_dict(), "position": {"step": 3}, "optimizer": {"state": {0: torch.zeros(3)}}}
    torch.save(state, folder / "state" / "state.pt")
    places = {kind: folder / kind / "model" for kind in ("native", "whisper", "converted")}
    places["ct2"] = write_ctranslate2(whisper, folder / "ct2" / "model")
    places["bin"] = write_bin(whisper, folder / "bin" / "model")
    places["ggml"] = write_ggml(whisper, folder / "ggml" / "ggml-small.bin")
    return {**places, "pt": write_openai(whisper, folder / "pt" / "small.pt"), "state": folder / "state" / "state.pt"}


def resume(path: Path) -> None:
    """Take up a run from its state, as training does."""
    model = tiny_model(letters_tokenizer(), attention="hybrid", decoder_attention="hybrid")
    run = SimpleNamespace(stepper=SimpleNamespace(load_state=lambda state, best: model.load_state_dict(state["model"])))
    Trainer._load_state(cast(Trainer, run), path, {})


def use(kind: str, path: Path, sound: Path) -> str | None:
    """Load a checkpoint and transcribe with it; return the line that refuses it, None where it works."""
    try:
        if kind == "state":
            resume(path)
            return None
        recognizer = load_recognizer(ModelChoice(str(path), "cpu", local_files_only=True), {}).recognizer
        (outcome,) = recognizer.transcribe([Source(str(sound))])
        return outcome.error
    except InputError as error:
        return str(error)


def memory_mb(name: str) -> float:
    """Return one of the sizes that Linux keeps of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def tried(bad: Bad, good: Path, sound: Path) -> dict[str, Any]:
    """Make one bad checkpoint, use it with little memory and time, remove it, and return what happened."""
    place = Path("bad")
    shutil.copytree(good.parent, place / "in", symlinks=True)
    path = place / "in" / good.name
    bad.spoil(path)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, limit = memory_mb("VmRSS"), int((memory_mb("VmSize") + ADDRESS_SPACE_MB) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    start, crash, refusal = time.process_time(), None, None
    try:
        refusal = use(bad.kind, path, sound)
    except BaseException as error:
        crash = f"{type(error).__name__}: {error}"[:500]
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    grown = memory_mb("VmHWM") - before
    sprung = any(Path().rglob(MARKER))
    shutil.rmtree(place)
    return {"crash": crash, "refusal": refusal, "seconds": seconds, "grown_mb": grown, "sprung": sprung}


def main(first: int = 0, every: int = 1) -> None:
    """Try all from number `first` on, in the working folder; of the sizes only `every` so many."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _too_slow)
    soundfile.write("song.wav", sung("abcde"), 16_000)
    places = write_good(Path("good"))
    for number, bad in enumerate(all_bad()):
        if number >= first and (number % every == 0 or not bad.name.startswith(("config-", "generation-", "dims-"))):
            about = {"number": number, "kind": bad.kind, "name": bad.name, "works": bad.works}
            print(json.dumps(about), flush=True)  # so that it is known what ended the process
            print(json.dumps({**about, **tried(bad, places[bad.kind], Path("song.wav").absolute())}), flush=True)


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
