"""Batches of pieces: times stay true, no text depends on its neighbors, silence gives none."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from focusasr.audio.mel_stream import HOP_SAMPLES
from focusasr.audio.segmentation import AudioSegment, merge_segments
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.decoding.whisper_prompts import DecodingResult
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.transformer import EncoderOutput
from focusasr.runtime.errors import InputError
from focusasr.training.adapter import set_config
from focusasr.transcription.result import Segment, Transcript
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.whisper_pairs import chirps, ours, peer_model


@cache
def checkpoint() -> Checkpoint:
    return ours(peer_model(3))


@pytest.fixture(autouse=True)
def loudness_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every loud frame for speech: the detector knows that chirps are none."""
    monkeypatch.setattr(
        "focusasr.audio.segmentation.detector",
        lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05,
    )


def recognize(source: Source, longform: LongformConfig | None = None, **settings: object) -> Transcript:
    config = DecodingConfig(**settings)  # type: ignore[arg-type]
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    recognizer = BatchedWhisperRecognizer(
        checkpoint(), torch.device("cpu"), config, search, longform or LongformConfig()
    )
    (outcome,) = recognizer.transcribe([source])
    assert outcome.error is None and outcome.transcript is not None
    return outcome.transcript


def test_pieces_keep_their_times_and_their_text_in_any_batch() -> None:
    silence = np.zeros(12 * SAMPLE_RATE_HZ, np.float32)
    parts = [chirps(9.0, seed).numpy() for seed in range(3)]
    soundfile.write("talk.wav", np.concatenate([silence, *(x for part in parts for x in (part, silence))]), 16_000)
    together = recognize(Source("talk.wav"), batch_size=3)
    assert together.segments and together.text == "".join(segment.text for segment in together.segments)
    assert [segment.id for segment in together.segments] == list(range(len(together.segments)))
    spoken = {round(segment.start // 21) for segment in together.segments}
    assert len(spoken) > 1
    for segment in together.segments:
        assert 11.5 <= segment.start < segment.end <= 74
    timed = recognize(Source("talk.wav"), word_timestamps=True).segments
    assert [segment.text for segment in timed] == [segment.text for segment in together.segments]
    words = [word for segment in timed for word in segment.words or []]
    assert "".join(word["word"] for word in words).replace("\ufffd", "") == together.text.replace("\ufffd", "")
    assert all(11.5 <= word["start"] <= word["end"] <= 75 for word in words)
    alone = recognize(Source("talk.wav"), batch_size=1)
    assert [(s.start, s.end, s.text, s.tokens) for s in alone.segments] == [
        (s.start, s.end, s.text, s.tokens) for s in together.segments
    ]


def test_the_first_piece_starts_with_the_prefix() -> None:
    parts = [part for seed in range(2) for part in (chirps(9.0, seed).numpy(), np.zeros(25 * SAMPLE_RATE_HZ))]
    soundfile.write("talk.wav", np.concatenate(parts), 16_000)
    found = recognize(Source("talk.wav"), LongformConfig(prefix="Well then"), batch_size=2)
    assert found.segments[0].start < 9 and found.segments[-1].start > 30
    assert found.text.startswith(" Well then") and found.text.count(" Well then") == 1


def test_what_follows_the_last_pair_of_times_is_read_again_or_kept() -> None:
    """From a second on it is a piece of its own, as the long form reads on from there; else its text is a segment."""
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    longform = LongformConfig(language="en")
    recognizer = BatchedWhisperRecognizer(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
    reader = recognizer._reader(lambda: None)  # type: ignore[arg-type,return-value]
    tokenizer = reader.tokenizer
    wave = chirps(10.0).numpy()

    def found(*written: str | float) -> tuple[list[tuple[float, float, str]], AudioSegment | None]:
        """Return the segments of a piece at 100 s for a text with times in it."""
        tokens: list[int] = []
        for part in written:
            text = isinstance(part, str)
            tokens += tokenizer.encode_exactly(part) if text else [tokenizer.timestamp_begin + round(50 * part)]
        segments, again = recognizer._segments(
            reader, AudioSegment(100.0, wave), DecodingResult(tokens, "", 0.0, 0.0, 1.0, 0.0)
        )
        return [(round(one.start, 2), round(one.end, 2), one.text) for one in segments], again

    assert found(0.0, " the cat", 9.5) == ([(100.0, 109.5, " the cat")], None)
    assert found(0.0, " the cat") == ([(100.0, 110.0, " the cat")], None)
    for rest in ((2.0,), (2.0, " hat"), (2.2, " hat")):
        segments, again = found(0.0, " the cat", 2.0, *rest)
        assert segments == [(100.0, 102.0, " the cat")] and again is not None
        assert again.start_seconds == 102.0 and np.array_equal(again.waveform, wave[2 * SAMPLE_RATE_HZ :])
    assert found(0.0, " the cat", 9.2, 9.4, " hat") == ([(100.0, 109.2, " the cat"), (109.4, 110.0, " hat")], None)
    assert found(0.0, " the cat", 9.2, 9.2) == ([(100.0, 109.2, " the cat")], None)


def test_a_piece_that_is_read_again_gives_all_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hears two seconds at a time is asked until the piece is through, each piece for itself."""
    for name, seconds in (("a", 9.0), ("b", 5.0)):
        soundfile.write(f"{name}.wav", chirps(seconds).numpy(), SAMPLE_RATE_HZ)
    lengths: list[list[float]] = []

    def answers(
        self: WhisperDecoder, memory: EncoderOutput, prompts: list[list[int]], *_: object
    ) -> list[DecodingResult]:
        begin, tokenizer = self.tokenizer.timestamp_begin, self.tokenizer
        told = [begin, *tokenizer.encode_exactly(" word"), begin + 100, begin + 100]
        return [DecodingResult(told, "word", 0.0, 0.0, 1.0, 0.0)] * len(prompts)

    honest = BatchedWhisperRecognizer._decoded

    def decoded(
        self: BatchedWhisperRecognizer, reader: WhisperDecoder, pieces: list[AudioSegment], *rest: object
    ) -> list[list[Segment]]:
        lengths.append([len(piece.waveform) / SAMPLE_RATE_HZ for piece in pieces])
        return honest(self, reader, pieces, *rest)

    monkeypatch.setattr(WhisperDecoder, "answers", answers)
    monkeypatch.setattr(BatchedWhisperRecognizer, "_decoded", decoded)
    monkeypatch.setattr(WhisperRecognizer, "_reader", lambda self, first: WhisperDecoder(
        self.engine, self.tokenizer.speaking("en"), self.search, self.longform
    ))  # fmt: skip
    transcript = recognize(Source("a.wav"))
    assert [(round(s.start, 2), round(s.end, 2), s.text) for s in transcript.segments] == [
        (2.0 * n, 2.0 * n + 2, " word") for n in range(4)
    ] + [(8.0, 9.0, " word")]
    assert lengths == [[9.0], [7.0], [5.0], [3.0], [1.0]]


def test_silence_gives_no_text() -> None:
    soundfile.write("silence.wav", np.zeros(50 * SAMPLE_RATE_HZ), 16_000)
    assert recognize(Source("silence.wav")) == Transcript("", [], None)
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    longform = LongformConfig(hotwords="Zyxwel")
    recognizer = WhisperRecognizer(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
    (outcome,) = recognizer.transcribe([Source("silence.wav")])
    assert (outcome.transcript, outcome.audio_seconds) == (Transcript("", [], None), 50.0)


def test_neighbors_join_while_they_fit() -> None:
    second = np.ones(SAMPLE_RATE_HZ, np.float32)
    pieces = [AudioSegment(start, second) for start in (1.0, 4.0, 9.5, 30.0)]
    first, last = merge_segments(pieces, 10.0)
    assert (first.start_seconds, len(first.waveform)) == (1.0, round(9.5 * SAMPLE_RATE_HZ))
    assert (last.start_seconds, len(last.waveform)) == (30.0, SAMPLE_RATE_HZ)
    assert first.waveform.sum() == 3 * SAMPLE_RATE_HZ
    assert first.waveform[3 * SAMPLE_RATE_HZ] == 1.0 and first.waveform[3 * SAMPLE_RATE_HZ - 1] == 0.0


@pytest.mark.parametrize("kind", [BatchedWhisperRecognizer, WhisperRecognizer])
@pytest.mark.parametrize("vad_filter", [False, True])
def test_a_recording_that_is_cut_off_is_read_up_to_there(kind: type[WhisperRecognizer], vad_filter: bool) -> None:
    for name, seconds in (("whole", 20.0), ("nine", 9.0)):
        soundfile.write(f"{name}.wav", chirps(20.0).numpy()[: round(seconds * SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ)
    Path("cut.wav").write_bytes(Path("whole.wav").read_bytes()[: Path("nine.wav").stat().st_size])
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    longform = LongformConfig(vad_filter=vad_filter)
    recognizer = kind(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
    cut, nine = recognizer.transcribe([Source("cut.wav"), Source("nine.wav")])
    assert cut.transcript and cut.transcript.text and cut.transcript == nine.transcript
    assert (cut.audio_seconds, nine.error) == (9.0, None)
    assert cut.error is not None and cut.error.startswith("cut.wav: ") and "9.0 s" in cut.error
    assert "CutOff" in cut.trace and not nine.trace


@pytest.mark.parametrize("kind", [BatchedWhisperRecognizer, WhisperRecognizer])
def test_clips_go_before_the_pause_finder(kind: type[WhisperRecognizer]) -> None:
    soundfile.write("talk.wav", np.concatenate([chirps(9.0, 0).numpy(), chirps(9.0, 1).numpy()]), SAMPLE_RATE_HZ)
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    texts = []
    for vad_filter, asked in ((False, "9,12"), (True, "9,12"), (True, "0")):
        longform = LongformConfig(vad_filter=vad_filter, clip_timestamps=asked, language="en")
        recognizer = kind(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
        (outcome,) = recognizer.transcribe([Source("talk.wav")])
        assert outcome.transcript
        texts.append(outcome.transcript.text)
        if asked != "0":
            assert all(8.9 < segment.start <= segment.end <= 12 for segment in outcome.transcript.segments)
    assert "" != texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kind", [BatchedWhisperRecognizer, WhisperRecognizer])
def test_each_window_has_the_language_that_is_detected_in_it(
    kind: type[WhisperRecognizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part for seed in range(3) for part in (chirps(9.0, seed).numpy(), np.zeros(25 * SAMPLE_RATE_HZ))]
    soundfile.write("talk.wav", np.concatenate(parts), SAMPLE_RATE_HZ)
    spoken, prompts = iter(["de", "fr", "es", "it"]), list[Sequence[int]]()
    honest = WhisperDecoder.answers

    def noted(
        reader: WhisperDecoder, memory: EncoderOutput, given: Any, *rest: Any, **more: Any
    ) -> list[DecodingResult]:
        prompts.extend(given)
        return [one._replace(no_speech_prob=0.0) for one in honest(reader, memory, given, *rest, **more)]

    monkeypatch.setattr(WhisperDecoder, "answers", noted)
    monkeypatch.setattr(WhisperDecoder, "languages", lambda self, memory: [next(spoken) for _ in memory.states])
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    longform = LongformConfig(multilingual=True, without_timestamps=True)
    recognizer = kind(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
    (outcome,) = recognizer.transcribe([Source("talk.wav")])
    assert outcome.transcript is not None and outcome.transcript.language == "de"
    tokenizer = recognizer.tokenizer
    wanted = [[*tokenizer.speaking(one).sot_sequence, tokenizer.no_timestamps] for one in ("fr", "es", "it")]
    assert prompts == wanted


@pytest.mark.parametrize("limit", [None, 5.0])
def test_the_longest_segment_of_a_batch_is_chosen(limit: float | None) -> None:
    soundfile.write("talk.wav", chirps(40.0).numpy(), SAMPLE_RATE_HZ)
    config, longform = DecodingConfig(max_segment_seconds=limit), LongformConfig(language="en")
    recognizer = BatchedWhisperRecognizer(checkpoint(), torch.device("cpu"), config, SearchConfig(), longform)
    lengths = [len(piece.waveform) / SAMPLE_RATE_HZ for piece in recognizer._pieces(Source("talk.wav"), print, [0])]
    assert (limit or 30.0) / 2 < max(lengths) <= (limit or 30.0)


def test_clips_of_a_batch_are_read_one_by_one_and_refused_behind_the_end() -> None:
    soundfile.write("talk.wav", np.concatenate([chirps(9.0, seed).numpy() for seed in range(3)]), SAMPLE_RATE_HZ)
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)

    def segments(asked: str) -> list[tuple[float, float, str]]:
        longform = LongformConfig(clip_timestamps=asked, language="en")
        recognizer = BatchedWhisperRecognizer(checkpoint(), torch.device("cpu"), DecodingConfig(), search, longform)
        (outcome,) = recognizer.transcribe([Source("talk.wav")])
        if outcome.error:
            raise InputError(outcome.error)
        assert outcome.transcript
        return [(one.start, one.end, one.text) for one in outcome.transcript.segments]

    both = segments("2,6,20")
    assert both == segments("2,6") + segments("20") and segments("2,6") and segments("20")
    with pytest.raises(InputError, match=r"talk\.wav: --clip-timestamps 90,95 .*27\.00 s"):
        segments("90,95")


def test_a_recording_of_one_frame_has_no_negative_times() -> None:
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    recognizer = WhisperRecognizer(
        checkpoint(), torch.device("cpu"), DecodingConfig(word_timestamps=True), search, LongformConfig()
    )
    times = []
    for seed in range(4):
        soundfile.write("frame.wav", hiss(200, seed), SAMPLE_RATE_HZ)
        (outcome,) = recognizer.transcribe([Source("frame.wav")])
        times += [segment.start for segment in outcome.transcript.segments] if outcome.transcript else []
    assert times and min(times) >= 0


def hiss(samples: int, seed: int) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).standard_normal(samples)


@pytest.mark.parametrize("kind", [BatchedWhisperRecognizer, WhisperRecognizer])
def test_models_with_a_tail_read_no_more_than_the_recording(
    kind: type[WhisperRecognizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to find the language nor for a text."""
    soundfile.write("talk.wav", chirps(5.0).numpy(), SAMPLE_RATE_HZ)
    model = copy.deepcopy(checkpoint())
    set_config(model.model, replace(model.model.config, tail_frames=48))
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    recognizer = kind(model, torch.device("cpu"), DecodingConfig(), search, LongformConfig())
    read: list[int] = []
    usual = recognizer.engine.encode

    def encode(mels: list[torch.Tensor]) -> EncoderOutput:
        read.extend(len(mel) for mel in mels)
        return usual(mels)

    monkeypatch.setattr(recognizer.engine, "encode", encode)
    for seconds in (0.5, 3.0):
        read.clear()
        (outcome,) = recognizer.transcribe([Source("talk.wav", offset=1.0, duration=seconds)])
        assert outcome.error is None
        config, frames = model.model.config, round(100 * seconds)
        most = config.input_frames(max(frames, config.shortest_samples // HOP_SAMPLES))
        assert len(read) >= 2 and max(read) <= most < 400
