"""Whisper models written for other programs: they come back bit by bit, and these programs transcribe the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.export import hugging_face_name
from focusasr.model.whisper_tokens import tokenizer_of_engine
from focusasr.text.whisper_tokenizer import ENGLISH_RANKS, openai_engine
from focusasr.transcription.loaded_model import load_recognizer
from focusasr.transcription.recognizer import ModelChoice
from focusasr.whisper_config import SearchConfig
from tests.helpers.tiny_whisper import as_whisper, write_whisper
from tests.helpers.toy_speech import letters_tokenizer, tiny_model
from tests.helpers.whisper_formats import token_bytes, write_bin, write_ctranslate2, write_ggml, write_openai
from tests.model.test_huggingface import same

FORMATS = ("huggingface", "ctranslate2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of transformers with weights in float16, that of a model for Spanish."""
    place = write_whisper(tmp_path / "tiny")
    halves = {name: value.half() for name, value in load_file(place / "model.safetensors").items()}
    save_file(halves, place / "model.safetensors", metadata={"format": "pt"})
    generation = json.loads((place / "generation_config.json").read_text())
    changes = {"forced_decoder_ids": None, "language": "es", "task": "translate"}
    (place / "generation_config.json").write_text(json.dumps({**generation, **changes}))
    return place


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_written_folder_is_the_same_model(run, folder: Path, tmp_path: Path, to: str, dtype: str) -> None:
    result = run("convert", folder, tmp_path / "out", "--to", to, "--dtype", dtype)
    assert (result.status, result.out) == (0, f"{tmp_path / 'out'}\n")
    wanted, loaded = load_checkpoint(folder), load_checkpoint(tmp_path / "out")
    for name, value in wanted.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    if to == "huggingface":
        same(loaded, wanted)
        assert loaded.whisper == wanted.whisper
        stored = load_file(tmp_path / "out" / "model.safetensors")
        assert {str(value.dtype) for value in stored.values()} == {f"torch.{dtype}"}
        assert stored.keys() == load_file(folder / "model.safetensors").keys()
    assert loaded.tokenizer.to_json() == wanted.tokenizer.to_json()
    again = run("convert", tmp_path / "out", tmp_path / "again", "--to", to, "--dtype", dtype)
    assert again.status == 0
    for name in ("model.bin", "model.safetensors", "config.json", "tokenizer.json"):
        if (tmp_path / "out" / name).exists():
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_ctranslate2_is_written_as_its_own_converter_does(run, folder: Path, tmp_path: Path) -> None:
    """Variables of a known layout come back under the same names, shapes and types; the scalars are CTranslate2's."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="faster-whisper is not installed")
    assert run("convert", folder, tmp_path / "out", "--to", "ctranslate2", "--dtype", "float16").status == 0
    assert ctranslate2.models.Whisper(str(tmp_path / "out"), compute_type="float32") is not None
    listed = (tmp_path / "out" / "vocabulary.txt").read_text().removesuffix("\n").split("\n")
    tokenizer = as_whisper(load_checkpoint(folder).tokenizer)
    assert [tokenizer.engine.token_to_id(piece) for piece in listed] == list(range(tokenizer.size))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [{"attention": "hybrid"}, {"decoder_attention": "hybrid"}, {"tail_frames": 64}, {"conv_kernel": 3}, {"ctc": True}],
    ids=str,
)
def test_models_that_others_cannot_compute_are_refused(
    run, folder: Path, tmp_path: Path, changes: dict, to: str
) -> None:
    loaded = load_checkpoint(folder)
    config = replace(loaded.model.config, **changes)
    save_checkpoint(tmp_path / "ours", replace(loaded, model=type(loaded.model)(config)))
    result = run("convert", tmp_path / "ours", tmp_path / "out", "--to", to)
    assert result.status == 1 and result.err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert f"{tmp_path / 'ours'}: {next(iter(changes))} is {next(iter(changes.values()))}" in result.err


def test_native_models_are_refused(run, tmp_path: Path) -> None:
    tokenizer = letters_tokenizer()
    save_checkpoint(tmp_path / "ours", Checkpoint(tiny_model(tokenizer), tokenizer, {}, ""))
    result = run("convert", tmp_path / "ours", tmp_path / "out", "--to", "ctranslate2")
    assert result.status == 1 and "not a Whisper model" in result.err and not (tmp_path / "out").exists()


# Real weights


@pytest.fixture(scope="module")
def clip(request: pytest.FixtureRequest) -> Path:
    """Return the shortest recording of real speech that has a sentence."""
    folder = request.getfixturevalue("real_data") / "misc_en" / "audio" / "test"
    return min(folder.glob("*.flac"), key=lambda path: (soundfile.info(path).duration, path))


@pytest.fixture(scope="module")
def written(whisper_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return tiny.en in every format, with float16 weights; those of other programs are written from transformers'."""
    from focusasr.model.export import save_ctranslate2, save_hugging_face

    place = tmp_path_factory.mktemp("real")
    model = load_checkpoint(whisper_weights / "tiny.en")
    save_checkpoint(place / "focusasr", model, dtype=torch.float16)
    for name, save in (("huggingface", save_hugging_face), ("ctranslate2", save_ctranslate2)):
        (place / name).mkdir()
        save(place / name, model, torch.float16)
    source = place / "huggingface"
    write_bin(source, place / "bin")
    write_openai(source, place / "tiny.en.pt").with_name("gpt2.tiktoken").unlink()
    write_ggml(source, place / "ggml-tiny.en.bin", tokens=english_tokens())
    for kind in ("int8", "int16", "bfloat16"):
        write_ctranslate2(source, place / f"ct2-{kind}", kind)
    for kind in ("q8_0", "q5_1"):
        write_ggml(source, place / f"ggml-tiny.en-{kind}.bin", kind, tokens=english_tokens())
    return {path.name: path for path in place.iterdir() if path.suffix != ".tiktoken"}


def english_tokens() -> list[bytes]:
    pieces = openai_engine(51_864).get_vocab()
    return token_bytes({piece: id for piece, id in pieces.items() if id < ENGLISH_RANKS})


def tokens_of(path: Path, clip: Path) -> list[int]:
    """Return the tokens that a model decodes greedily in float32."""
    given = {SearchConfig: {"beam_size": 1}, DecodingConfig: {"compute_type": "float32"}}
    recognizer = load_recognizer(ModelChoice(str(path), "cpu"), given).recognizer
    (outcome,) = recognizer.transcribe([Source(str(clip))])
    assert outcome.transcript is not None
    return [token for segment in outcome.transcript.segments for token in segment.tokens]


@pytest.mark.real
def test_every_format_gives_the_same_tokens(written: dict[str, Path], whisper_weights: Path, clip: Path) -> None:
    wanted = tokens_of(whisper_weights / "tiny.en", clip)
    assert len(wanted) > 5
    assert {name: tokens_of(path, clip) for name, path in written.items()} == dict.fromkeys(written, wanted)


@pytest.mark.real
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_ctranslate2_weights_come_back_to_the_byte(run, whisper_weights: Path, tmp_path: Path, name: str) -> None:
    assert run("convert", whisper_weights / name, tmp_path / "ours", "--dtype", "float16").status == 0
    options = ("--to", "ctranslate2", "--dtype", "float16")
    assert run("convert", tmp_path / "ours", tmp_path / "back", *options).status == 0
    for piece in ("model.bin", "vocabulary.txt"):
        assert (tmp_path / "back" / piece).read_bytes() == (whisper_weights / name / piece).read_bytes()


@pytest.mark.real
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_settings_of_a_bare_file_are_those_that_openai_published(whisper_weights: Path, name: str) -> None:
    """A .pt or ggml file has no generation settings: they are those of the published folders."""
    published = load_checkpoint(whisper_weights / name)
    settings = published.model.config
    tokenizer = tokenizer_of_engine(openai_engine(settings.vocabulary), settings, name)
    assert tokenizer.whisper == published.whisper and tokenizer.policy == published.tokenizer.policy
    for text in (" Hello, world!", " Zażółć gęślą jaźń 日本語 ♪♪ it's 12345"):
        assert tokenizer.encode(text) == published.tokenizer.encode(text)


@pytest.mark.real
def test_faster_whisper_and_transformers_transcribe_the_same(written: dict[str, Path], clip: Path) -> None:
    faster_whisper = pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = load_checkpoint(written["focusasr"]).tokenizer
    wanted = tokenizer.decode(tokens_of(written["focusasr"], clip))
    model = faster_whisper.WhisperModel(str(written["ctranslate2"]), device="cpu", compute_type="float32")
    segments, _ = model.transcribe(str(clip), beam_size=1)
    assert "".join(segment.text for segment in segments).strip() == wanted
    wave, rate = soundfile.read(clip, dtype="float32")
    processor = transformers.WhisperProcessor.from_pretrained(written["huggingface"])
    model = transformers.WhisperForConditionalGeneration.from_pretrained(written["huggingface"], dtype=torch.float32)
    ids = model.generate(processor(wave, sampling_rate=rate, return_tensors="pt").input_features)
    assert processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == wanted


def test_every_weight_has_a_name_in_transformers(folder: Path) -> None:
    ours = load_checkpoint(folder).model.state_dict()
    assert {hugging_face_name(name) for name in ours} == load_file(folder / "model.safetensors").keys()
