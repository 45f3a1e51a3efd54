"""Kill -9 and Ctrl-C at random moments of every command, then a rerun without losses.

python scripts/checks/interrupts.py --times 200 --seed 1           # all commands, 40 each
python scripts/checks/interrupts.py --times 20 --command train

After each signal every visible output must be whole. A rerun must complete with the outputs of an undisturbed run, and
without temporary files or processes. Ctrl-C must end the command within 2 s, with status 130 and one line. Most rounds
run in forks of this process, which has PyTorch loaded; every ninth is a separate process. POSIX only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

RATE_HZ = 22_050
ANSWER_SECONDS = 2.0
LOADED = (
    "accelerate jiwer matplotlib.figure rich.live torch torch._dynamo torch.utils.tensorboard whisper_normalizer.basic "
    "focusasr.cli.app focusasr.data.preprocess focusasr.training.trainer focusasr.transcription.native"
).split()
START_SECONDS = 0.3  # of an interpreter, in which Ctrl-C is its own
ORPHAN_SECONDS = 20.0  # PyTorch's workers look every five seconds whether their parent lives
TRAINING = """
model = { width = 16, heads = 2, encoder_layers = 1, decoder_layers = 1, max_span = 8, ramp = 2, win_size = 8, \
text_context = 40, mel_bands = 20 }
train = { steps = 6, evaluate_every = 3, batch_seconds = 2.5, accumulate = 2, warmup_steps = 2, clean_epochs = 0, \
learning_rate = 0.01, ema_decay = 0.9 }
"""


@dataclass(frozen=True)
class Job:
    """One command: its arguments in a folder of synthetic audio, its outputs, and a check for damaged ones."""

    name: str
    arguments: list[str]
    left: Callable[[Path], dict[str, Any]]
    broken: Callable[[Path, dict[str, Any]], list[str]]
    alone: bool = False  # whether one process at a time may work on an output folder


@dataclass
class Ended:
    """A finished process: its status, its messages, its duration, and the time from the signal to its end."""

    status: int
    error: str
    seconds: float
    session: int
    answer: float | None = None  # None if it ended before the signal


def main() -> None:
    """Prepare audio and references, interrupt the commands, print one line per command; status 1 after a loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="blows that hit, of all commands together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--command", action="append", choices=[job.name for job in JOBS], help="may be given again")
    given = parser.parse_args()
    load()
    jobs = [job for job in JOBS if job.name in (given.command or [job.name])]
    failed = False
    place = Path(tempfile.mkdtemp())  # a TemporaryDirectory would be removed by each fork that ends
    try:
        prepare(place)
        for index, job in enumerate(jobs):
            campaign = Campaign(job, place, random.Random(given.seed + index))
            campaign.strike(-(-given.times // len(jobs)))
            print(campaign.line(), flush=True)
            failed |= bool(campaign.failures)
    finally:
        shutil.rmtree(place)
    sys.exit(failed)


def load() -> None:
    """Load the modules that the forks need."""
    for name in LOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored


# The jobs


def prepare(folder: Path) -> None:
    """Make audio, texts, a manifest and a small model in a folder."""
    draw = np.random.default_rng(0)
    (folder / "in").mkdir()
    lines = []
    for number, text in enumerate(["bad cab", "a fed egg", "hag", "deaf bee", "cafe", "a face", "bag", "dad"]):
        sound = 0.1 * draw.standard_normal((round((0.8 + 0.1 * number) * RATE_HZ), 2))
        path = folder / "in" / f"{number}.wav"
        soundfile.write(path, sound, RATE_HZ)
        path.with_suffix(".txt").write_text(text)
        lines.append(json.dumps({"audio_filepath": str(path), "text": text}))
    (folder / "songs.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run.toml").write_text(TRAINING)
    made = run([*TRAIN, "--workers", "0"], folder)
    assert made.status == 0, made.error
    (folder / "out").rename(folder / "model")


def files_left(folder: Path) -> dict[str, Any]:
    """Return the visible outputs by name; of a page, which contains times, only whether it is whole."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {
        name: text.rstrip().endswith(b"</html>") if name == "page.html" else text for name, text in contents.items()
    }


def files_broken(folder: Path, reference: dict[str, Any]) -> list[str]:
    """Return the names of outputs that differ from those of an undisturbed run."""
    return [name for name, content in files_left(folder).items() if reference.get(name) != content]


def training_left(folder: Path) -> dict[str, Any]:
    """Return all outputs of a training run except its times."""
    import torch

    state = torch.load(folder / "last" / "trainer" / "state.pt", weights_only=True)
    for name in ("seconds", "waiting_seconds"):
        del state["position"][name]
    timeless = {"audio_seconds_per_second", "waiting_share"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = {f"{name}/{piece}": (folder / name / piece).read_bytes() for name in ("best", "last") for piece in PIECES}
    return {
        **flat("state", state),
        **weights,
        "samples": (folder / "samples.txt").read_text(),
        "rows": [{key: value for key, value in row.items() if key not in timeless} for row in rows],
        "names": sorted(path.name for path in folder.iterdir()),
    }


def flat(name: str, value: Any) -> dict[str, Any]:
    """Return the leaves of a nested state by name, tensors as their bytes."""
    value = list(value.items()) if isinstance(value, dict) else value
    if isinstance(value, (list, tuple)):
        return {key: leaf for index, part in enumerate(value) for key, leaf in flat(f"{name}.{index}", part).items()}
    return {name: value.numpy().tobytes() if hasattr(value, "numpy") else value}


def training_broken(folder: Path, reference: dict[str, Any]) -> list[str]:
    """Return the names of checkpoints that cannot be loaded, and of other damaged files."""
    import torch

    from focusasr.model.checkpoint import load_checkpoint

    broken = []
    for name in ("best", "last"):
        try:
            if (folder / name).exists():
                load_checkpoint(folder / name)
                if name == "last":
                    torch.load(folder / name / "trainer" / "state.pt", weights_only=True)
        except Exception as error:
            broken.append(f"{name}: {error}")
    return broken


PASSING = (".part", ".old", ".heard")  # how names end of what must not be left
PIECES = ("model.safetensors", "tokenizer.json")
TRAIN = ["train", "songs.jsonl", "--dev", "songs.jsonl", "-o", "out", "--config", "run.toml", "--device", "cpu"]
MODEL = ["--model", "model", "--device", "cpu"]
TRANSCRIBE = ["transcribe", "in", "-o", "out", "--batch-size", "2", *MODEL]
EVALUATE = "evaluate songs.jsonl --output out/rows.jsonl --html out/page.html --batch-size 2".split()
JOBS = (
    Job("preprocess", ["preprocess", "in", "-o", "out", "--workers", "2"], files_left, files_broken),
    Job("train", TRAIN, training_left, training_broken, alone=True),
    Job("transcribe", [*TRANSCRIBE, "-f", "all"], files_left, files_broken),
    Job("transcribe-srt", [*TRANSCRIBE, "-f", "srt", "--skip-existing"], files_left, files_broken),  # continues
    Job("evaluate", [*EVALUATE, *MODEL], files_left, files_broken),
)


# Processes


def start(arguments: list[str], folder: Path, fresh: bool = False) -> int:
    """Start a command in a folder and a session of its own; return its process number when it handles Ctrl-C.

    It runs in a fork of this process, or in a fresh interpreter, which does not report when it is ready.
    """
    ready, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        return pid
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{name}.{os.getpid()}", os.O_WRONLY | os.O_CREAT), number)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "focusasr", *arguments])
        from focusasr.__main__ import program
        from focusasr.runtime.process import answer_interrupts

        sys.argv = ["focusasr", *arguments]  # what a fresh process finds
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        answer_interrupts()
        os.write(told, b".")
        program()
    finally:
        os._exit(99)


def finish(pid: int, folder: Path, blow: signal.Signals | None = None, moment: float = 0, group: bool = False) -> Ended:
    """Wait for the end of a process; send it, or its group, the signal `moment` seconds from now."""
    began, struck = time.perf_counter(), None
    while True:
        over, status = os.waitpid(pid, os.WNOHANG)
        now = time.perf_counter()
        if over:
            break
        if blow and struck is None and now - began >= moment:
            struck = now
            (os.killpg if group else os.kill)(pid, blow)
        time.sleep(0.002)
    (folder / f"stdout.{pid}").unlink()
    error = (folder / f"stderr.{pid}").read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), error, now - began, pid, None if struck is None else now - struck)


def run(arguments: list[str], folder: Path, fresh: bool = False) -> Ended:
    """Run a command to its end."""
    return finish(start(arguments, folder, fresh), folder)


def living(session: int) -> list[str]:
    """Return the commands of the running processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:200])
    return found


def outlived(session: int, seconds: float) -> list[str]:
    """Return the processes of a session that still run after a number of seconds."""
    deadline = time.perf_counter() + seconds
    while (left := living(session)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    return left


# Rounds


@dataclass
class Campaign:
    """Many rounds of one command in one folder, and their results."""

    job: Job
    place: Path
    draw: random.Random
    kills: int = 0
    interrupts: int = 0
    missed: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)
    durations: dict[tuple[str, ...], float] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.place / "out"

    def line(self) -> str:
        """Return the summary of the command."""
        return (
            f"{self.job.name}: {self.kills + self.interrupts} hit while running ({self.kills} kill -9, "
            f"{self.interrupts} Ctrl-C), {self.missed} over before, slowest answer {self.slowest:.2f} s, "
            f"{len(self.failures)} failures"
        )

    def strike(self, times: int) -> None:
        """Send signals until `times` of them have hit; print progress and failures to stderr."""
        number = 0
        while self.kills + self.interrupts < times and self.missed <= times:
            for failure in self.round(number, fresh=number % 9 == 8):
                self.failures += [failure]
                print(f"{self.job.name}, round {number}: {failure}", file=sys.stderr, flush=True)
            number += 1
            if number % 10 == 0:
                print(f"so far, {self.line()}", file=sys.stderr, flush=True)

    def round(self, number: int, fresh: bool = False) -> list[str]:
        """Start, interrupt, check, run again and compare; return the errors."""
        more = ["--workers", str(int(number % 4 == 3))] if self.job.name == "train" else []
        blow = signal.SIGINT if number % 2 else signal.SIGKILL
        moment = self.draw.uniform(START_SECONDS if fresh else 0, self._duration(more, fresh))
        shutil.rmtree(self.out, ignore_errors=True)
        beside = not self.job.alone and number % 5 == 4
        sister = start(self.job.arguments, self.place) if beside else None
        struck = finish(
            start(self.job.arguments + more, self.place, fresh), self.place, blow, moment, number % 8 in (1, 7)
        )
        wrong = self.answered(struck, blow)
        if sister is not None and (ended := finish(sister, self.place)).status:
            wrong.append(f"a sister process failed: {ended.error[-500:]}")
        wrong += [f"not whole: {name}" for name in self.job.broken(self.out, self.reference)]
        again = self._again(more)
        if again.status:
            return [*wrong, f"the rerun ended with status {again.status}: {again.error[-500:]}"]
        wrong += self._compared(self.job.left(self.out))
        for one in (struck, again):
            wrong += [f"lives on: {command}" for command in outlived(one.session, ORPHAN_SECONDS)]
        return [f"{failure} ({blow.name} after {moment:.3f} s)" for failure in wrong]

    def answered(self, struck: Ended, blow: signal.Signals) -> list[str]:
        """Count the signal; return the errors in the response to it."""
        if struck.answer is None or struck.status not in (130, -blow):
            self.missed += 1
            return [f"status {struck.status}: {struck.error[-500:]}"] if struck.status else []
        if blow == signal.SIGKILL:
            self.kills += 1
            return []
        self.interrupts += 1
        self.slowest = max(self.slowest, struck.answer)
        wrong = [f"lives on after Ctrl-C: {command}" for command in outlived(struck.session, ANSWER_SECONDS)]
        if struck.answer > ANSWER_SECONDS:
            wrong.append(f"Ctrl-C was answered after {struck.answer:.1f} s")
        lines = struck.error.splitlines()
        said = [line for line in lines if line.startswith("focusasr: interrupted; ")]
        if struck.status != 130 or len(said) != 1 or said != lines[-1:] or "Traceback" in struck.error:
            wrong.append(f"Ctrl-C gave status {struck.status} and {struck.error[-500:]!r}")
        return wrong

    def _again(self, more: list[str]) -> Ended:
        """Run the command again, as its user would."""
        again = run(self.job.arguments + more, self.place)
        if again.status and "give --resume" in again.error:
            again = run([*self.job.arguments, *more, "--resume"], self.place)
        return again

    def _compared(self, left: dict[str, Any]) -> list[str]:
        wanted = self.reference
        names = sorted(name for name in left.keys() | wanted.keys() if left.get(name) != wanted.get(name))
        aside = [path.name for path in self.out.rglob(".*") if path.name.endswith(PASSING)]
        other = [f"other than undisturbed: {', '.join(names[:5])}"] if names else []
        return other + ([f"left aside: {', '.join(aside)}"] if aside else [])

    def _duration(self, more: list[str], fresh: bool) -> float:
        """Return the duration of an undisturbed run, measured once; its outputs must equal those of every other one."""
        key = (*more, str(fresh))
        if key not in self.durations:
            self.durations[key] = min(self._undisturbed(more, fresh) for _ in range(2))
        return self.durations[key]

    def _undisturbed(self, more: list[str], fresh: bool) -> float:
        shutil.rmtree(self.out, ignore_errors=True)
        ended = run(self.job.arguments + more, self.place, fresh)
        assert ended.status == 0, ended.error
        self.reference = self.reference or self.job.left(self.out)
        assert not (wrong := self._compared(self.job.left(self.out))), wrong
        return ended.seconds


if __name__ == "__main__":
    main()
