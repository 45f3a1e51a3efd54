"""Declaration of settings with default and help, their checks, and reading from TOML and JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from focusasr.runtime.errors import InputError, SettingError, nearest, quote

LONGEST_SECONDS = 1e9  # 31 years: a longer offset or duration is an error, and its number of samples overflows
LARGEST = sys.float_info.max  # whole numbers in JSON and TOML may be larger, but not floats


def setting(default: Any, help: str, **bounds: float) -> Any:
    """Declare a setting of a configuration: its default, the help of its option, and its range (ge, gt, le, lt)."""
    return dataclasses.field(default=default, metadata={"help": help, "research": False, "bounds": bounds})


def research(default: Any, help: str, **bounds: float) -> Any:
    """Declare a setting that few people change, at the end of a command's help."""
    return dataclasses.field(default=default, metadata={"help": help, "research": True, "bounds": bounds})


def with_default(kind: type, name: str, default: Any, help: str | None = None) -> Any:
    """Declare a setting like that of a base class, with another default."""
    metadata = next(field.metadata for field in dataclasses.fields(kind) if field.name == name)
    return dataclasses.field(default=default, metadata={**metadata, "help": help or metadata["help"]})


COMPARED = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
BOUND_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Settings:
    """Base of the configuration classes: it checks choices and ranges."""

    def __post_init__(self) -> None:
        """Raise SettingError for a value that is no choice of its type, or outside its range."""
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints_of(type(self))[field.name]
            if typing.get_origin(hint) is Literal:
                choices = typing.get_args(hint)
                require(value in choices, field.name, value, " or ".join(map(repr, choices)))
            bounds = field.metadata.get("bounds", {})
            fits = all(COMPARED[name](value, bound) for name, bound in bounds.items() if value is not None)
            require(fits, field.name, value, _range(bounds, type(None) in typing.get_args(hint)))


def _range(bounds: dict[str, float], may_be_none: bool) -> str:
    named = {name: f"{bound:.15g}" if isinstance(bound, float) else str(bound) for name, bound in bounds.items()}
    both = " and ".join(f"{BOUND_WORDS[name]} {bound}" for name, bound in named.items())
    both = "{ge} to {le}".format(**named) if named.keys() == {"ge", "le"} else both
    return both + ", or none" * may_be_none


def require(fine: bool, name: str, value: Any, wanted: str) -> None:
    """Raise SettingError with name, value and expected values (`wanted`) unless a value is `fine`."""
    if not fine:
        raise SettingError(name, value, wanted)


def require_use(config: Any, name: str, other: str, *values: str) -> None:
    """Raise SettingError if a setting was changed without effect, since another has none of `values`."""
    changed = getattr(config, name) != type(config).__dataclass_fields__[name].default
    of_use = getattr(config, other) in values or not changed
    wanted = f"{other} {' or '.join(values)}, since it does nothing with {quote(getattr(config, other))}"
    require(of_use, name, getattr(config, name), wanted)


def hints_of(kind: type) -> dict[str, Any]:
    """Return the type of each setting of a configuration class."""
    return _hints(kind)


_hints = functools.cache(typing.get_type_hints)  # slow: it evaluates every annotation


Config = TypeVar("Config")


def read_settings(kind: type[Config], settings: dict[str, Any], where: str = "") -> Config:
    """Build a configuration from names and values of the file and table `where`, or else of options.

    InputError, for options SettingError, for unknown names, with the nearest, and invalid values.
    """
    if not isinstance(settings, dict):
        raise InputError(f"{where}: expected a table of settings, got {quote(settings)}")
    hints = hints_of(kind)
    for name in settings:
        if name not in hints:
            near = nearest(name, hints)
            raise InputError(f"{where}: unknown setting {quote(name)}" + (f"; did you mean {near!r}?" if near else ""))
    try:
        return kind(**{name: _fit(value, hints[name], name) for name, value in settings.items()})
    except SettingError as error:
        raise InputError(f"{where}: {error}") if where else error from None


IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    list: "a list in brackets",
    tuple: "a list in brackets",
}


def _fit(value: Any, hint: Any, name: str) -> Any:
    """Return `value` as the type of `hint`; SettingError if it has another."""
    if typing.get_origin(hint) is Literal:
        return value
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(hint)
        require(len(value) == len(kinds), name, value, f"{len(kinds)} values")
        return tuple(_fit(item, kind, name) for item, kind in zip(value, kinds, strict=True))
    if typing.get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [_fit(item, typing.get_args(hint)[0], name) for item in value]
    if hint is float and type(value) in (int, float):
        require(abs(value) <= LARGEST, name, value, "a finite number")
        return float(value)
    if type(value) is hint:
        return value
    raise SettingError(name, value, IN_WORDS[typing.get_origin(hint) or hint])


def to_settings(config: Any) -> dict[str, Any]:
    """Return a configuration's names and values, ready for JSON."""
    return dataclasses.asdict(config)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; InputError if it is missing or malformed."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, ValueError, RecursionError) as error:  # bad bytes, huge numbers or deep nesting
        raise InputError(f"{path}: not a TOML file ({error}); correct it") from None


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is malformed or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many brackets inside one another") from None
