"""Command-line options, made from the fields of the configuration classes."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import shlex
import typing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from focusasr.config import HIGHEST_RATE_HZ, LOWEST_RATE_HZ
from focusasr.runtime.errors import UsageError, as_option, nearest
from focusasr.runtime.settings import IN_WORDS, hints_of
from focusasr.transcription.recognizer import ModelChoice

BOTH_SPELLINGS = {"token_normalize_func": lambda token: token.replace("_", "-"), "help_option_names": ["-h", "--help"]}

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="checkpoint folder or file (focusasr, transformers, faster-whisper, OpenAI's .pt, whisper.cpp), "
        "name such as tiny.en or turbo, or name on the hub such as openai/whisper-tiny.en "
        "(default: the bundled model)",
    ),
]
LocalFilesOption = Annotated[
    bool, typer.Option("--local-files-only", help="hub models from the cache only, without network")
]
ModelDirOption = Annotated[
    Path | None, typer.Option("--model-dir", help="folder of models from the hub, or of OpenAI's NAME.pt files")
]
DeviceOption = Annotated[str, typer.Option(help="device: auto (CUDA, then MPS, then CPU), cuda, cuda:N, mps or cpu")]


LONGEST_NAME = 26  # characters of an option with its help on the same line
LONGEST_CHOICES = 50  # characters of choices after the option's name; longer lists are part of its help
RESEARCH = "Settings for research"  # the last group of a command's help
NONE = "none"  # typed for a setting without a value, and kept until it is parsed


def number(
    kind: type, may_be_none: bool = False, least: float = -math.inf, most: float = math.inf
) -> Callable[[Any], Any]:
    """Return a parser of numbers from `least` to `most`; with `may_be_none` also of "none", returned as NONE."""
    bounds = [f"at {name} {bound}" for name, bound in (("least", least), ("most", most)) if math.isfinite(bound)]
    wanted = ", ".join([IN_WORDS[kind], *bounds]) + (" or none" if may_be_none else "")

    def read(text: Any) -> Any:
        if may_be_none and str(text).strip().lower() == NONE:
            return NONE
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most or math.isnan(value):  # NaN is rejected with its setting
                return value
        raise typer.BadParameter(f"{shlex.quote(str(text))}; expected: {wanted}")

    return read


RATE = number(int, least=LOWEST_RATE_HZ, most=HIGHEST_RATE_HZ)  # parser of sampling rates
MOST_THREADS = 1024  # PyTorch would also start 100,000 and stall the machine
ThreadsOption = Annotated[
    int,
    typer.Option(
        help="CPU threads (0: all cores)",
        parser=number(int, least=0, most=MOST_THREADS),
        metavar="<int>",
    ),
]


CHOICE: dict[str, tuple[Any, Any]] = {  # fields of ModelChoice: their options and defaults
    "model": (ModelOption, None),
    "device": (DeviceOption, "auto"),
    "threads": (ThreadsOption, 0),
    "local_files_only": (LocalFilesOption, False),
    "model_dir": (ModelDirOption, None),
}


def misuse(error: Any) -> str:
    """Return one line on a usage error: the option as typed, and what is expected."""
    flag = next((name for name in reversed(getattr(getattr(error, "param", None), "opts", ())) if name[:2] == "--"), "")
    reason = error.message.removeprefix("Value error, ").rstrip(".")  # pydantic's prefix
    if flag and "; expected: " in reason:
        return f"{flag} {reason}"
    if flag and (choice := re.fullmatch(r"'(.*)' is not one of (.+)", reason, re.S)):
        return f"{flag} {shlex.quote(choice[1])}; expected: {choice[2].replace(chr(39), '')}"
    message = str(error.format_message()).rstrip(".")
    if flag and "valid integer" in reason:
        return f"{flag}; expected: {getattr(error.param, 'nargs', 1)} whole numbers after it"
    if lacking := re.fullmatch(r"Option '(\S+)' requires an argument", message):
        return f"{lacking[1]}: a value is missing"
    if unknown := getattr(error, "option_name", "") * hasattr(error, "possibilities"):
        known = [name for one in error.ctx.command.params for name in one.opts] if error.ctx else []
        near = near_option(unknown, known)
        return f"no such option: {unknown}" + (f"; did you mean {near}?" if near else "")
    return message[:1].lower() + message[1:]


def near_option(unknown: str, known: Sequence[str]) -> str | None:
    """Return the first option that starts with an unknown one, or the nearest by its name without dashes."""
    begun = (name for name in known if len(unknown) > len("--x") and name.startswith(unknown))
    names = {name.lstrip("-"): name for name in known if name.startswith("--")}
    return next(begun, None) or names.get(nearest(unknown.lstrip("-"), names) or "")


class WhisperSpelling(TyperCommand):
    """A command whose switches may be followed by True or False, as in Whisper: --word_timestamps True.

    Its help has a section for each group of settings.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one list per group; a name too long for its column has its own line."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            usual = parameter.param_type_name.capitalize() + "s"
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=LONGEST_NAME)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace switches followed by True or False by this command's switches before parsing."""
        switches = {
            name: (parameter.opts[0], next(iter(parameter.secondary_opts), None))
            for parameter in self.params
            if getattr(parameter, "is_flag", False) and not parameter.is_eager
            for name in parameter.opts
        }
        return super().parse_args(ctx, list(_switched(args, switches)))


def _switched(args: list[str], switches: dict[str, tuple[str, str | None]]) -> Iterator[str]:
    """Yield the arguments with --name True as --name, and --name False as --no-name or nothing."""
    waiting = deque(args)
    while waiting:
        argument = waiting.popleft()
        name, _, word = argument.partition("=")
        pair = switches.get(name.replace("_", "-")) if name.startswith("--") else None
        if argument == "--":
            yield from (argument, *waiting)
            return
        if pair is None:
            yield argument
            continue
        if not word and waiting and waiting[0].lower() in ("true", "false"):
            word = waiting.popleft()
        if word and word.lower() not in ("true", "false"):
            raise UsageError(f"{as_option(name[2:], word)}; expected: True or False, or nothing after it")
        if switch := pair[word.lower() == "false"]:
            yield switch


def with_settings(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per setting of the configuration classes.

    The command must have a parameter `given`: a dictionary from each class to the settings that the user gave. A
    parameter `choice` is a ModelChoice, with its five options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in ("given", "choice")
        ]
        chosen = CHOICE if "choice" in hints else {}
        own += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
            for name, (option, default) in chosen.items()
        ]
        options = [(kind, field) for kind in kinds for field in dataclasses.fields(kind) if field.metadata]
        options.sort(key=lambda option: option[1].metadata["research"])

        def run(**arguments: Any) -> None:
            given: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
            for kind, field in options:
                if (value := arguments.pop(field.name)) is not None:
                    given[kind][field.name] = None if value == NONE and _may_be_none(kind, field.name) else value
            if chosen:
                arguments["choice"] = ModelChoice(**{name: arguments.pop(name) for name in chosen})
            command(**arguments, given=given)

        parameters = own + [_option(kind, field) for kind, field in options]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(kind: type, field: dataclasses.Field[Any]) -> inspect.Parameter:
    """Return the option for a setting."""
    hint, name = hints_of(kind)[field.name], field.name
    help = _with_options(field.metadata["help"])
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if long := len("|".join(choices)) > LONGEST_CHOICES:
        help += f": {', '.join(choices)}"
    of_numbers = next((one for one in (int, float) if hint in (one, one | None)), None)
    may_be_none = _may_be_none(kind, name)
    home = next(one for one in kind.__mro__ if name in inspect.get_annotations(one))
    panel = getattr(home, "title", kind.__name__.removesuffix("Config") + " settings")
    option = typer.Option(
        help=f"{help} (default {_shown(field.default)})",
        rich_help_panel=RESEARCH if field.metadata["research"] else panel,
        show_default=False,
        parser=of_numbers and number(of_numbers, may_be_none),
        metavar=f"<{name}>" if long else of_numbers and f"<{of_numbers.__name__}{'|none' * may_be_none}>",
    )
    annotation: Any = Annotated[hint | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _may_be_none(kind: type, name: str) -> bool:
    return type(None) in typing.get_args(hints_of(kind)[name])


def _with_options(help: str) -> str:
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda found: as_option(found[0]), help)


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "none", True: "on", False: "off"}[default]
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
