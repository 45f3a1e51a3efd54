"""Synthetic training speech by flite, espeak-ng and festival: FLAC files and a manifest.

Run `.venv/bin/python scripts/recipes/synthesize.py FOLDER --hours 2 --seed 1`. Texts come from the templates of
phrases.py (names spelled, digits, numbers, serial numbers, phone numbers, dates, times, commands), with `--words` from
its list of isolated words, or from `--texts FILE…`: manifests, or text with one sentence per line. The same seed gives
the same files, byte for byte; existing ones are kept, so an interrupted run can resume.
Debian packages: flite, espeak-ng, festival, festvox-kallpc16k, festvox-us-slt-hts.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from phrases import LONE_WORDS, draw_text

from focusasr.data.manifest import Utterance, read_manifest, write_manifest
from focusasr.runtime.files import written_aside

RATE_HZ = 16_000
SHORTEST_SECONDS_PER_WORD = 0.14  # letters and digits; faster ones are mangled
QUIETEST_PEAK = 0.01


@dataclass(frozen=True)
class Voice:
    """One way to speak: an engine, its voice and its perturbation."""

    engine: str
    name: str
    rate: float  # speed of speech, 1 is the engine's own
    pitch: float  # 1 is the engine's own
    warp: float  # resampling factor, which moves formants and pitch together
    separator: str  # separator of spelled letters

    @property
    def speaker(self) -> str:
        return f"{self.engine}-{self.name}"


FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
FESTIVAL_VOICES = ("voice_kal_diphone", "voice_cmu_us_slt_arctic_hts")
ESPEAK_ACCENTS = (
    "en-us en-us en-us en-us-nyc en-gb en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029".split()
)
ESPEAK_VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee "
    "Marco Mario Michael Mike adam anika antonio aunty belinda benjamin boris david ed edward grandma grandpa iven "
    "john linda max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac"
).split()


def draw_voice(draw: random.Random) -> Voice:
    """Sample an engine, a voice and its perturbation; natural voices are the most frequent."""
    engine = draw.choices(("flite", "espeak", "festival"), (0.50, 0.35, 0.15))[0]
    if engine == "flite":
        name = draw.choices(FLITE_VOICES, (1, 2, 3, 3, 3))[0]
    elif engine == "festival":
        name = draw.choice(FESTIVAL_VOICES)
    else:
        name = f"{draw.choice(ESPEAK_ACCENTS)}+{draw.choice(ESPEAK_VARIANTS)}"
    warp = draw.uniform(0.86, 1.18) if draw.random() < 0.7 else 1.0
    return Voice(
        engine=engine,
        name=name,
        rate=round(draw.uniform(0.55, 1.15), 3),
        pitch=round(draw.uniform(0.8, 1.25), 3),
        warp=round(warp, 3),
        separator=draw.choices((" ", ", ", ". "), (0.6, 0.25, 0.15))[0],
    )


def as_spoken(groups: list[str], voice: Voice, spell: bool) -> str:
    """Return the engine's input, with single letters spelled by their names ('a' as "ay").

    Engines read "a" as the article unless it is spelled otherwise: "ay" for flite and festival, phonemes for espeak-ng.
    With `spell` false the words are not changed.
    """
    if not spell:
        return ", ".join(groups)
    letter_a = "[['eI]]" if voice.engine == "espeak" else "ay"
    said = []
    for group in groups:
        words = group.split()
        parts = []
        for index, word in enumerate(words):
            alone = len(word) == 1
            shown = letter_a if word == "a" else word.upper() if alone else word.replace("rubout", "rub out")
            follows = index + 1 < len(words) and len(words[index + 1]) == 1
            parts.append(shown + (voice.separator if alone and follows else " "))
        said.append("".join(parts).strip())
    return ", ".join(said)


def speak(spoken: str, voice: Voice, folder: Path) -> np.ndarray:
    """Run the engine; return float32 (N,) at 16 kHz. CalledProcessError if the engine fails."""
    wav = folder / "speech.wav"
    if voice.engine == "flite":
        features = ["--setf", f"duration_stretch={1 / voice.rate:.3f}"]
        mean_hz = {"kal": 105, "kal16": 105, "awb": 128, "rms": 100, "slt": 180}[voice.name]
        features += ["--setf", f"int_f0_target_mean={mean_hz * voice.pitch:.0f}"]
        call, typed = ["flite", "-voice", voice.name, *features, "-t", spoken, str(wav)], None
    elif voice.engine == "espeak":
        words_per_minute, pitch = round(160 * voice.rate), round(50 + 100 * (voice.pitch - 1))
        call = ["espeak-ng", "-v", voice.name, "-s", f"{words_per_minute}", "-p", f"{pitch}", "-w", str(wav), spoken]
        typed = None
    else:
        stretch = f"(Parameter.set 'Duration_Stretch {1 / voice.rate:.3f})"
        call, typed = ["text2wave", "-eval", f"({voice.name})", "-eval", stretch, "-o", str(wav)], spoken
    subprocess.run(call, input=typed, check=True, capture_output=True, text=True, timeout=60)
    samples, rate_hz = soundfile.read(wav, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate_hz * voice.warp, RATE_HZ).astype(np.float32)


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Remove the engine's own silence: 30 ms stay before the first sound, 100 ms after the last."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[max(0, loud[0] - 480) : loud[-1] + 1600]


def dressed(samples: np.ndarray, draw: random.Random) -> np.ndarray:
    """Add up to 0.35 s of silence on either side and set the peak to 0.2 ... 0.9."""
    before, after = (np.zeros(int(RATE_HZ * draw.uniform(0.0, 0.35)), np.float32) for _ in range(2))
    return np.concatenate([before, samples * (draw.uniform(0.2, 0.9) / np.abs(samples).max()), after])


@dataclass(frozen=True)
class Job:
    """One file to make."""

    name: str
    text: str
    spoken: str
    voice: Voice
    path: Path


def make_item(index: int, seed: int, sentences: list[str], audio: Path) -> Job:
    """Choose text and voice of item `index`; depends only on the seed and the sentences."""
    draw = random.Random(f"{seed}:{index}")
    voice = draw_voice(draw)
    groups = [sentences[index % len(sentences)]] if sentences else draw_text(draw)
    text = re.sub(r"\s+", " ", " ".join(groups)).strip()
    name = f"{seed:03d}-{index:06d}"
    return Job(name, text, as_spoken(groups, voice, not sentences), voice, audio / name[:-3] / f"{name}.flac")


def make_sound(job: Job) -> float | str:
    """Make the file unless it exists; return its seconds, or the reason for its rejection."""
    if job.path.exists():
        return soundfile.info(job.path).duration
    with tempfile.TemporaryDirectory() as folder:
        try:
            samples = speak(job.spoken, job.voice, Path(folder))
        except (subprocess.SubprocessError, soundfile.LibsndfileError) as error:
            return f"{job.voice.speaker}: {type(error).__name__}"
    if np.abs(samples).max(initial=0) < QUIETEST_PEAK:
        return f"{job.voice.speaker}: silent"
    samples = trimmed(samples)
    if len(samples) < RATE_HZ * SHORTEST_SECONDS_PER_WORD * len(job.text.split()):
        return f"{job.voice.speaker}: too short for its words"
    samples = dressed(samples, random.Random(job.name))
    with written_aside(job.path) as aside:
        soundfile.write(aside, samples, RATE_HZ, format="FLAC", subtype="PCM_16")
    return len(samples) / RATE_HZ


def synthesize(output: Path, hours: float, seed: int, workers: int, sentences: list[str]) -> None:
    """Make items in order until `hours` are full, repeating the sentences if necessary; then write the manifest."""
    made, seconds, index, refused = list[Utterance](), 0.0, 0, Counter[str]()
    with ThreadPoolExecutor(workers) as pool:
        while seconds < 3600 * hours:
            if refused.total() > max(100, index // 2):
                sys.exit(f"most items fail: {dict(refused.most_common(3))}")
            block = [make_item(index + step, seed, sentences, output / "audio") for step in range(64)]
            index += len(block)
            for job, result in zip(block, pool.map(make_sound, block), strict=True):
                if isinstance(result, str):
                    refused[result] += 1
                    continue
                seconds += result
                extra = {"speaker": job.voice.speaker, "id": job.name, "language": "en"}
                made.append(Utterance(job.path.absolute(), job.text, 0.0, round(result, 3), extra))
            if sys.stderr.isatty():
                print(f"\r{len(made)} files, {seconds / 3600:.2f} of {hours:g} h", end="", file=sys.stderr, flush=True)
    write_manifest(output / "train.jsonl", made)
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}{len(made)} files; {(len(refused) and dict(refused)) or 'nothing'} refused", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for audio/ and train.jsonl")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--words", action="store_true", help="single words instead of the templates' texts")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], help="manifests or files of sentences to speak")
    options = parser.parse_args()
    missing = [engine for engine in ("flite", "espeak-ng", "text2wave") if not shutil.which(engine)]
    if missing:
        sys.exit(f"{', '.join(missing)} not found; apt-get install flite espeak-ng festival festvox-us-slt-hts")
    sentences = list(LONE_WORDS) if options.words else []
    for path in options.texts:
        manifest = path.suffix == ".jsonl"
        spoken = [one.text for one in read_manifest(path)] if manifest else path.read_text("utf-8").splitlines()
        sentences += [line.strip() for line in spoken if line.strip()]
    random.Random(options.seed).shuffle(sentences)
    synthesize(options.output, options.hours, options.seed, options.workers, sentences)


if __name__ == "__main__":
    main()
