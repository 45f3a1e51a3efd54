"""focusasr: a compact speech recognizer with focused hybrid attention.

`focusasr.load()` returns a recognizer; `focusasr.api` documents the Python interface and is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from focusasr.api import (
        AudioError,
        InputError,
        Recognizer,
        Result,
        Segment,
        SegmentStream,
        UsageError,
        available_models,
        load,
        load_model,
        score,
    )

__version__ = "0.1.0"
__all__ = [
    "AudioError",
    "InputError",
    "Recognizer",
    "Result",
    "Segment",
    "SegmentStream",
    "UsageError",
    "available_models",
    "load",
    "load_model",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'focusasr' has no attribute {name!r}")
    from focusasr import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
