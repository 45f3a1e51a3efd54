"""The command line: one module per command. Results go to stdout, messages to stderr."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer

from focusasr import __version__
from focusasr.cli.adapt import adapt
from focusasr.cli.checkpoints import convert, info, inspect
from focusasr.cli.evaluate import evaluate
from focusasr.cli.listen import listen
from focusasr.cli.options import BOTH_SPELLINGS, WhisperSpelling, misuse
from focusasr.cli.preprocess import preprocess
from focusasr.cli.serve import serve
from focusasr.cli.train import train
from focusasr.cli.transcribe import transcribe
from focusasr.runtime.errors import InputError, SettingError, UsageError
from focusasr.runtime.files import FULL
from focusasr.runtime.libraries import explain
from focusasr.runtime.process import CLOSED_PIPE, INTERRUPTED, debugging, exit_now, open_streams, what_is_safe

app = typer.Typer(context_settings=BOTH_SPELLINGS, pretty_exceptions_enable=False, rich_markup_mode=None)
Misused: Any = typer.BadParameter.__base__  # base of all usage errors; its module differs between Typer versions
COMMANDS = {
    command.__name__: command
    for command in (preprocess, train, adapt, transcribe, listen, serve, evaluate, inspect, info, convert)
}
for command in COMMANDS.values():
    summary = (command.__doc__ or "").partition("\n")[0]
    app.command(cls=WhisperSpelling, context_settings=BOTH_SPELLINGS, short_help=summary)(command)


def program() -> None:
    """Run the command line as the process `focusasr`, then exit without teardown."""
    status: object = 0
    open_streams()
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code or 0
    if not isinstance(status, int):  # a message, as for sys.exit
        print(status, file=sys.stderr)
        status = 1
    exit_now(status)


def main() -> None:
    """Run the command line: status 1 and one line for invalid input, 2 for wrong usage; --debug shows tracebacks."""
    debug = debugging()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow busy machines severely
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")  # else plans take 100 MB per hour
    try:
        status = app(args=arguments, prog_name="focusasr", standalone_mode=False) or 0
        if status == INTERRUPTED:  # Typer's status after Ctrl-C
            fail(what_is_safe(), INTERRUPTED)
        sys.exit(status)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # `| head` has ended; Typer's status is 1
            sys.exit(CLOSED_PIPE)
        raise
    except Misused as error:
        fail(refused(error, arguments), 2)
    except Exception as error:
        if debug:
            raise
        fail(failure(error), 2 if isinstance(error, UsageError) else 1)


def refused(error: Any, arguments: list[str]) -> str:
    """Return one line on what the options reject, with the command whose --help explains it."""
    if arguments[0] not in COMMANDS and os.path.exists(arguments[0]):  # called like whisper, without a command
        return f"{arguments[0]} is no command; did you mean focusasr transcribe {shlex.join(arguments)}?"
    message = misuse(error)
    if "; expected: " in message:
        return message
    see = " See" if message.endswith("?") else "; see"
    command = f"focusasr {arguments[0]}" if arguments[0] in COMMANDS else "focusasr"
    return f"{message}{see} {command} --help"


def failure(error: Exception) -> str:
    """Return one line on invalid input, on a lack of disk space, permission, memory or a library, or on our fault."""
    if isinstance(error, InputError):
        return error.typed if isinstance(error, SettingError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        if isinstance(error, PermissionError):
            return f"{where}no permission ({error.strerror}); change its rights, or choose another place"
        room = "make room, then " if error.errno in FULL else ""
        return f"{where}{error.strerror}; {room}the same command can be repeated: what was written before is whole"
    if isinstance(error, MemoryError):
        return "the memory is full; free some, or lower --batch-size"
    if isinstance(error, (OSError, ImportError)):
        return str(explain(error) or error)
    return f"internal error: {type(error).__name__}: {error}; --debug shows where"


def fail(message: str, status: int) -> None:
    """Print one line to stderr and exit with a status."""
    print("focusasr: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error (allowed anywhere)")] = False,
) -> None:
    """A compact speech recognizer with focused hybrid attention, to own end to end."""
    if version:
        print(f"focusasr {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
