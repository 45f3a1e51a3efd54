"""Contenders of the speed benchmark, each as one callable, and their shared weights.

Nothing heavy is imported before a contender is created, so that its start-up time includes its imports.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

END = 50_257  # of Whisper's 51,865 tokens; its row of the shared weights is zero, so that no text ends by itself
PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
OPENAI_NAMES = [  # Hugging Face's names of weights, and OpenAI's
    (r"^model\.", ""), (r"\.layers\.", ".blocks."), (r"self_attn_layer_norm", "attn_ln"), (r"self_attn\.", "attn."),
    (r"encoder_attn_layer_norm", "cross_attn_ln"), (r"encoder_attn\.", "cross_attn."), (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."), (r"\.v_proj\.", ".value."), (r"\.out_proj\.", ".out."), (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."), (r"final_layer_norm", "mlp_ln"), (r"encoder\.layer_norm", "encoder.ln_post"),
    (r"decoder\.layer_norm", "decoder.ln"), (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
]  # fmt: skip


class Times(NamedTuple):
    """Seconds of one call on a batch: features, encoder, decoder, and the tokens of each row."""

    features: float
    encoder: float
    decoder: float
    tokens: int

    @property
    def whole(self) -> float:
        """Seconds of the whole call."""
        return self.features + self.encoder + self.decoder


class Contender(Protocol):
    """A loaded model: a callable from waveforms (N,) at 16 kHz and the tokens to decode for each, to times."""

    def __call__(self, waves: Sequence[np.ndarray], tokens: int) -> Times: ...


def timed(parts: Sequence[Callable[[Any], Any]]) -> tuple[list[float], Any]:
    """Run each part on the result of the part before; return the seconds of each and the last result."""
    seconds, value = [], None
    for part in parts:
        start = time.perf_counter()
        value = part(value)
        seconds.append(time.perf_counter() - start)
    return seconds, value


def torch_with(threads: int) -> Any:
    """Return torch, limited to a number of threads."""
    import torch

    torch.set_num_threads(threads)
    return torch


class OpenaiWhisper:
    """openai-whisper in float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.torch = torch_with(threads)
        import whisper

        self.whisper = whisper
        self.model = whisper.load_model(str(folder / "openai.pt"), device="cpu")

    def __call__(self, waves: Sequence[np.ndarray], tokens: int) -> Times:
        """Transcribe like its `decode`, which accepts encoded audio as well as features."""
        whisper, torch = self.whisper, self.torch
        options = whisper.DecodingOptions(
            language="en", without_timestamps=True, sample_len=tokens, suppress_tokens=[END], suppress_blank=False,
            fp16=False,
        )  # fmt: skip
        with torch.inference_mode():
            seconds, results = timed(
                [
                    lambda _: torch.stack([whisper.log_mel_spectrogram(whisper.pad_or_trim(wave)) for wave in waves]),
                    self.model.encoder,
                    lambda states: whisper.decode(self.model, states, options),
                ]
            )
        return Times(seconds[0], seconds[1], seconds[2], len(results[0].tokens))


class Transformers:
    """transformers in float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.torch = torch_with(threads)
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.features = transformers.WhisperFeatureExtractor()
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(folder / "face").eval()

    def __call__(self, waves: Sequence[np.ndarray], tokens: int) -> Times:
        """Transcribe by its `generate`, greedily."""

        def generate(states: Any) -> Any:
            return self.model.generate(
                encoder_outputs=states, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1
            )

        with self.torch.inference_mode():
            seconds, results = timed(
                [
                    lambda _: self.features(list(waves), sampling_rate=16_000, return_tensors="pt").input_features,
                    self.model.get_encoder(),
                    generate,
                ]
            )
        return Times(seconds[0], seconds[1], seconds[2], min(tokens, results.shape[1]))


class FasterWhisper:
    """faster-whisper on CTranslate2, with the given compute type."""

    def __init__(self, folder: Path, threads: int, compute_type: str) -> None:
        import faster_whisper
        from faster_whisper.audio import pad_or_trim

        self.pad_or_trim = pad_or_trim
        self.model = faster_whisper.WhisperModel(
            str(folder / "ctranslate2"), device="cpu", compute_type=compute_type, cpu_threads=threads
        )
        self.prompt = [self.model.hf_tokenizer.token_to_id(token) for token in PROMPT]

    def __call__(self, waves: Sequence[np.ndarray], tokens: int) -> Times:
        """Transcribe by the calls in its own `generate_segments`, greedily."""

        def generate(states: Any) -> Any:
            return self.model.model.generate(
                states,
                [self.prompt] * len(waves),
                beam_size=1,
                max_length=max(2 * tokens, tokens + 4),
                suppress_blank=False,
                suppress_tokens=[END],
            )  # fmt: skip  (it writes half of max_length, or what the prompt of four leaves of it)

        def features(_: Any) -> np.ndarray:
            return np.stack([self.pad_or_trim(self.model.feature_extractor(wave)) for wave in waves])

        seconds, results = timed([features, self.model.encode, generate])
        return Times(seconds[0], seconds[1], seconds[2], len(results[0].sequences_ids[0]))


class Ourselves:
    """focusasr with the shared weights."""

    def __init__(self, folder: Path, threads: int, compute_type: Any) -> None:
        self.torch = torch_with(threads)
        from focusasr.decoding.whisper_decoder import EngineDecoder
        from focusasr.model.checkpoint import load_checkpoint
        from focusasr.model.engine import Engine

        checkpoint = load_checkpoint(folder / "face")
        self.engine = Engine(checkpoint.model, compute_type)
        self.decoder = EngineDecoder(self.engine)
        self.prompt = [*checkpoint.tokenizer.prompt]

    def __call__(self, waves: Sequence[np.ndarray], tokens: int) -> Times:
        """Transcribe by the calls of our long-form decoder, greedily."""
        from focusasr.audio.features import log_mel
        from focusasr.decoding.beam_search import Search, StopCriteria, forward, search

        torch, engine = self.torch, self.engine

        def generate(memory: Any) -> Any:
            prompt = torch.tensor([self.prompt] * len(waves))
            opening = forward(self.decoder, self.decoder.start(memory), prompt)
            return search(self.decoder, opening, StopCriteria([], END, tokens), Search())

        bands, window = engine.config.mel_bands, engine.config.window_samples
        with torch.inference_mode():
            seconds, texts = timed(
                [lambda _: [log_mel(torch.from_numpy(wave), bands, window) for wave in waves], engine.encode, generate]
            )
        return Times(seconds[0], seconds[1], seconds[2], len(texts[0].tokens))


SHARED: dict[str, tuple[str, Callable[[Path, int], Contender]]] = {  # name: package, how to make it
    "focusasr int8": ("focusasr", lambda folder, threads: Ourselves(folder, threads, "int8")),
    "focusasr fp32": ("focusasr", lambda folder, threads: Ourselves(folder, threads, "float32")),
    "openai-whisper fp32": ("whisper", OpenaiWhisper),
    "transformers fp32": ("transformers", Transformers),
    "faster-whisper fp32": ("faster_whisper", lambda folder, threads: FasterWhisper(folder, threads, "float32")),
    "faster-whisper int8": ("faster_whisper", lambda folder, threads: FasterWhisper(folder, threads, "int8")),
}


def write_shared_weights(folder: Path) -> None:
    """Write one set of random weights of Whisper-tiny's shape in the format of every contender.

    `face` is a Hugging Face folder, `openai.pt` OpenAI's file, `ctranslate2` the output of CTranslate2's converter.
    """
    import torch
    from parity import hugging_face_model, vocabularies, write_hugging_face
    from transformers import WhisperFeatureExtractor, WhisperTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = hugging_face_model("tiny")
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[END] = 0.0  # a logit of 0, below the largest of 51,864 random ones
    write_hugging_face(model, folder / "face", vocabularies()[51_865])
    WhisperTokenizer.from_pretrained(folder / "face").save_pretrained(folder / "face")
    WhisperFeatureExtractor().save_pretrained(folder / "face")
    _write_openai(model, folder / "openai.pt")
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        return
    converter = TransformersConverter(
        str(folder / "face"), copy_files=["tokenizer.json", "preprocessor_config.json"], load_as_float16=False
    )
    converter.convert(str(folder / "ctranslate2"))


def _write_openai(model: Any, path: Path) -> None:
    import torch

    config, weights = model.config, {}
    for name, value in model.state_dict().items():
        for pattern, name_part in OPENAI_NAMES:
            name = re.sub(pattern, name_part, name)
        if not name.startswith("proj_out"):  # tied to the embedding
            weights[name] = value.clone()
    dims = {
        "n_mels": config.num_mel_bins, "n_audio_ctx": 1500, "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads, "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size, "n_text_ctx": 448, "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads, "n_text_layer": config.decoder_layers,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": weights}, path)
