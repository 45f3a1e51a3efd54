"""The form of a transcription request: OpenAI's fields, a track and channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import FormData, UploadFile

from focusasr.audio.source import MemoryAudio, Source
from focusasr.cli.server_queue import Refused

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
STREAMED = ("json", "text", "verbose_json")
GRANULARITIES = ("segment", "word")
FIELDS = frozenset(
    "file model language prompt response_format temperature stream chunking_strategy timestamp_granularities "
    "timestamp_granularities[] channel channels audio_track".split()
)  # OpenAI's chunking_strategy has no effect: recordings are always segmented at pauses
ANY_MODEL = ("default", "whisper-1")  # names that clients use for any served model


@dataclass(frozen=True)
class Task:
    """The parsed parameters of one request."""

    source: Source
    response_format: str
    granularities: frozenset[str]
    stream: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> bool:
        """Whether word times are requested."""
        return "word" in self.granularities


def read_task(form: FormData, task: str, model_id: str, longest_seconds: float) -> Task:
    """Return the parameters of a form; Refused, with the field at fault, if one is invalid.

    A recording is read up to a second above `longest_seconds`.
    """
    for name in form:
        if name not in FIELDS:
            raise Refused(422, f"unknown field {name!r:.80}. Known are {', '.join(sorted(FIELDS))}.", str(name)[:80])
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Refused(422, "the field 'file' with the recording is missing.", "file")
    check_model(_text(form, "model"), model_id)
    response_format = _text(form, "response_format") or "json"
    if response_format not in FORMATS:
        raise Refused(422, f"response_format must be one of {', '.join(FORMATS)}.", "response_format")
    stream = _switch(form, "stream")
    if stream and response_format not in STREAMED:
        raise Refused(422, f"stream needs the response_format {' or '.join(STREAMED)}.", "stream")
    asked = {one for name in ("timestamp_granularities", "timestamp_granularities[]") for one in form.getlist(name)}
    if not asked <= set(GRANULARITIES):
        raise Refused(422, f"timestamp_granularities must be {' or '.join(GRANULARITIES)}.", "timestamp_granularities")
    if asked and response_format != "verbose_json":
        raise Refused(422, "timestamp_granularities needs the response_format verbose_json.", "timestamp_granularities")
    options: dict[str, Any] = {"task": task, "temperature": _temperature(form)}
    for name, option in (("language", "language"), ("prompt", "initial_prompt")):
        if given := _text(form, name):
            options[option] = given
    options |= {name: _number(form, name) for name in ("channel", "audio_track") if _text(form, name)}
    if channels := _text(form, "channels"):
        options["channels"] = channels
    # one second above the limit, so that a longer recording shows whatever its header states
    source = Source(
        upload.filename or "audio",
        duration=min(longest_seconds + 1, 1e9),
        memory=MemoryAudio.of(upload.file),
    )
    return Task(source, response_format, frozenset(map(str, asked)) or frozenset(("segment",)), stream, options)


def check_model(asked: str, served: str) -> None:
    if asked and asked not in (served, *ANY_MODEL):
        seen = f"the model {asked[:80]!r} is not served here. Ask for {served!r}."
        raise Refused(404, seen, "model", "model_not_found")


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise Refused(422, f"the field {name!r} must be text, not a file.", name)
    return value.strip()


def _switch(form: FormData, name: str) -> bool:
    value = (_text(form, name) or "false").lower()
    if value not in ("true", "false"):
        raise Refused(422, f"{name} must be true or false.", name)
    return value == "true"


def _number(form: FormData, name: str) -> int:
    try:
        return int(_text(form, name))
    except ValueError:
        raise Refused(422, f"{name} must be a whole number, counted from 0.", name) from None


def _temperature(form: FormData) -> float:
    try:
        value = float(_text(form, "temperature") or 0.0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refused(422, "temperature must be a number from 0 to 1.", "temperature")
    return value
