"""Make synthetic training speech with flite, espeak-ng and festival: FLAC files of 16 kHz mono and a manifest.

Run `scripts/synthesize.py FOLDER --hours 2 --seed 1`. Texts come from seeded templates of the home ground (names
spelled, digits, numbers, serial numbers, phone numbers, dates, times, commands) or from `--texts FILE`, one sentence
per line. The same seed gives the same texts and voices; files that exist are kept, so a broken run goes on.
Debian packages: flite, espeak-ng, festival, festvox-kallpc16k, festvox-us-slt-hts.
"""

from __future__ import annotations

import argparse
import json
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from focusasr.files import written_aside

RATE_HZ = 16_000
SHORTEST_SECONDS_PER_WORD = 0.14  # letters and digits; faster ones are mangled
QUIETEST_PEAK = 0.01

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = "january february march april may june july august september october november december".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
ORDINALS += [f"twenty {word}" for word in ORDINALS[:9]] + ["thirtieth", "thirty first"]
COMMANDS = (
    "yes no stop go help start repeat enter erase rubout up down left right on off bed bird cat dog happy house "
    "marvin sheila tree wow backward forward follow learn visual zero one two three four five six seven eight nine"
).split()
NAMES = (
    "adam alan alice amy andrea andrew angela anna anthony barbara barry ben bill bob brian carl carol charles "
    "chris cindy claire daniel david deborah dennis diane donna edward elizabeth emily eric fiona frank fred gary "
    "george grace harry heather helen henry howard ian isaac jack jacob james jane janet jason jeff jessica jim joan "
    "john joseph judy julia karen kate keith kelly ken kevin kim laura linda lisa louise lucy margaret maria mark mary "
    "matthew max michael nancy neil nick nora oliver olivia oscar pamela patrick paul peter philip quentin rachel ralph "
    "rebecca richard robert roger ruth sally sam sarah scott simon sophie stephen steve susan thomas tim tom tony "
    "ursula valerie victor vincent virginia walter wendy william xavier yvonne zach zoe abbott adams allen anderson "
    "baker barnes bell bennett brooks brown burke butler campbell carter clark cohen cole collins cook cooper cox cruz "
    "davis diaz dixon dunn ellis evans ferguson fisher fleming ford foster fox garcia gibson gonzalez graham grant gray "
    "green griffin hall hamilton harris hayes hernandez hill hoffman holmes hughes hunt jackson jenkins jensen johnson "
    "jones kaplan kelley kennedy khan king klein knight kowalski kumar larson lee lewis lopez lynch marshall martinez "
    "mason mcdonald meyer miller mitchell moore morgan murphy murray myers nelson nguyen novak obrien olson owens parker "
    "patel perez perry phillips porter powell price quinn ramirez reed reynolds rivera roberts robinson rodriguez rogers "
    "rossi russell sanchez sanders schmidt schultz shaw silva simpson singh smith snyder stewart sullivan taylor turner "
    "vargas vasquez wagner walker wallace ward watson weaver webb wells west white wilson wong wood wright yang young "
    "zhang zimmerman albany atlanta austin baltimore berlin boston buffalo calgary chicago cleveland dallas denver "
    "detroit dublin erie fresno geneva glasgow hartford houston jacksonville kansas leeds lisbon london madison memphis "
    "miami montreal nashville newark oakland omaha orlando oxford paris phoenix portland princeton quebec raleigh "
    "richmond rochester rome salem seattle sydney syracuse tampa toledo toronto tucson venice vienna warsaw york zurich "
    "avenue street road drive lane court boulevard broadway highland forbes squirrel maple walnut chestnut apple yellow "
    "zebra jazz pixel quiz box hexagon jigsaw wizard voyage vivid query fuzzy physics rhythm oxygen buzz"
).split()


@dataclass(frozen=True)
class Voice:
    """One way to speak: an engine, its voice and how it is bent."""

    engine: str
    name: str
    rate: float  # speed of speech, 1 is the engine's own
    pitch: float  # 1 is the engine's own
    warp: float  # the sound is resampled by this, which moves formants and pitch together
    separator: str  # what stands between spelled letters

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
    "Marco Mario Michael Mike adam anika antonio aunty belinda benjamin boris david ed edward grandma grandpa iven john "
    "linda max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac"
).split()


def draw_voice(draw: random.Random) -> Voice:
    """Draw an engine, a voice and how it is bent; the natural voices come most often."""
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


# --- texts: each template returns groups of words; engines may pause between groups ---------------------------------


def spelled_name(draw: random.Random) -> list[str]:
    return [" ".join(draw.choice(NAMES))]


def spelled_letters(draw: random.Random) -> list[str]:
    return [" ".join(draw.choices(LETTERS, k=draw.randint(1, 7)))]


def digit_string(draw: random.Random) -> list[str]:
    zero = draw.choice(("zero", "oh"))
    return [" ".join(draw.choices([*DIGITS, zero], k=draw.randint(1, 12)))]


def phone_number(draw: random.Random) -> list[str]:
    zero = draw.choice(("zero", "oh"))
    parts = draw.choice(((3, 4), (3, 3, 4), (3, 3, 2, 2), (5,)))
    groups = [" ".join(draw.choices([*DIGITS, zero], k=count)) for count in parts]
    return (["area code", *groups] if len(parts) == 3 and draw.random() < 0.2 else groups)


def two_digits(draw: random.Random) -> str:
    return below_hundred(draw.randint(10, 99))


def below_hundred(number: int) -> str:
    if number < 10:
        return DIGITS[number - 1]
    if number < 20:
        return TEENS[number - 10]
    ten, one = divmod(number, 10)
    return TENS[ten - 2] + (f" {DIGITS[one - 1]}" if one else "")


def below_thousand(number: int, joint: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{DIGITS[hundreds - 1]} hundred"] if hundreds else []
    if rest:
        words += [joint] * bool(hundreds and joint) + [below_hundred(rest)]
    return " ".join(words)


def number(draw: random.Random) -> list[str]:
    """A whole number below a million: "four thousand three hundred and eighty six"."""
    value = draw.randint(1, 10 ** draw.randint(1, 6) - 1)
    joint = draw.choice(("", "and"))
    thousands, rest = divmod(value, 1000)
    groups = [below_thousand(thousands, joint) + " thousand"] if thousands else []
    if rest:
        groups.append((f"{joint} " if groups and joint and rest < 100 else "") + below_thousand(rest, joint))
    return groups


def loose_number(draw: random.Random) -> list[str]:
    """Two to four small numbers in a row, as people read house numbers and codes: "six thirty five", "one oh six"."""
    words = [draw.choice((*DIGITS, "oh", "zero")) if draw.random() < 0.5 else two_digits(draw) for _ in range(3)]
    return [" ".join(words[: draw.randint(1, 3)])]


def serial(draw: random.Random) -> list[str]:
    """A command, letters and a number, in the manner of "rubout g m e f three nine"."""
    command = draw.choice(("", "", "enter", "erase", "rubout"))
    letters = " ".join(draw.choices(LETTERS, k=draw.randint(3, 6)))
    if command == "enter" and draw.random() < 0.7:
        return [f"enter {loose_number(draw)[0]}"]
    return [f"{command} {letters} {loose_number(draw)[0]}".strip()]


def code(draw: random.Random) -> list[str]:
    """Letters and digits in any order, as in a reservation or a license plate; "oh" would be taken for the letter."""
    words = [draw.choice(LETTERS) if draw.random() < 0.5 else draw.choice([*DIGITS, "zero"]) for _ in range(10)]
    return [" ".join(words[: draw.randint(2, 10)])]


def year(draw: random.Random) -> str:
    century = draw.choice(("nineteen", "nineteen", "nineteen", "eighteen", "twenty"))
    if century == "twenty" and draw.random() < 0.5:
        return "two thousand" + draw.choice((" ", " and ")) + below_hundred(draw.randint(1, 29))
    value = draw.randint(1, 99)
    return f"{century} {'oh ' if value < 10 else ''}{below_hundred(value)}"


def date(draw: random.Random) -> list[str]:
    month, day = draw.choice(MONTHS), draw.randint(1, 31)
    said = draw.choice(
        (
            f"{month} {below_hundred(day)}",
            f"{month} {ORDINALS[day - 1]}",
            f"{month} the {ORDINALS[day - 1]}",
            f"the {ORDINALS[day - 1]} of {month}",
        )
    )
    front = [draw.choice(WEEKDAYS)] if draw.random() < 0.15 else []
    return [*front, said, *([year(draw)] if draw.random() < 0.6 else [])]


def time_of_day(draw: random.Random) -> list[str]:
    hour = below_hundred(draw.randint(1, 12))
    minute = draw.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, draw.randint(1, 59)))
    if minute == 0:
        return [f"{hour} o'clock" if draw.random() < 0.6 else f"{hour} {draw.choice('ap')} m"]
    if draw.random() < 0.25:
        return [draw.choice((f"half past {hour}", f"quarter to {hour}", f"quarter past {hour}", f"ten to {hour}"))]
    said = f"{hour} {'oh ' if minute < 10 else ''}{below_hundred(minute)}"
    return [said + (f" {draw.choice('ap')} m" if draw.random() < 0.4 else "")]


def command(draw: random.Random) -> list[str]:
    return draw.choices(COMMANDS, k=draw.choice((1, 1, 1, 1, 2, 3, 4)))


def phrase(draw: random.Random) -> list[str]:
    """A short sentence around something spelled or counted."""
    name = draw.choice(NAMES)
    spelled = " ".join(name)
    return draw.choice(
        (
            lambda: ["my name is", name, "spelled", spelled],
            lambda: [f"my name is spelled {spelled}"],
            lambda: [f"that is spelled {spelled}"],
            lambda: [name, spelled],
            lambda: ["the number is", *phone_number(draw)],
            lambda: ["my phone number is", *phone_number(draw)],
            lambda: ["please call", *phone_number(draw)],
            lambda: [f"call {name}"],
            lambda: [f"call {name} at", *phone_number(draw)],
            lambda: [f"the code is {code(draw)[0]}"],
            lambda: ["the date is", *date(draw)],
            lambda: ["i was born on", *date(draw)],
            lambda: [f"meet me at {time_of_day(draw)[0]}"],
            lambda: [f"room {loose_number(draw)[0]}"],
            lambda: [f"{loose_number(draw)[0]} {name} {draw.choice(('street', 'road', 'avenue', 'drive'))}"],
        )
    )()


TEMPLATES = {
    spelled_name: 0.22,
    spelled_letters: 0.10,
    digit_string: 0.14,
    phone_number: 0.06,
    number: 0.05,
    loose_number: 0.06,
    serial: 0.12,
    code: 0.06,
    date: 0.06,
    time_of_day: 0.02,
    command: 0.06,
    phrase: 0.05,
}


# --- speaking -------------------------------------------------------------------------------------------------------


def as_spoken(groups: list[str], voice: Voice, spell: bool) -> str:
    """Return what the engine is given, so that single letters are said by their names ('a' as "ay").

    Engines take "a" for the article unless it is written as something else: "ay" for flite and festival, phonemes for
    espeak-ng. With `spell` false the words are passed as they are.
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
    """Run the engine; returns float32 (N,) at 16 kHz. Raises CalledProcessError where the engine fails."""
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
    """Cut the engine's own silence: 30 ms stay before the first sound, 100 ms after the last."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[max(0, loud[0] - 480) : loud[-1] + 1600]


def dressed(samples: np.ndarray, draw: random.Random) -> np.ndarray:
    """Put up to 0.35 s of silence on either side and set the peak to 0.2 ... 0.9."""
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
    """Decide text and voice of item `index`; depends on nothing but the seed and the sentences."""
    draw = random.Random(f"{seed}:{index}")
    voice = draw_voice(draw)
    if sentences:
        groups = [sentences[index % len(sentences)]]
    else:
        groups = draw.choices(list(TEMPLATES), list(TEMPLATES.values()))[0](draw)
    text = re.sub(r"\s+", " ", " ".join(groups)).strip()
    name = f"{seed:03d}-{index:06d}"
    return Job(name, text, as_spoken(groups, voice, not sentences), voice, audio / name[:-3] / f"{name}.flac")


def make_sound(job: Job) -> float | str:
    """Make the file unless it is there; returns its seconds, or why it was refused."""
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
    """Make items in order until `hours` are full, going round the sentences as often as it takes; then the manifest."""
    lines, seconds, index, refused = [], 0.0, 0, Counter[str]()
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
                line = {"audio_filepath": str(job.path.relative_to(output)), "duration": round(result, 3)}
                lines.append({**line, "text": job.text, "speaker": job.voice.speaker, "id": job.name, "language": "en"})
            print(f"\r{len(lines)} files, {seconds / 3600:.2f} of {hours:g} h", end="", file=sys.stderr, flush=True)
    with written_aside(output / "train.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"\n{len(refused) and dict(refused) or 'nothing'} refused", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for audio/ and train.jsonl")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--texts", type=Path, help="say these sentences, one per line, instead of the templates'")
    options = parser.parse_args()
    missing = [engine for engine in ("flite", "espeak-ng", "text2wave") if not shutil.which(engine)]
    if missing:
        sys.exit(f"{', '.join(missing)} not found; apt-get install flite espeak-ng festival festvox-us-slt-hts")
    sentences = []
    if options.texts:
        sentences = [line.strip() for line in options.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        random.Random(options.seed).shuffle(sentences)
    synthesize(options.output, options.hours, options.seed, options.workers, sentences)


if __name__ == "__main__":
    main()
