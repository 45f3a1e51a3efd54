"""Coverage-guided fuzzing of one reader: every error must be a one-line InputError that names the file.

    scripts/checks/fuzz.py READER SECONDS [--seed N]        needs 'pip install atheris', which is no dependency

READER is audio, manifest, configuration, subtitles or checkpoint. Inputs that reach new code are kept in
runs/fuzz/READER/corpus, findings with their tracebacks in runs/fuzz/READER/findings; both are reused. An input that
takes more than 10 s or 2 GiB is a finding too. Status 1 if there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for its tests, whose small files are the seeds

LONGEST_BYTES = 8192  # of an input
LIMITS = f"-timeout=10 -rss_limit_mb=2048 -max_len={LONGEST_BYTES} -print_final_stats=1 -report_slow_units=60".split()
Reader = Callable[[bytes], None]


# Readers: each returns what reads bytes, and the seeds


def audio(folder: Path) -> tuple[Reader, list[bytes]]:
    from focusasr.audio.load import load, probe_seconds
    from focusasr.audio.source import Source
    from tests.helpers.broken_sound import hear, packed, tone, whole

    def read(path: str) -> None:
        if (probe_seconds(path) or 0.0) > 0.05:
            load(Source(path, 0.05, 0.02))
        hear(path)

    path = folder / "a.sound"
    seeds = [*whole(0.1).values(), packed(tone(0.1), "WAVEX"), packed(tone(0.1), "AIFF")]
    return lambda data: _told(path, data, read), seeds


def manifest(folder: Path) -> tuple[Reader, list[bytes]]:
    from focusasr.data.manifest import read_manifest, write_manifest

    def read(path: str) -> None:
        write_manifest(folder / "again.jsonl", read_manifest(Path(path), _check_line))
        read_manifest(Path(path))

    row = {"audio_filepath": "a.wav", "text": "ä b", "offset": 1.5, "duration": 2, "speaker": "x", "more": [1, None]}
    rows = [json.dumps(one).encode() for one in (row, {**row, "offset": 10**400})]
    seeds = [*rows, b"[" * 3000, b'{"text": "\\ud800"}']
    return lambda data: _told(folder / "m.jsonl", data, read), [*seeds, b"1" * 5000, b"\xef\xbb\xbf{}\r\n[]", b"\xff"]


def configuration(folder: Path) -> tuple[Reader, list[bytes]]:
    from focusasr.cli.run_request import RunRequest
    from focusasr.training.run import read_run

    def read(path: str) -> None:
        read_run(RunRequest({}, {}, Path(path), folder, False).tables(), folder, folder, path)

    recipe = (ROOT / "scripts" / "recipes" / "alnum-en" / "config.toml").read_bytes()
    values = ["1" * 5000, "10" + "0" * 400, "inf", "nan", "[[1], 'x']", "2020-01-01", "[" * 1500, "true", "{a.b = 1}"]
    seeds = [f"[train]\nlearning_rate = {value}\n[model]\nstrides = {value}\n".encode() for value in values]
    return lambda data: _told(folder / "c.toml", data, read), [recipe, b"data = 1", b"model = 'x'", *seeds]


def subtitles(folder: Path) -> tuple[Reader, list[bytes]]:
    from focusasr.data.corpus import Reject
    from focusasr.data.segment_files import read_segments

    def read(path: str) -> None:
        for reading in read_segments(folder / "a.wav", Path(path), "a"):
            if isinstance(reading, Reject):
                _check_line(reading.reason)

    srt = b"1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i> {\\an8}there\n\n2\n00:00:03,000 --> 00:00:02,000\nno\n"
    ages = b"00:01.0 --> " + b"9" * 400 + b":00:00.0\nx\n\n1:00.0 --> 1:01.0\n&#" + b"1" * 5000 + b";"
    vtt = b"WEBVTT\n\nNOTE x\n\n01.5 --> 1:02.500 align:start\n<v.x Ann>Hi &amp; bye &#x110000;\n\n9:9:9.9 --> 10:9:9.9"
    return lambda data: _told(folder / "a.srt", data, read), [srt, vtt, ages, "٣:٣:٣.٣ --> ٤:٤:٤.٤\nx\n".encode()]


def checkpoint(folder: Path) -> tuple[Reader, list[bytes]]:
    """Four bytes select a file of a checkpoint of any format, and a place and kind of change; the rest are its data."""
    from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from tests.helpers.tiny_whisper import write_whisper
    from tests.helpers.toy_speech import letters_tokenizer, tiny_model
    from tests.helpers.whisper_formats import write_bin, write_ctranslate2, write_ggml, write_openai

    tokenizer = letters_tokenizer()
    save_checkpoint(folder / "native", Checkpoint(tiny_model(tokenizer), tokenizer, {}, ""))
    whisper = write_whisper(folder / "whisper")
    write_ctranslate2(whisper, folder / "ctranslate2", "int8_float16")
    write_bin(whisper, folder / "bin")
    files = (write_openai(whisper, folder / "openai" / "a.pt"), write_ggml(whisper, folder / "ggml" / "a.bin"))
    pieces = sorted(path for path in folder.glob("*/*") if path.name != "README.md")
    whole = {path: path.read_bytes() for path in pieces}

    def read(data: bytes) -> None:
        which, how, where, rest = data[:1], data[1:2], data[2:4], data[4:]
        path = pieces[int.from_bytes(which, "big") % len(pieces)]
        old = whole[path]
        at = int.from_bytes(where, "big") * len(old) >> 16
        kinds = (rest, old[:at] + rest + old[at + len(rest) :], old[:at] + rest + old[at:], old[:at])
        try:
            changed = kinds[int.from_bytes(how, "big") % len(kinds)]
            place = next((file for file in files if file.parent == path.parent), path.parent)
            _told(path, changed, lambda name: load_checkpoint(place), place)
        finally:
            path.write_bytes(old)

    seeds = [
        bytes((place, how, where, 0)) + rest
        for place, data in enumerate(whole.values())
        for how, where, rest in ((0, 0, data), (1, 99, b"1e400"), (2, 5, b"-1, "), (3, 200, b""))
    ]
    return read, [seed for seed in seeds if len(seed) <= LONGEST_BYTES]


READERS = {reader.__name__: reader for reader in (audio, manifest, configuration, subtitles, checkpoint)}


def _told(path: Path, data: bytes, read: Callable[[str], Any], named: Path | None = None) -> None:
    """Write and read a file; any exception except an InputError with its name is raised."""
    from focusasr.runtime.errors import InputError

    path.write_bytes(data)
    try:
        read(str(path))
    except InputError as error:
        _check_line(str(error))
        assert str(named or path) in str(error), f"does not name the file: {error}"


def _check_line(message: str) -> None:
    assert message.isprintable(), f"not one line that can be printed: {message!r}"


# Fuzzing


def fuzz(name: str, home: Path, options: list[str]) -> None:
    """Run as the fuzzing process; keep one finding for each place in the code, and continue."""
    import atheris

    with atheris.instrument_imports(include=["focusasr", "tomllib", "soundfile"]):
        place = tempfile.TemporaryDirectory()
        read, seeds = READERS[name](Path(place.name))
    for seed in seeds:
        _keep(home / "corpus", seed)

    def one(data: bytes) -> None:
        try:
            read(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = hashlib.sha256(f"{type(error)} {where.filename} {where.lineno}".encode()).hexdigest()[:12]
            if not (home / "findings" / f"{key}.txt").exists():
                (home / "findings" / key).write_bytes(data)
                (home / "findings" / f"{key}.txt").write_text(traceback.format_exc(), errors="backslashreplace")

    atheris.Setup([sys.argv[0], *options, *LIMITS, f"-artifact_prefix={home}/findings/", str(home / "corpus")], one)
    atheris.Fuzz()


def _keep(folder: Path, data: bytes) -> None:
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)  # as libFuzzer names them


def campaign(name: str, seconds: int, seed: int, home: Path) -> int:
    """Fuzz for a number of seconds, with restarts after a hang or a crash; print a line, return the findings."""
    for folder in ("corpus", "findings"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    runs, began = 0, time.monotonic()
    while (left := seconds - round(time.monotonic() - began)) > 0:
        options = [f"-max_total_time={left}", f"-seed={seed}"]
        child = [sys.executable, __file__, name, str(seconds), "--child", *options]
        done = subprocess.run(child, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace")
        (home / "log.txt").write_text(done.stderr)
        found = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        if not found:
            raise SystemExit(done.stderr[-2000:])
        runs, seed = runs + int(found[1]), seed + 1
    findings = [path for path in (home / "findings").iterdir() if path.suffix != ".txt"]
    kept = len(list((home / "corpus").iterdir()))
    spent = time.monotonic() - began
    print(f"fuzz {name}: {runs} runs in {spent:.0f} s, {len(findings)} findings, {kept} inputs kept in {home}")
    return len(findings)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("reader", choices=READERS)
    options.add_argument("seconds", type=int)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = options.parse_args()
    home = ROOT / "runs" / "fuzz" / given.reader
    if given.child:
        fuzz(given.reader, home, given.child)
    sys.exit(campaign(given.reader, given.seconds, given.seed, home) > 0)


if __name__ == "__main__":
    main()
