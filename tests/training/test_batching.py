"""Training data: what is left out and why, the plan of an epoch, and how examples become batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from focusasr.audio.features import log_mels
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.model.losses import IGNORED
from focusasr.runtime.errors import InputError
from focusasr.training.augment import NO_MASKS, Masks
from focusasr.training.batching import BatchSampler, Example, PlannedExample, SpeechDataset, collate, join
from focusasr.training.dataset import Corpus, Findings, parse_manifest_option, read_corpus, read_texts
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import letters_tokenizer, sung, write_song_book

CLEAN = TrainConfig(clean_epochs=10**9, silence=0, join=0)
TOKENIZER = letters_tokenizer()
MODEL = ModelConfig(text_context=40)


def corpus(*seconds: float, weight: float = 1.0, letters: int = 3) -> Corpus:
    utterances = [Utterance(Path(f"{n}.wav"), "abc", 0.0, length) for n, length in enumerate(seconds)]
    return Corpus("made", weight, utterances, [[4] * letters for _ in seconds], [[1] for _ in seconds])


def lengths(count: int, longest: float = 8.0, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).uniform(0.3, longest, count).round(3).tolist()


def parts(batches: list[list[PlannedExample]]) -> Counter[tuple[int, int]]:
    return Counter(part for batch in batches for item in batch for part in item.parts)


# What is used


@pytest.mark.parametrize(
    ("option", "path", "weight"),
    [
        ("a.jsonl", "a.jsonl", 1.0),
        ("a.jsonl=2.5", "a.jsonl", 2.5),
        ("a=b.jsonl", "a=b.jsonl", 1.0),
        ("a=b.jsonl=3", "a=b.jsonl", 3.0),
    ],
)
def test_manifest_options(option: str, path: str, weight: float) -> None:
    assert parse_manifest_option(option) == (Path(path), weight)


def test_a_file_named_like_a_weight_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run=2").touch()
    assert parse_manifest_option(str(tmp_path / "run=2")) == (tmp_path / "run=2", 1.0)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1000"])
def test_weights_out_of_bounds(weight: str) -> None:
    with pytest.raises(InputError, match="above 0 and below 1000"):
        parse_manifest_option(f"a.jsonl={weight}")


def test_findings_for_each_reason(tmp_path: Path) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, sung("abcabc"), SAMPLE_RATE_HZ)
    (tmp_path / "broken.wav").write_bytes(b"RIFF and no more")
    rows = [
        Utterance(wav, "abc"),
        Utterance(tmp_path / "gone.wav", "abc", 0.0, 1.0),
        Utterance(tmp_path / "gone.wav", "abc"),
        Utterance(wav, "?!"),
        Utterance(wav, "abc", 0.0, 30.0),
        Utterance(wav, "abcabcabcab", 0.0, 0.3),  # 11 letters; up to 0.4 s, with silence behind it, there are 10 steps
        Utterance(wav, "aaaaaa", 0.0, 0.25),  # 6 letters and 5 blanks between them want 11
        Utterance(wav, "abcdabcdab", 0.0, 0.25),
        Utterance(wav, "abcabcabcab", 0.8),
        Utterance(wav, "abc", 0.9),
        Utterance(wav, "abc", 0.0, 0.0),
        Utterance(wav, "abcdefgh" * 5, 0.0, 10.0),
        Utterance(tmp_path / "broken.wav", "abc"),
    ]
    write_manifest(tmp_path / "set.jsonl", rows)
    found = Findings()
    used = read_corpus(f"{tmp_path}/set.jsonl=2", TOKENIZER, MODEL, 20.0, found)
    assert [utterance.text for utterance in used.utterances] == ["abc", "abcdabcdab"]
    assert used.tokens == [TOKENIZER.encode("abc"), TOKENIZER.encode("abcdabcdab")]
    assert used.utterances[0].duration == pytest.approx(0.96)
    assert used.seconds == pytest.approx(1.21)
    assert used.weight == 2.0
    assert {reason: len(places) for reason, places in found.left_out.items()} == {
        "no such audio file": 2,
        "empty text": 1,
        "longer than max_seconds 20": 1,
        "too short for its text": 3,
        "less than 0.1 s of sound": 2,
        "text longer than text_context 40": 1,
        "audio cannot be read": 1,
    }
    assert f"left out 1 (audio cannot be read), such as {tmp_path}/broken.wav" in found.lines()
    assert read_texts([f"{tmp_path}/set.jsonl"]) == [row.text for row in rows]


def test_lines_that_are_broken_or_without_text_are_named(tmp_path: Path) -> None:
    manifest = write_song_book(tmp_path, ["abc", "", "fed"])
    good = manifest.read_text()
    manifest.write_text("\n" + good + "not json\n" + '{"audio_filepath": "a.wav"}\n')
    found = Findings()
    assert len(read_corpus(str(manifest), TOKENIZER, MODEL, 20.0, found).utterances) == 2
    empty, *broken = [line.removeprefix("left out") for line in sorted(found.lines())]
    assert empty == f" 1 (empty text), such as {manifest}, line 3: {tmp_path}/songs/01.wav"
    assert [line[: line.index(". ")] for line in broken] == [
        f": {manifest}, line 5: not JSON (Expecting value at column 1)",
        f": {manifest}, line 6: text is missing",
    ]
    manifest.write_text("not json\n" * 7 + good)
    found = Findings()
    read_corpus(str(manifest), TOKENIZER, MODEL, 20.0, found)
    assert len([line for line in found.lines() if line.startswith("left out: ")]) == 5
    assert f"left out 7 (bad line in the manifest), such as {manifest}, line 1: not JSON" in "\n".join(found.lines())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json\n", "line 1: not JSON"),
        ('\n{"audio_filepath": "a.wav"}\n', "line 2: text is missing"),
        ('\n{"audio_filepath": "a.wav", "text": " "}\n', "line 2: the text is empty; no text is left to train on"),
    ],
)
def test_a_manifest_without_any_text_is_named_with_a_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"^{tmp_path}/m.jsonl, {said}"):
        read_texts([f"{tmp_path}/m.jsonl"])


def test_lengths_that_no_header_knows_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_song_book(tmp_path, ["abc"])
    monkeypatch.setattr("focusasr.audio.load.probe_seconds", lambda _: None)
    used = read_corpus(str(manifest), TOKENIZER, MODEL, 20.0, Findings())
    assert used.seconds == pytest.approx(0.48)


# The plan


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_and_epoch_same_batches(seed: int) -> None:
    config = TrainConfig(seed=seed, batch_seconds=30)
    made = [corpus(*lengths(60)), corpus(*lengths(20, seed=1), weight=2.5)]
    one, other = BatchSampler(made, config, 448), BatchSampler(made, config, 448)
    assert one.epoch(3) == other.epoch(3)
    later, elsewhere = one.epoch(4), BatchSampler(made, dataclasses.replace(config, seed=seed + 1), 448).epoch(3)
    for different in (later, elsewhere):
        assert [[item.parts for item in batch] for batch in one.epoch(3)] != [
            [item.parts for item in batch] for batch in different
        ]


def test_every_item_has_a_seed_and_a_place_of_its_own() -> None:
    plan = BatchSampler([corpus(*lengths(60))], TrainConfig(batch_seconds=30), 448)
    items = [item for epoch in (0, 1) for batch in plan.epoch(epoch) for item in batch]
    assert len({item.seed for item in items}) == len(items)
    places = [[item.position for item in batch] for batch in plan.epoch(1)]
    assert places == [[(1, place)] * len(row) for place, row in enumerate(places)]


@settings(deadline=None, max_examples=50)
@given(
    seconds=st.lists(st.floats(0.1, 20.0), min_size=1, max_size=40),
    weight=st.sampled_from([0.01, 0.5, 1.0, 2.0, 3.25]),
    batch_seconds=st.sampled_from([0.5, 10.0, 60.0]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    epoch=st.integers(0, 5),
)
def test_any_epoch_holds_what_it_should(
    seconds: list[float], weight: float, batch_seconds: float, share: float, epoch: int
) -> None:
    made = corpus(*seconds, weight=weight, letters=9)
    config = TrainConfig(batch_seconds=batch_seconds, join=share, join_seconds=10)
    batches = BatchSampler([made], config, 39).epoch(epoch)
    seen = parts(batches)
    whole, rest = divmod(weight, 1.0)
    assert set(seen.values()) <= {int(whole), int(whole) + 1}
    assert seen.total() == int(whole) * len(seconds) + max(round(rest * len(seconds)), 0 if whole else 1)
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(item.seconds for item in batch) <= batch_seconds
        for item in batch:
            assert item.seconds == pytest.approx(sum(seconds[index] + 0.2 for _, index in item.parts))
            assert len(item.parts) == 1 or item.seconds <= 10
            assert len(item.parts) <= 3, "start, four texts of 9 tokens and separators are 40 tokens"


@pytest.mark.parametrize(("text_context", "most"), [(29, 2), (30, 3), (39, 3), (40, 4)])
def test_joined_texts_fill_the_text_context_and_no_more(text_context: int, most: int) -> None:
    made = [corpus(*[0.5] * 200, letters=9)]
    batches = BatchSampler(made, TrainConfig(join=1, join_seconds=20), text_context).epoch(0)
    assert max(len(item.parts) for batch in batches for item in batch) == most


def test_every_corpus_is_seen_by_its_weight() -> None:
    made = [corpus(*lengths(30)), corpus(*lengths(10, seed=1), weight=3.0)]
    seen = parts(BatchSampler(made, TrainConfig(), 448).epoch(0))
    assert seen == Counter({**{(0, n): 1 for n in range(30)}, **{(1, n): 3 for n in range(10)}})


def test_joining_makes_every_length() -> None:
    made = [corpus(*lengths(4000, longest=1.0))]
    config = TrainConfig(join=0.5, join_seconds=10)
    items = [item for batch in BatchSampler(made, config, 448).epoch(0) for item in batch]
    joined = [item.seconds for item in items if len(item.parts) > 1]
    assert 0.4 < len(joined) / len(items) < 0.55
    assert min(joined) < 2
    assert max(joined) > 8
    alone = [item for batch in BatchSampler(made, dataclasses.replace(config, join=0), 448).epoch(0) for item in batch]
    assert all(len(item.parts) == 1 for item in alone)


def test_nothing_joined_is_longer_than_the_longest_item() -> None:
    made = [corpus(*lengths(60, longest=3.0))]
    items = [item for batch in BatchSampler(made, TrainConfig(join=1, max_seconds=4), 448).epoch(0) for item in batch]
    joined = [item.seconds for item in items if len(item.parts) > 1]
    assert joined and max(joined) <= 4


def test_a_corpus_is_joined_with_itself_alone() -> None:
    made = [corpus(*lengths(50, longest=1.0)), corpus(*lengths(50, longest=1.0))]
    for batch in BatchSampler(made, TrainConfig(join=1), 448).epoch(0):
        for item in batch:
            assert len({which for which, _ in item.parts}) == 1


def test_little_padding_and_batches_in_no_order() -> None:
    made = [corpus(*lengths(500))]
    batches = BatchSampler(made, TrainConfig(batch_seconds=60), 448).epoch(0)
    held = sum(item.seconds for batch in batches for item in batch)
    padded = sum(len(batch) * max(item.seconds for item in batch) for batch in batches)
    assert 1 - held / padded < 0.10
    means = [np.mean([item.seconds for item in batch]) for batch in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("first", [0, 1, 5, 17, 40])
def test_a_resumed_plan_goes_on_where_it_stopped(first: int) -> None:
    made, config = [corpus(*lengths(40))], TrainConfig(batch_seconds=20)
    straight = list(itertools.islice(BatchSampler(made, config, 448), first + 30))
    assert list(itertools.islice(BatchSampler(made, config, 448, first), 30)) == straight[first:]
    assert straight[-1][0].position[0] > 0, "the test should cross an epoch"


# Examples and batches


def examples(folder: Path, texts: list[str], config: TrainConfig = CLEAN) -> SpeechDataset:
    made = read_corpus(str(write_song_book(folder, texts)), TOKENIZER, MODEL, 20.0, Findings())
    return SpeechDataset([made], config, 20, TOKENIZER.separator)


def item(*indices: int, seed: int = 0, epoch: int = 0) -> PlannedExample:
    return PlannedExample(tuple((0, index) for index in indices), 0.0, (0, epoch, seed), (epoch, 0))


def test_clean_examples_are_the_sound_itself(tmp_path: Path) -> None:
    made = examples(tmp_path, ["abc"])[item(0)]
    assert torch.equal(made.waveform, torch.from_numpy(sung("abc")))
    assert (made.masks, made.tokens, made.broken) == (NO_MASKS, TOKENIZER.encode("abc"), [])


def test_joined_examples_are_joined_texts(tmp_path: Path) -> None:
    made = examples(tmp_path, ["ab", "c", "de"])[item(1, 0, 2)]
    assert TOKENIZER.decode(made.tokens) == "c ab de"
    assert made.frames == len(made.waveform) // 160 >= 5 * 16  # letters of 16 frames, and gaps


def same(one: Example, other: Example) -> bool:
    pairs = zip((one.waveform, *one.masks), (other.waveform, *other.masks), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_an_augmented_example_follows_from_its_seed(tmp_path: Path) -> None:
    config = TrainConfig(clean_epochs=1, silence=0)
    made = examples(tmp_path, ["abc"], config)
    clean, again, other = (made[item(0, seed=seed, epoch=0)] for seed in (1, 1, 2))
    assert same(clean, again)
    assert same(clean, other)
    first, again, other = (made[item(0, seed=seed, epoch=1)] for seed in (1, 1, 2))
    assert same(first, again)
    assert not torch.equal(first.waveform[:100], other.waveform[:100])
    assert not torch.equal(first.masks.bands, other.masks.bands)


def test_noise_and_silence_have_no_text(tmp_path: Path) -> None:
    made = examples(tmp_path, ["abc"], TrainConfig(silence=1, clean_epochs=0))
    example = made[item(0)]
    assert example.tokens == []
    assert example.waveform.isfinite().all()


@pytest.mark.parametrize("clean_epochs", [0, 1])
def test_broken_files_are_named_and_the_others_go_on(tmp_path: Path, clean_epochs: int) -> None:
    loud = TrainConfig(clean_epochs=clean_epochs, noise=1, reverberation=1, telephone=1, silence=0.5)
    made = examples(tmp_path, ["ab", "cd", "ef"], loud)
    for name in ("00.wav", "01.wav"):
        (tmp_path / "songs" / name).write_bytes(b"not sound")
    one = next(found for found in (made[item(0, 2, seed=n)] for n in range(20)) if found.tokens)
    assert TOKENIZER.decode(one.tokens) == "ef"
    assert len(one.broken) == 1
    assert "00.wav" in one.broken[0]
    for number in range(20):
        assert len(made[item(0, 1, seed=number)].waveform) == 0, "no silence counts as sound"
    none = made[item(0, 1)]
    mel, lengths = log_mels(none.waveform[None], torch.tensor([len(none.waveform)]), 20)
    assert mel.isfinite().all()
    assert lengths.tolist() == [none.frames] and none.frames >= 1
    assert none.tokens == []
    assert [name in line for name, line in zip(("00.wav", "01.wav"), none.broken, strict=True)] == [True, True]


def test_joining_sound_keeps_every_sample() -> None:
    pieces = [np.full(n, 0.1 * n, np.float32) for n in (3, 0, 5)]
    joined = join(pieces, np.random.default_rng(0))
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined[joined != 0], np.concatenate(pieces))
    assert len(joined) <= 8 + 2 * 0.4 * SAMPLE_RATE_HZ
    np.testing.assert_array_equal(join(pieces[:1], np.random.default_rng(0)), pieces[0])
    assert join([], np.random.default_rng(0)).shape == (0,)


def test_recordings_begin_and_end_with_and_without_silence() -> None:
    alone = [join([np.ones(5, np.float32)], np.random.default_rng(seed), around=0.5) for seed in range(40)]
    assert {bool(sound[0]) for sound in alone} == {bool(sound[-1]) for sound in alone} == {True, False}


def test_collate_pads_and_marks() -> None:
    place = PlannedExample(((0, 0),), 1.0, (0, 0, 0), (3, 7))
    shifted = Masks(torch.tensor(0.9), torch.tensor([[3, 2], [0, 5]]), torch.tensor([[1, 1]]))
    made = [
        Example(torch.ones(640), NO_MASKS, 4, [1], [5, 6], place, []),
        Example(torch.ones(320), shifted, 2, [1], [], place, ["x is broken"]),
        Example(torch.ones(480), NO_MASKS, 3, [1], [7, 8, 9], place, ["y is broken"]),
    ]
    batch = collate(made, end=2)
    assert batch.tokens.tolist() == [[1, 5, 6, 2], [1, 2, 2, 2], [1, 7, 8, 9]]
    assert batch.targets.tolist() == [[5, 6, 2, IGNORED], [2, IGNORED, IGNORED, IGNORED], [7, 8, 9, 2]]
    assert batch.waveforms.shape == (3, 640)
    assert batch.waveforms.sum(dim=1).tolist() == batch.samples.tolist() == [640, 320, 480]
    assert batch.masks.stretch.tolist() == pytest.approx([1.0, 0.9, 1.0])
    assert batch.masks.bands.tolist() == [[[0, 0], [0, 0]], [[3, 2], [0, 5]], [[0, 0], [0, 0]]]
    assert batch.lengths.tolist() == [4, 2, 3]
    assert batch.position == (3, 7)
    assert batch.broken == ["x is broken", "y is broken"]
    assert batch.seconds == pytest.approx(0.09)
    assert batch.padded_frames == 12
    last = batch.rows(1, 3)
    assert last.waveforms.shape == (2, 480) and last.padded_frames == 6
    assert last.masks.frames.tolist() == [[[1, 1]], [[0, 0]]]
    assert [part.tolist() for part in (last.samples, last.tokens)] == [[320, 480], [[1, 2, 2, 2], [1, 7, 8, 9]]]
    assert torch.equal(batch.rows(1, 2).targets, torch.tensor([[2]]))


def test_a_batch_moves_and_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    place = PlannedExample(((0, 0),), 1.0, (0, 0, 0), (3, 7))
    batch = collate([Example(torch.ones(640), NO_MASKS, 4, [1], [5, 6], place, ["x is broken"])], end=2)
    moved = batch.to(torch.device("meta"))
    assert {part.device.type for part in (*moved[:2], *moved.masks, *moved[3:6], moved.speechless)} == {"meta"}
    assert moved[6:8] == batch[6:8]
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    held = pin_memory(batch)
    assert len(pinned) == 9 and type(held) is type(batch) and type(held.masks) is Masks
    assert held.items == batch.items and held.position == (3, 7)


def test_rows_of_a_batch_keep_every_target_behind_a_prompt() -> None:
    """Prompts are no targets; rows that were cut by the number of targets lost the last three of Whisper's."""
    texts = [[7, 8, 9, 10, 11], [7], []]
    rows = [Example(torch.zeros(800), NO_MASKS, 40, [1, 2, 3, 4], text, item(0), []) for text in texts]
    batch = collate(rows, end=6)
    for index, text in enumerate(texts):
        row = batch.rows(index, index + 1)
        assert row.targets.tolist() == [[IGNORED] * 3 + text + [6]]
        assert row.tokens.tolist() == [[1, 2, 3, 4, *text]]
