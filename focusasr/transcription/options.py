"""Options of a transcription, sorted into their configurations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from focusasr.audio.source import Source
from focusasr.config import DecodingConfig, RecordingConfig
from focusasr.runtime.errors import UsageError, as_option, nearest, quote
from focusasr.runtime.settings import read_settings
from focusasr.whisper_config import LongformConfig, OutputConfig, SearchConfig

KINDS: tuple[type[Any], ...] = (DecodingConfig, SearchConfig, LongformConfig, OutputConfig, RecordingConfig)
NEED_WORDS = ("highlight_words", "max_line_width", "max_line_count", "max_words_per_line")

Given = dict[type, dict[str, Any]]  # configuration class → its explicitly given settings


@dataclass(frozen=True)
class Options:
    """The settings of decoding, search, long recordings, output files, and the track and channel to read."""

    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    longform: LongformConfig = field(default_factory=LongformConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    names: frozenset[str] = frozenset()  # explicitly given settings

    @classmethod
    def read(cls, given: Given) -> Options:
        """Build the configurations from given settings; UsageError if they conflict."""
        names = frozenset(name for settings in given.values() for name in settings)
        options = replace(cls(*(read_settings(kind, given.get(kind, {})) for kind in KINDS)), names=names)
        for name in NEED_WORDS:
            if getattr(options.output, name) and not options.decoding.word_timestamps:
                raise UsageError(f"{as_option(name)} needs --word-timestamps")
        return options

    def decided(self) -> dict[str, Any]:
        """Return all settings by name."""
        parts = (self.decoding, self.search, self.longform, self.output, self.recording)
        return {name: value for part in parts for name, value in asdict(part).items()}

    def chosen(self, source: Source) -> Source:
        """Return a source with the selected track and channel, or with its own if none is selected."""
        track, channel = self.recording.audio_track, self.recording.channel
        return replace(
            source,
            track=source.track if track is None else track,
            channel=source.channel if channel is None else channel,
        )


def sort_options(options: dict[str, Any]) -> Given:
    """Sort options by the configuration that has such a field; UsageError, with the nearest name, for an unknown one.

    Whisper's `fp16` is accepted: False means `compute_type="float32"`.
    """
    options = dict(options)
    if not options.pop("fp16", True):
        options.setdefault("compute_type", "float32")
    homes = {one.name: kind for kind in KINDS for one in fields(kind)}
    given: Given = {kind: {} for kind in KINDS}
    for name, value in options.items():
        if name not in homes:
            near = nearest(name, homes)
            hint = f" Did you mean {near!r}?" if near else " See 'focusasr transcribe --help' for all names."
            raise UsageError(f"unknown option {quote(name)}.{hint}")
        given[homes[name]][name] = value
    return given
