"""Where long recordings are cut: at pauses, into pieces that fit, silence left out and speech never."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from focusasr.audio import Source, in_blocks, load, to_samples
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.libraries import library

if TYPE_CHECKING:
    import torch

FRAME_SAMPLES = 512  # 32 ms, what silero-vad judges at once
GROUP_FRAMES = 32  # frames judged in one call, 1.024 s; groups lie where they lie however the sound comes in
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES

PADDING_FRAMES = round(0.4 * FRAMES_PER_SECOND)  # kept on both sides of speech: soft beginnings and ends
SILENCE_FRAMES = round(1.0 * FRAMES_PER_SECOND)  # a pause this long ends a piece; beyond the padding it is left out
PAUSE_FRAMES = 3  # about 0.1 s: the shortest pause worth a cut
HEAD_SECONDS = 60.0  # where speech is looked for, if only whether there is any
LEAST_SPEECH_FRAMES = round(0.5 * FRAMES_PER_SECOND)
HYSTERESIS = 0.15  # speech goes on until its probability falls this far below the threshold

LOUD_ENOUGH, MOST_GAIN = 0.02, 32.0  # peak from which silero-vad hears all speech, and 30 dB at most towards it
CONTEXT_SAMPLES = 64  # silero-vad sees these before each frame
CHANNELS = 128  # width of its memory

QUIETEST_DB = -60.0  # the energy detector's floor in silence; full scale is 0
RISE_DB = 1.0 / FRAMES_PER_SECOND  # its floor rises by 1 dB a second
ABOVE_FLOOR_DB = 6.0  # speech stands out by so much

Detector = Callable[[np.ndarray], np.ndarray]  # samples (n * 512,) → which frames are speech (n,), in the order of time


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording: where it starts, exact to the sample, and its samples (N,) float32 at 16 kHz."""

    start_seconds: float
    waveform: np.ndarray


def cut(
    blocks: Iterable[np.ndarray], max_seconds: float = 20.0, vad_threshold: float = 0.5, whole: bool = True
) -> Iterator[Piece]:
    """Yield the pieces of a recording that comes as blocks (n,) float32 at 16 kHz; lazily, in bounded memory.

    A recording of at most `max_seconds` (1 or more) is one piece, if it may stay `whole`; one of 0 samples is none.
    Any other is cut in the middle of pauses into pieces of at most `max_seconds`, at the quietest point where speech
    makes no pause, and silence of a second or more is left out, up to 0.4 s beside speech. Pieces come in order and
    never overlap, and they depend on the samples alone, not on how these are split into blocks. About `max_seconds`
    and one block are held at a time.
    """
    limit_samples = to_samples(max_seconds, SAMPLE_RATE_HZ)
    if limit_samples < SAMPLE_RATE_HZ:
        raise ValueError(f"max_seconds is {max_seconds}; wanted: 1 or more")
    blocks = iter(blocks)
    head, samples = [], 0
    while samples <= limit_samples and (block := next(blocks, None)) is not None:
        head.append(block)
        samples += len(block)
    if samples > limit_samples or (samples and not whole):
        yield from _cut_long(itertools.chain(head, blocks), limit_samples // FRAME_SAMPLES, _detector(vad_threshold))
    elif samples:
        yield Piece(0.0, np.concatenate(head))


def joined(pieces: Iterable[Piece], max_seconds: float) -> Iterator[Piece]:
    """Join neighbors while they fit into `max_seconds`, with silence between them, so that times stay true."""
    limit_samples = to_samples(max_seconds, SAMPLE_RATE_HZ)
    held: Piece | None = None
    for piece in pieces:
        if held is not None:
            gap = to_samples(piece.start_seconds - held.start_seconds, SAMPLE_RATE_HZ) - len(held.waveform)
            if len(held.waveform) + gap + len(piece.waveform) <= limit_samples:
                quiet = np.zeros(gap, np.float32)
                held = replace(held, waveform=np.concatenate([held.waveform, quiet, piece.waveform]))
                continue
            yield held
        held = piece
    if held is not None:
        yield held


def _cut_long(blocks: Iterable[np.ndarray], limit: int, detect: Detector) -> Iterator[Piece]:
    """Hold sound until `_decide` knows the next piece, yield it, forget everything up to its end; `limit` in frames."""
    waveform, speech, origin = np.zeros(0, np.float32), np.zeros(0, bool), 0
    groups = in_blocks(blocks, GROUP_FRAMES * FRAME_SAMPLES)
    ended = False
    while not ended:
        group = next(groups, None)
        ended = group is None
        if group is not None:
            waveform = np.concatenate([waveform, group])
            speech = np.concatenate([speech, detect(_whole_frames(group))])
        while len(speech) and (span := _decide(speech, waveform, limit, ended)):
            if span.stop > span.start:
                at = span.start * FRAME_SAMPLES
                piece = waveform[at : span.stop * FRAME_SAMPLES].copy()
                yield Piece((origin + at) / SAMPLE_RATE_HZ, piece)
            waveform, speech = waveform[span.stop * FRAME_SAMPLES :], speech[span.stop :]
            origin += span.stop * FRAME_SAMPLES


def speech_frames(waveform: np.ndarray, vad_threshold: float = 0.5) -> np.ndarray:
    """Return which frames of 512 samples of a whole recording (N,) at 16 kHz are speech (n,), the last one padded."""
    return _detector(vad_threshold)(_whole_frames(waveform))


def has_speech(source: Source) -> bool:
    """Return whether the first minute of a recording holds half a second of speech; False of what is read only once."""
    if not os.path.isfile(source.path):
        return False
    head = replace(source, duration=min(source.duration or HEAD_SECONDS, HEAD_SECONDS))
    waveform = load(head)
    return len(waveform) > 0 and int(speech_frames(waveform).sum()) >= LEAST_SPEECH_FRAMES


def _whole_frames(waveform: np.ndarray) -> np.ndarray:
    """Pad the end of a recording with zeros to a whole number of frames."""
    return np.pad(waveform, (0, -len(waveform) % FRAME_SAMPLES))


class _Span(NamedTuple):
    """The next piece, in frames; empty where there is only silence to forget."""

    start: int
    stop: int


def _decide(speech: np.ndarray, waveform: np.ndarray, limit: int, ended: bool) -> _Span | None:
    """Return the first piece among the frames held, None where more must be heard first.

    `speech` (n,) tells which frames are; the piece begins a padding before the first of them and ends a padding
    behind the last one before a long silence, or at the best cut within `limit` frames.
    """
    voiced = np.flatnonzero(speech)
    if not len(voiced):
        silent = len(speech) if ended else max(0, len(speech) - PADDING_FRAMES)
        return _Span(silent, silent) if silent else None
    start = max(0, int(voiced[0]) - PADDING_FRAMES)
    following = np.append(voiced[1:], len(speech) + (SILENCE_FRAMES if ended else 0))
    last = voiced[following - voiced > SILENCE_FRAMES]  # of each stretch that a long silence or the end ends
    if len(last) and last[0] < start + limit:
        return _Span(start, min(int(last[0]) + 1 + PADDING_FRAMES, start + limit, len(speech)))
    if len(speech) < start + limit:
        return None
    return _Span(start, start + _best_cut(speech[start : start + limit], waveform[start * FRAME_SAMPLES :]))


def _best_cut(speech: np.ndarray, waveform: np.ndarray) -> int:
    """Return the frame at which to cut a full window (W,): always after at least one frame.

    The middle of the longest pause in the second half, or else in the first; without any pause, the quietest fifth
    of a second in the last third.
    """
    half = len(speech) // 2
    for begin, end in ((half, len(speech)), (0, half)):
        pause_start, pause_frames = _longest_pause(speech[begin:end])
        middle = begin + pause_start + (pause_frames + 1) // 2
        if pause_frames >= PAUSE_FRAMES and speech[:middle].any():
            return middle
    begin = len(speech) * 2 // 3
    frames = _whole_frames(waveform[: len(speech) * FRAME_SAMPLES]).reshape(-1, FRAME_SAMPLES)[begin:]
    loudness = np.convolve(np.square(frames).mean(axis=1), np.ones(5), mode="same")
    return begin + int(np.argmin(loudness[2:-2])) + 2


def _longest_pause(speech: np.ndarray) -> tuple[int, int]:
    """Return where the longest run of frames without speech starts, and its length; the last one where two tie."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], speech, [True]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if not len(starts):
        return 0, 0
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
    return int(starts[longest]), int(lengths[longest])


def _detector(threshold: float) -> Detector:
    """Return silero-vad, ready for a new recording, or the energy detector where it is not installed."""
    if importlib.util.find_spec("silero_vad") is None:
        return EnergyDetector()
    return SileroDetector(threshold)


class SileroDetector:
    """Speech by silero-vad, version 6, with its own weights but many frames in one call.

    The probabilities are those that its packaged model gives frame by frame, several times faster (a test compares
    the two): only the recurrent layer has to go through the frames one after the other.
    """

    def __init__(self, threshold: float) -> None:
        import torch

        self._threshold, self._speaking, self._peak = threshold, False, 0.0
        self._weights = _silero_weights()
        self._recurrent = torch.nn.LSTM(CHANNELS, CHANNELS)
        self._recurrent.load_state_dict(
            {
                f"{kind}_l0": self._weights[f"decoder.rnn.{kind}"]
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        self._state = (torch.zeros(1, CHANNELS), torch.zeros(1, CHANNELS))
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return which frames are speech (n,) for the next samples (n * 512,) of the recording."""
        speech = np.zeros(len(waveform) // FRAME_SAMPLES, bool)
        eased = max(0.01, self._threshold - HYSTERESIS)
        for index, probability in enumerate(self.probabilities(waveform)):
            self._speaking = probability >= (eased if self._speaking else self._threshold)
            speech[index] = self._speaking
        return speech

    def probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """Return the probability of speech in each frame (n,) for the next samples (n * 512,) of the recording.

        A recording whose peak so far is low is heard louder: of very soft speech the model makes nothing.
        """
        import torch
        from torch.nn.functional import conv1d, pad

        from focusasr.device import one_thread

        weights = self._weights
        self._peak = max(self._peak, float(np.abs(waveform).max(initial=0.0)))
        gain = np.float32(np.clip(LOUD_ENOUGH / max(self._peak, 1e-9), 1.0, MOST_GAIN))
        extended = np.concatenate([self._context, waveform * gain])
        self._context = extended[-CONTEXT_SAMPLES:]
        with one_thread(), torch.inference_mode():
            frames = torch.from_numpy(extended).unfold(0, CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES)  # (n, 576)
            waves = conv1d(pad(frames[:, None], (0, 64), "reflect"), weights["stft.forward_basis_buffer"], stride=128)
            hidden = torch.hypot(*waves.chunk(2, dim=1))  # (n, 129, 4)
            for layer, stride in enumerate((1, 2, 2, 1)):
                name = f"encoder.{layer}.reparam_conv"
                hidden = conv1d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1).relu()
            remembered, self._state = self._recurrent(hidden[..., 0], self._state)  # (n, 128)
            last = "decoder.decoder.2"
            scores = conv1d(remembered.relu()[..., None], weights[f"{last}.weight"], weights[f"{last}.bias"])
        return scores.sigmoid().flatten().numpy()


@functools.cache
def _silero_weights() -> dict[str, torch.Tensor]:
    """Return the weights of silero-vad's model for 16 kHz by their names."""
    from focusasr.device import one_thread

    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is silero-vad's choice
        with library("silero_vad"):
            import silero_vad

        return dict(silero_vad.load_silero_vad()._model.state_dict())


class EnergyDetector:
    """Speech by loudness, where silero-vad is not installed: what stands out from a floor that is tracked.

    The floor falls to every quieter frame at once and rises slowly, so that a voice does not become its own floor.
    """

    def __init__(self) -> None:
        self._floor_db = QUIETEST_DB

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return which frames are speech (n,) for the next samples (n * 512,) of the recording."""
        power = waveform.reshape(-1, FRAME_SAMPLES).var(axis=1)  # a constant offset is no sound
        levels_db = 10 * np.log10(power + 1e-12)
        speech = np.zeros(len(levels_db), bool)
        for index, level_db in enumerate(levels_db):
            self._floor_db = max(QUIETEST_DB, min(level_db, self._floor_db + RISE_DB))
            speech[index] = level_db > self._floor_db + ABOVE_FLOOR_DB
        return speech
