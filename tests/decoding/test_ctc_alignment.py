"""Word times: the best CTC path against a slow twin, edges by loudness, and joined clips whose joints are known."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from focusasr.audio.features import log_mel
from focusasr.audio.load import load
from focusasr.audio.segmentation import AudioSegment
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig, TextConfig
from focusasr.data.manifest import read_manifest
from focusasr.decoding.ctc_alignment import Word, align, loudness_db, word_times
from focusasr.decoding.ctc_attention import Hypothesis, decode
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.engine import Engine
from focusasr.runtime.errors import InputError
from focusasr.text.tokenizer import Tokenizer, train_tokenizer
from focusasr.transcription.native import Recognizer
from focusasr.transcription.writers import render_srt
from tests.helpers.toy_speech import LETTER_SECONDS, letters_tokenizer, mels, sung, tiny_model

TOKENIZER = letters_tokenizer()
CLOSE_SECONDS = 0.08


def timed_recognizer(**settings: object) -> Recognizer:
    config = DecodingConfig(word_timestamps=True, **settings)  # type: ignore[arg-type]
    return Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), config)


# The best path


def slow_align(log_probs: Tensor, tokens: list[int], blank: int) -> float:
    """Return the log probability of the best of all paths that collapse to `tokens`."""
    best = -np.inf
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        merged = [one for one, _ in itertools.groupby(path)]
        if [one for one in merged if one != blank] == tokens:
            best = max(best, float(sum(log_probs[step, one] for step, one in enumerate(path))))
    return best


@pytest.mark.parametrize("tokens", [[1], [2, 1], [1, 1], [3, 2, 1], [2, 2, 3]], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_align_finds_the_best_of_all_paths(tokens: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    log_probs = (3 * torch.randn(6, 4)).log_softmax(dim=-1)
    spans = align(log_probs, tokens, blank=0)
    assert spans is not None and len(spans) == len(tokens)
    path = [0] * 6
    for token, span in zip(tokens, spans, strict=True):
        assert set(path[span.start : span.end]) == {0}, "spans overlap"
        path[span.start : span.end] = [token] * (span.end - span.start)
        said = log_probs[span.start : span.end, token].exp().mean()
        assert span.probability == pytest.approx(float(said), abs=1e-5)
    score = float(sum(log_probs[step, one] for step, one in enumerate(path)))
    assert score == pytest.approx(slow_align(log_probs, tokens, 0), abs=1e-4)


@pytest.mark.parametrize(("tokens", "steps"), [([1, 2, 3], 2), ([1, 1], 2), ([], 3), ([0, 1], 3)], ids=str)
def test_no_path_for_too_many_tokens_or_blanks(tokens: list[int], steps: int) -> None:
    assert align(torch.zeros(steps, 4).log_softmax(dim=-1), tokens, blank=0) is None


# Edges


def spikes(text: str, tokenizer: Tokenizer) -> Tensor:
    """Return log probs (T, V), a step of 40 ms, that say each letter of `sung(text)` in its middle and else blank."""
    letter_steps = round(LETTER_SECONDS / 0.04)
    logits = torch.full((len(text) * letter_steps, tokenizer.size), -20.0)
    logits[:, tokenizer.blank] = 0.0
    for index, char in enumerate(text):
        token = tokenizer.encode(char) or tokenizer.separator
        logits[index * letter_steps + letter_steps // 2, token] = 2.0
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("noise", [0.0, 0.003])
@pytest.mark.parametrize("text", ["abc  de f   gh", "  abc  de f   gh ", "a"])
def test_words_last_as_long_as_their_sound(text: str, noise: float) -> None:
    sound = sung(text) + noise * np.random.default_rng(0).standard_normal(len(sung(text)))
    mel = log_mel(torch.from_numpy(sound.astype(np.float32)))
    words = word_times(spikes(text, TOKENIZER), mel, TOKENIZER.encode(text), TOKENIZER, 0.04)
    assert [word.text for word in words] == text.split()
    for word in words:
        first = text.index(word.text)
        assert word.start == pytest.approx(first * LETTER_SECONDS, abs=0.03)
        assert word.end == pytest.approx((first + len(word.text)) * LETTER_SECONDS - 0.02, abs=0.03)
        assert word.probability > 0.8


def test_words_that_touch_are_parted_at_the_quietest_point() -> None:
    """Two words in one loud sound with a dip of 20 ms between: one boundary, in the dip."""
    log_probs = spikes("ab cd", TOKENIZER)
    sound = np.concatenate([sung("ab"), sung("cd")])
    stretched = np.interp(np.linspace(0, len(sound), 5 * len(sound) // 4), np.arange(len(sound)), sound)
    mel = log_mel(torch.from_numpy(stretched.astype(np.float32)))
    first, second = word_times(log_probs, mel, TOKENIZER.encode("ab cd"), TOKENIZER, 0.04)
    assert first.end == second.start == pytest.approx(2 * LETTER_SECONDS * 5 / 4, abs=0.04)


def test_words_of_bpe_and_of_silence_and_of_too_little_sound() -> None:
    tokenizer = train_tokenizer(["the cat the hat that chat"], TextConfig(tokens="bpe", vocabulary_size=14))
    text = "the hat that cat"
    tokens = tokenizer.encode(text)
    assert len(text.split()) < len(tokens) < len(text)
    torch.manual_seed(0)
    log_probs = torch.randn(40, tokenizer.size).log_softmax(dim=-1)
    for mel in (torch.randn(160, 80), torch.full((160, 80), -1.5)):
        words = word_times(log_probs, mel, tokens, tokenizer, 0.04)
        times = [time for word in words for time in (word.start, word.end)]
        assert [word.text for word in words] == text.split()
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= 1.6
        assert all(word.start < word.end and 0 < word.probability < 1 for word in words)
    crowded = word_times(log_probs[:4], torch.randn(16, 80), tokens, tokenizer, 0.04)
    assert [word.text for word in crowded] == text.split() and crowded[-1].end == 0.16
    assert all(word.probability == 0 and word.start < word.end for word in crowded)
    assert word_times(log_probs, torch.randn(160, 80), [], tokenizer, 0.04) == []


def test_loudness_is_the_power_of_the_sound() -> None:
    sound = torch.from_numpy(sung("aaaa"))
    quiet, loud = (loudness_db(log_mel(torch.cat([sound, gain * sound])))[[10, 74]] for gain in (0.1, 1.0))
    assert quiet[1] - quiet[0] == pytest.approx(-20.0, abs=0.1)
    assert loud[1] - loud[0] == pytest.approx(0.0, abs=0.1)


# From sound to files


def test_other_times_in_another_batch() -> None:
    model = tiny_model(TOKENIZER, 3, decoder_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    sounds = mels(["abcabcab", "h", "fed cab", "gg gg gg gg gg"])
    config = DecodingConfig(ctc_weight=1.0, word_timestamps=True)
    alone = [decode(Engine(model), [mel], TOKENIZER, config)[0].words for mel in sounds]
    together = [answer.words for answer in decode(Engine(model), sounds, TOKENIZER, config)]
    assert sum(bool(words) for words in alone) > 1
    for one, other in zip(alone, together, strict=True):
        assert [word[:3] for word in one or []] == [word[:3] for word in other or []]


def test_a_model_without_ctc_has_no_word_times() -> None:
    model = tiny_model(TOKENIZER, ctc=False)
    with pytest.raises(InputError, match=r"word_timestamps is True.*no CTC head"):
        Recognizer(Checkpoint(model, TOKENIZER, {}, ""), torch.device("cpu"), DecodingConfig(word_timestamps=True))


def extent_seconds(sound: np.ndarray, down_db: float = 30.0) -> tuple[float, float]:
    """Return where a recording rises above its loudest 10 ms less `down_db`, and where it falls below for good."""
    hop = SAMPLE_RATE_HZ // 100
    power = np.square(sound[: len(sound) // hop * hop]).reshape(-1, hop).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-down_db / 10))
    return loud[0] / 100, (loud[-1] + 1) / 100


@pytest.mark.parametrize("max_segment_seconds", [30.0, 8.0])
def test_word_times_of_a_joined_recording(sample: Path, max_segment_seconds: float) -> None:
    """The sample, its own silence cut off, three times with pauses between: words start and end at the joints."""
    sound, pause, times = load(Source(str(sample))), np.zeros(round(1.3 * SAMPLE_RATE_HZ), np.float32), 3
    begin, end = extent_seconds(sound)
    sound = sound[round(begin * SAMPLE_RATE_HZ) : round(end * SAMPLE_RATE_HZ)]
    soundfile.write("joined.wav", np.concatenate([np.concatenate([pause, sound])] * times), SAMPLE_RATE_HZ)
    (outcome,) = timed_recognizer(max_segment_seconds=max_segment_seconds).transcribe([Source("joined.wav")])
    assert outcome.transcript is not None
    segments = outcome.transcript.segments
    words = [word for segment in segments for word in segment.words or []]
    assert "".join(word["word"] for word in words) == f" {outcome.transcript.text}"
    assert all(one["start"] < one["end"] <= two["start"] for one, two in itertools.pairwise(words))
    for copy in range(times):
        begin = (copy + 1) * 1.3 + copy * len(sound) / SAMPLE_RATE_HZ
        end = begin + len(sound) / SAMPLE_RATE_HZ
        inside = [word for word in words if begin - 0.5 < word["start"] < end]
        assert inside[0]["start"] == pytest.approx(begin, abs=CLOSE_SECONDS)
        assert inside[-1]["end"] == pytest.approx(end, abs=CLOSE_SECONDS)
    first = round(1000 * words[0]["start"])
    assert render_srt(outcome.transcript).startswith(f"1\n00:00:0{first // 1000},{first % 1000:03d} --> ")


def test_a_closely_cut_word_has_steps_to_spell_it_and_ends_with_its_sound() -> None:
    """A "six" of 0.15 s had three steps, and its best path was empty; its silence behind is no part of the word."""
    recognizer = timed_recognizer()
    piece = AudioSegment(2.0, np.zeros(round(0.15 * SAMPLE_RATE_HZ), np.float32))
    bands = recognizer.engine.config.mel_bands
    memory = recognizer.engine.encode([log_mel(torch.from_numpy(piece.waveform), bands)])
    assert int(memory.lengths()) == 10
    answer = Hypothesis(recognizer.tokenizer.encode("six"), -0.1, 0.0, 1, [Word("six", 0.02, 0.38, 0.9)])
    segment = recognizer._segment(piece, answer)
    assert (segment.start, segment.end) == (2.0, 2.15)
    assert [(word["start"], word["end"]) for word in segment.words or []] == [(2.02, 2.15)]


def test_word_timestamps_on_the_command_line(run, sample: Path, heard: str) -> None:
    told = json.loads(run("transcribe", sample, "--word-timestamps", "-f", "json").out)
    assert [word["word"].strip() for word in told["segments"][0]["words"]] == heard.split()
    assert "words" not in json.loads(run("transcribe", sample, "-f", "json").out)["segments"][0]


@pytest.mark.real
def test_words_within_80_ms_of_the_truth_on_joined_digits(real_data: Path) -> None:
    """Digits of FSDD's dev speakers, their own silence cut off, joined with pauses of 50 to 600 ms and faint hiss."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    spoken: dict[str, list] = {}
    for utterance in read_manifest(real_data / "fsdd" / "dev.jsonl"):
        spoken.setdefault(utterance.extra["speaker"], []).append(utterance)
    recognizer, misses = timed_recognizer(), []
    for speaker in sorted(spoken):
        parts, truth, now = [np.zeros(4000)], [], 0.25
        for utterance in draw.choices(spoken[speaker], k=8):
            sound = load(utterance.audio)
            begin, end = (round(seconds * SAMPLE_RATE_HZ) for seconds in extent_seconds(sound))
            pause_seconds = draw.randrange(5, 60) / 100
            parts += [0.3 * sound[begin:end] / np.abs(sound).max(), np.zeros(round(pause_seconds * SAMPLE_RATE_HZ))]
            truth.append((utterance.text, now, now + (end - begin) / SAMPLE_RATE_HZ))
            now = truth[-1][2] + pause_seconds
        joined = np.concatenate(parts)
        soundfile.write("digits.wav", joined + 1e-4 * noise.standard_normal(len(joined)), SAMPLE_RATE_HZ)
        (outcome,) = recognizer.transcribe([Source("digits.wav")])
        assert outcome.transcript is not None
        words = [word for segment in outcome.transcript.segments for word in segment.words or []]
        if [word["word"].strip() for word in words] == [text for text, _, _ in truth]:
            for word, (_, start, end) in zip(words, truth, strict=True):
                misses += [abs(word["start"] - start), abs(word["end"] - end)]
    assert len(misses) > 40, "most joined digits should be read right"
    assert np.mean(np.array(misses) <= CLOSE_SECONDS) > 0.9 and np.median(misses) < 0.03
