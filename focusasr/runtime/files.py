"""Files that are whole or absent, written aside and renamed; and small ones, read whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError, explain
from focusasr.runtime.settings import parse_json

OPEN_FILE = re.compile(r"(?:/dev/std|/dev/fd/|/proc/self/fd/)(out|err|[0-9]{1,6})")
FULL = (errno.ENOSPC, errno.EDQUOT)  # disks, and the share of one user
LITTLE_ROOM = 2**20  # bytes
LONG_AGO_SECONDS = 24 * 3600.0
_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<time>\d+)-[0-9a-f]{8}\.(?:part|old)", re.S)
_under_way: set[Path] = set()  # what this process is writing
STEM_BYTES = 180  # file systems allow 255 for a name; the rest is for markers and the suffix
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, controls, bytes that are not UTF-8

LARGEST_TEXT = 32 * 2**20  # bytes of a piece of a checkpoint; Whisper's tokenizer.json has 4 million


def unwritable(path: Path, error: Exception, instead: str) -> InputError | LibraryError:
    """Return in one line why a path cannot be written, and what to do `instead`; a library's failure as its own."""
    if failure := explain(error):
        return failure
    if isinstance(error, PermissionError):
        place = next((one for one in _there(path) if not os.access(one, os.W_OK)), path.parent).absolute()
        return InputError(f"{place}: no permission to write {'there' if place.is_dir() else 'it'}; {instead}")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return InputError(f"{_there(path)[0]}: is a file, not a folder; {instead}")
    reason = getattr(error, "strerror", None) or str(error)
    if full := _is_full(path, error):
        reason = os.strerror(errno.ENOSPC)
    return InputError(f"{path}: cannot be written ({reason}); {'make room there, or ' * full}{instead}")


def _is_full(path: Path, error: Exception) -> bool:
    """Return whether an error in writing is of a full disk; libraries tell in their own words, or not at all."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return shutil.disk_usage(_there(path.absolute())[0]).free < LITTLE_ROOM


def is_stream(path: Path) -> bool:
    """Tell devices and pipes, which no file may take the place of, and standard output by its name."""
    return OPEN_FILE.fullmatch(str(path)) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _stream(path: Path) -> BinaryIO:
    """Open what `is_stream`; what this process has open goes on where it stands."""
    if named := OPEN_FILE.fullmatch(str(path)):
        sys.stdout.flush()
        return os.fdopen(os.dup({"out": 1, "err": 2}.get(named[1]) or int(named[1])), "wb")
    return path.open("ab")


def ensure_file_writable(path: Path, instead: str) -> None:
    """Refuse, as `ensure_writable`, a place where one file cannot be written."""
    if not is_stream(path):
        ensure_writable(path.parent, instead)


def ensure_writable(folder: Path, instead: str) -> None:
    """Refuse a folder for results before any work, where nothing can be written: InputError, as `unwritable`."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=_there(folder)[0]):  # which leaves nothing
            pass
    except OSError as error:
        raise unwritable(folder, error, instead) from None


def _there(path: Path) -> list[Path]:
    """Return what there is of a path and its parents, the nearest first."""
    return [one for one in (path, *path.parents) if os.path.exists(one)]


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    Works for one file or one folder. A folder that already exists at `path` is replaced as a whole, by two renames:
    killed between them, a program leaves the old folder aside, and `restore` puts it back. What killed programs left
    half written in the same folder goes; what others are writing there stays. A device, a pipe or standard output by
    its name is written into.
    """
    if is_stream(path):
        import tempfile

        with tempfile.TemporaryDirectory() as room:
            aside = Path(room) / path.name
            yield aside
            with _stream(path) as out:
                out.write(aside.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    aside = _beside(path, "part")
    _under_way.add(aside)
    try:
        yield aside
        _under_way.discard(aside)
        if aside.is_dir():
            _replace_folder(aside, path)
        else:
            os.replace(aside, path)
    finally:
        _under_way.discard(aside)
        _remove(aside)


def discard_asides() -> None:
    """Remove what this process is writing: for its end at any moment."""
    for aside in list(_under_way):
        with contextlib.suppress(OSError):
            _remove(aside)


def restore(path: Path) -> None:
    """Put back the folder at `path` where a writer was killed between its two renames; remove what it left aside."""
    if not path.parent.is_dir():
        return
    own = [found for found in _asides(path.parent, "old") if found[1]["name"] == path.name[:40]]
    retired = [folder for folder, told in own if not _lives(told)]
    if retired and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # a sister process was first
            os.replace(max(retired, key=lambda folder: folder.stat().st_mtime_ns), path)
    _remove_abandoned(own)
    sweep(path.parent)


@functools.cache
def sweep(folder: Path) -> None:
    """Remove, once in the life of this process, what killed ones left half written in a folder."""
    _remove_abandoned(_asides(folder, "part"))


Aside = tuple[Path, re.Match[str]]


def _asides(folder: Path, suffix: str) -> list[Aside]:
    return [(path, told) for path in folder.glob(f".*.{suffix}") if (told := _NAME.fullmatch(path.name))]


def _remove_abandoned(asides: list[Aside]) -> None:
    """Remove what nobody writes any more; where nobody can tell, what is older than a day."""
    for path, told in asides:
        lives = _lives(told)
        with contextlib.suppress(OSError):
            if lives is False or (lives is None and time.time() - path.stat().st_mtime > LONG_AGO_SECONDS):
                _remove(path)


def _lives(told: re.Match[str]) -> bool | None:
    """Return whether the process that wrote under this name goes on; None where it is of another machine."""
    if told["host"] != _host():
        return None
    import psutil  # which costs too much where nothing was left

    try:
        process = psutil.Process(int(told["pid"]))
        later = process.create_time() - int(told["time"])  # the clock may have been set since
        heir = later > LONG_AGO_SECONDS  # another process, which got the same number
        return not heir and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _beside(path: Path, suffix: str) -> Path:
    """Return a name that tells whose it is: machine, process and time; of `path`'s 40 characters, at most 160 bytes."""
    return path.with_name(f".{path.name[:40]}.{_host()}-{os.getpid()}-{int(time.time())}-{uuid4().hex[:8]}.{suffix}")


@functools.cache
def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _replace_folder(aside: Path, path: Path) -> None:
    retired = _beside(path, "old")
    if path.exists():
        os.replace(path, retired)
    os.replace(aside, path)
    _remove(retired)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def append_line(path: Path, value: Any) -> None:
    """Append one line of JSON, in one write: lines of several processes do not mix.

    It opens with a line break, since the line before it may have been cut off.
    """
    with path.open("ab", buffering=0) as lines:
        lines.write(b"\n" + json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace"))


def read_lines(path: Path) -> Iterator[Any]:
    """Yield what `append_line` wrote; blank lines and such as were cut off are passed over."""
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def printable(name: str) -> str:
    """Return a file's name as text: bytes that are not UTF-8 become escapes."""
    return name.encode(errors="backslashreplace").decode()


def fitting(stem: str) -> str:
    """Return a name without suffix that any file system and any line takes: at most 180 bytes, all of them UTF-8."""
    return UNFIT.sub("_", stem).encode()[:STEM_BYTES].decode(errors="ignore")


def read_text(path: Path) -> str:
    """Read a text file; InputError where it is missing, not UTF-8 or far too large for a piece of a checkpoint."""
    try:
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise InputError(f"{path}: has {size} bytes; expected: at most {LARGEST_TEXT}; copy the folder again")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); copy the folder again") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError where it is none."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_list(path: Path) -> list[Any]:
    """Read a JSON array; InputError where it is none."""
    value = _read_json(path)
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a JSON array, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the folder again") from None


def real_path(path: str | Path) -> str:
    """Return a file's path without `..` or links in its folders, the same however it was named."""
    folder, name = os.path.split(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))
    return os.path.join(_real_folder(folder), name)


@functools.lru_cache(maxsize=4096)  # a corpus has many files in few folders
def _real_folder(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # no name at all: it has a null byte
        return folder
