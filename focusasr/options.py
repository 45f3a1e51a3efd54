"""Command-line options made from the configurations, so that every default and every help text stands once."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

BOTH_SPELLINGS = {"token_normalize_func": lambda token: token.replace("_", "-"), "help_option_names": ["-h", "--help"]}

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="checkpoint folder, OpenAI's .pt, or a name on the hub such as openai/whisper-tiny.en; "
        "without it the default model that comes along",
    ),
]
LocalFilesOption = Annotated[
    bool, typer.Option("--local-files-only", help="take a model named on the hub from the cache, never the network")
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA, then MPS, then CPU), cuda, cuda:N, mps or cpu")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to PyTorch", min=0)]


def with_settings(*kinds: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per setting of the configuration classes.

    The command must have a parameter `given`: a dictionary from each class to the settings that the user gave.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "given"
        ]
        settings = {
            kind: [_option(kind, field) for field in dataclasses.fields(kind) if field.metadata] for kind in kinds
        }

        def run(**arguments: Any) -> None:
            given = {
                kind: {option.name: arguments.pop(option.name) for option in options}
                for kind, options in settings.items()
            }
            present = {
                kind: {name: value for name, value in values.items() if value is not None}
                for kind, values in given.items()
            }
            command(**arguments, given=present)

        parameters = own + [option for options in settings.values() for option in options]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _option(kind: type, field: dataclasses.Field) -> inspect.Parameter:
    hint = typing.get_type_hints(kind)[field.name]
    shown = (
        "none"
        if field.default is None
        else " ".join(map(str, field.default))
        if isinstance(field.default, tuple)
        else field.default
    )
    panel = kind.__name__.removesuffix("Config") + " settings"
    option = typer.Option(help=f"{field.metadata['help']} (default {shown})", rich_help_panel=panel, show_default=False)
    annotation: Any = Annotated[hint | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
