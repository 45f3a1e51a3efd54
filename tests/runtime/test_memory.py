"""Memory that is short and devices that fail: smaller batches, then the CPU, and the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.ctc_attention import decode
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.runtime.devices import device_fails, is_out_of_memory, run_in_halves
from focusasr.transcription import native, whisper_batched
from focusasr.transcription.native import Recognizer
from focusasr.transcription.recognizer import with_cpu_fallback
from focusasr.transcription.result import Outcome
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.whisper_pairs import chirps, ours, peer_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FULL = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1000 bytes")


def texts(outcomes: Iterable[Outcome]) -> list[str | None]:
    return [outcome.transcript.text if outcome.transcript else None for outcome in outcomes]


def test_what_says_that_memory_is_short() -> None:
    errors = [FULL, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
    assert all(is_out_of_memory(error) for error in errors)
    assert not any(is_out_of_memory(error) for error in (RuntimeError("shapes differ"), ValueError("out of memory")))
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert device_fails(GPU, lost) and not device_fails(CPU, lost) and not device_fails(CPU, FULL)
    assert device_fails(GPU, errors[2]) and not device_fails(GPU, RuntimeError("shapes differ"))


def test_halves_of_halves_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 2 or 6 in items:
            raise MemoryError
        return [item * 10 for item in items]

    halved: list[int] = []
    assert run_in_halves(work, range(8), CPU, halved.append) == [0, 10, 20, 30, 40, 50, None, 70]
    assert tried == [8, 4, 2, 2, 4, 2, 2, 1, 1] and halved == [4, 2, 2, 1]
    assert "focusasr: 8 segments at once do not fit the memory; continuing with 4\n" in capsys.readouterr().err
    with pytest.raises(MemoryError):
        run_in_halves(work, [6], GPU, halved.append)
    with pytest.raises(ZeroDivisionError):
        run_in_halves(lambda items: [1 // 0 for _ in items], [1, 2], CPU, halved.append)


@pytest.fixture
def recognizer() -> Recognizer:
    return Recognizer(load_checkpoint(find_checkpoint(None)), CPU, DecodingConfig())


def test_native_batches_shrink_and_the_texts_stay(
    recognizer: Recognizer, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [Source(str(sample), offset, 1.2) for offset in np.linspace(0, 2, 9).round(2)]
    expected = texts(recognizer.transcribe(sources))
    assert len(set(expected)) > 4
    sizes: list[int] = []

    def narrow(engine: Any, mels: Sequence[torch.Tensor], *rest: Any) -> Any:
        sizes.append(len(mels))
        if len(mels) > 2:
            raise FULL
        return decode(engine, mels, *rest)

    monkeypatch.setattr(native, "decode", narrow)
    assert texts(recognizer.transcribe(sources)) == expected
    assert capsys.readouterr().err.count("do not fit the memory") == 4  # 9, 4, 5 and 3
    assert texts(recognizer.transcribe(sources)) == expected
    assert max(sizes[-9:]) == 1 and capsys.readouterr().err == "", "once is enough"


def test_a_segment_that_never_fits_fails_its_file_alone(
    recognizer: Recognizer, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_only(engine: Any, mels: Sequence[torch.Tensor], *rest: Any) -> Any:
        if max(map(len, mels)) > 200:
            raise MemoryError
        return decode(engine, mels, *rest)

    sources = [Source(str(sample), 0, 1.5), Source(str(sample), 0, 2.5), Source(str(sample), 1, 1.5)]
    expected = texts(recognizer.transcribe(sources))
    monkeypatch.setattr(native, "decode", short_only)
    first, second, third = recognizer.transcribe(sources)
    assert texts([first, third]) == [expected[0], expected[2]]
    assert (
        second.error
        == f"{sources[1].name}: a segment does not fit into memory. Lower --max-segment-seconds or --joint-beam-size."
    )


def test_whisper_windows_shrink_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    loud = "focusasr.audio.segmentation.detector"
    monkeypatch.setattr(loud, lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05)
    gap = np.zeros(12 * SAMPLE_RATE_HZ, np.float32)
    soundfile.write("talk.wav", np.concatenate([x for s in range(3) for x in (chirps(9.0, s).numpy(), gap)]), 16_000)
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    settings = (CPU, DecodingConfig(batch_size=3), search, LongformConfig())
    whisper = whisper_batched.BatchedWhisperRecognizer(ours(peer_model(3)), *settings)
    expected = texts(whisper.transcribe([Source("talk.wav")]))
    encode = whisper.engine.encode

    def narrow(mels: Sequence[torch.Tensor]) -> Any:
        if len(mels) > 1:
            raise FULL
        return encode(mels)

    monkeypatch.setattr(whisper.engine, "encode", narrow)
    assert texts(whisper.transcribe([Source("talk.wav")])) == expected
    assert "3 segments at once do not fit the memory; continuing with 1" in capsys.readouterr().err
    one_by_one = WhisperRecognizer(ours(peer_model(3)), *settings)

    def never(mels: Sequence[torch.Tensor]) -> Any:
        raise FULL

    monkeypatch.setattr(one_by_one.engine, "encode", never)
    (outcome,) = one_by_one.transcribe([Source("talk.wav")])
    assert outcome.error is not None and outcome.error.startswith("talk.wav: ")
    assert "--beam-size" in outcome.error and "--best-of" in outcome.error


class Frail:
    """A recognizer on a device that fails behind so many sources."""

    def __init__(self, device: torch.device, error: Exception | None = None, after: int = 0) -> None:
        self.device, self.error, self.after = device, error, after

    def transcribe(self, sources: Iterable[Source], *_: object) -> Iterator[Outcome]:
        for number, source in enumerate(sources):
            if self.error and number == self.after:
                raise self.error
            yield Outcome(source, None, f"{source.name} by {self.device}", 0.0)


def test_the_cpu_goes_on_where_a_device_fails(capsys: pytest.CaptureFixture[str]) -> None:
    sources = [Source(f"{number}.wav") for number in range(4)]
    lost = RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")
    outcomes = list(with_cpu_fallback(Frail(GPU, lost, 2), lambda: Frail(CPU), sources, lambda seconds: None))
    assert [outcome.error for outcome in outcomes] == ["0.wav by cuda", "1.wav by cuda", "2.wav by cpu", "3.wav by cpu"]
    err = capsys.readouterr().err
    assert err == "focusasr: cuda fails (CUDA error: unspecified launch failure); continuing on the CPU\n"
    with pytest.raises(RuntimeError, match="shapes"):
        list(
            with_cpu_fallback(
                Frail(GPU, RuntimeError("shapes differ")), lambda: Frail(CPU), sources, lambda seconds: None
            )
        )
    with pytest.raises(RuntimeError, match="CUDA"):
        list(with_cpu_fallback(Frail(CPU, lost), lambda: Frail(CPU), sources, lambda seconds: None))


def test_sources_are_asked_for_when_their_turn_comes() -> None:
    """A latency is the time from there to the text: asked for all at once, each file seems to take the whole run."""
    asked: list[str] = []
    coming = (asked.append(source.name) or source for source in [Source(f"{number}.wav") for number in range(4)])
    for count, _ in enumerate(with_cpu_fallback(Frail(CPU), lambda: Frail(CPU), coming, lambda seconds: None), start=1):
        assert len(asked) == count


@pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="neither CUDA nor MPS is here"
)
def test_another_device_hears_the_same(sample: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "mps")
    sources = [Source(str(sample)), Source(str(sample), 0.0, 2.0)]
    config = DecodingConfig(compute_type="float32")
    here, there = (Recognizer(load_checkpoint(find_checkpoint(None)), place, config) for place in (CPU, device))
    ours, theirs = list(here.transcribe(sources)), list(there.transcribe(sources))
    assert texts(ours) == texts(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.transcript and other.transcript
        assert one.transcript.segments[0].avg_logprob == pytest.approx(
            other.transcript.segments[0].avg_logprob, abs=1e-3
        )
