"""More runs of preprocess on a folder: grown corpora keep their splits, others are refused, nothing is silent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from focusasr.config import PreprocessConfig
from focusasr.data.manifest import Utterance
from focusasr.data.preprocess import preprocess
from focusasr.data.preprocess_report import Report
from focusasr.data.splits import _shared, divide
from focusasr.runtime.errors import InputError

THIRDS = PreprocessConfig(split="40/30/30", by=["speaker"])


def corpus(name: str, lines: dict[str, Any]) -> Path:
    """Write a manifest of tones; `lines` are from names of utterances to speakers, or to whole rows."""
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    rows = []
    for number, (stem, more) in enumerate(lines.items()):
        wave = 0.3 * np.sin(np.arange(3200 + 160 * number) * (0.1 + 0.01 * number))
        soundfile.write(folder / f"{stem}.wav", wave, 16_000)
        row = more if isinstance(more, dict) else {"speaker": more}
        rows.append({"audio_filepath": f"{stem}.wav", "text": f"text of {stem}", **row})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def homes(folder: str = "out") -> dict[str, str]:
    """Return the split of each utterance by the manifests of the splits."""
    return {
        Path(row["audio_filepath"]).stem: split
        for split in ("train", "dev", "test")
        if Path(folder, f"{split}.jsonl").exists()
        for row in rows(f"{folder}/{split}.jsonl")
    }


def refusal(*inputs: object, config: PreprocessConfig | None = None) -> str:
    with pytest.raises(InputError) as caught:
        preprocess(list(map(str, inputs)), "out", config)
    assert "\n" not in str(caught.value) and "choose another --output-dir" in str(caught.value)
    return str(caught.value)


def test_sound_that_no_run_made_is_never_written_over() -> None:
    Path("out").mkdir()
    manifest = corpus("out/audio", {"a": "s"})
    own = Path("out/audio/a.flac")
    soundfile.write(own, np.zeros(5), 16_000)
    whole = own.read_bytes()
    said = refusal(manifest)
    assert "out/audio/a.flac: would be overwritten, and no earlier run here is known to have written it" in said
    assert own.read_bytes() == whole and not Path("out/manifest.jsonl").exists()
    own.unlink()
    assert preprocess([manifest], "out").kept == 1 == preprocess([manifest], "out").reused
    Path("out/.preprocess.jsonl").unlink()  # as of a run that was killed before it noted its first file
    assert preprocess([manifest], "out").kept == 1


def test_another_corpus_is_refused_and_one_more_is_welcome() -> None:
    one, other = corpus("one", {"a": "s", "b": "s"}), corpus("other", {"c": "t"})
    preprocess([one], "out")
    before = Path("out/manifest.jsonl").read_bytes()
    said = refusal(other)
    assert f"out: was made from {one.absolute()}, " in said
    assert Path("out/manifest.jsonl").read_bytes() == before and not Path("out/audio/c.flac").exists()
    assert preprocess([other, one], "out").reused == 2
    assert refusal(one).startswith(f"{Path('out').absolute()}: was made from {other.absolute()}")
    assert preprocess(["one", "other"], "out").kept == 3  # the folders that they lie in


def test_a_run_that_broke_off_has_its_inputs_too() -> None:
    one, other = corpus("one", {"a": "s", "b": "s"}), corpus("other", {"c": "t"})

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess([one], "out", PreprocessConfig(workers=1), stop)
    assert "was made from" in refusal(other)


def test_an_input_that_is_gone_is_missed_only_where_none_is_left() -> None:
    paths = [corpus("one", {"a": "s"}), corpus("other", {"c": "t"})]
    preprocess(paths, "out")
    shutil.rmtree("other")
    report = preprocess(paths[:1], "out")
    unused = "1 file of earlier runs in no manifest now, such as "
    assert report.remarks == [f"{unused}{Path('out/audio/c.flac').absolute()}. Delete unneeded ones."]
    assert report.remarks[0] in report.summary()
    Path("one").rename("renamed")
    assert "was made from" in refusal("renamed/m.jsonl")
    assert preprocess(["renamed/m.jsonl"], "elsewhere").kept == 1


def test_both_folders_may_move_together() -> None:
    Path("here").mkdir()
    config = PreprocessConfig(split="50/50")
    preprocess([corpus("here/in", dict.fromkeys("abcdef", "s"))], "here/out", config)
    before = homes("here/out")
    Path("here").rename("there")
    corpus("there/in", dict.fromkeys("zyxabcdef", "s"))
    preprocess(["there/in/m.jsonl"], "there/out", config)
    assert {name: split for name, split in homes("there/out").items() if name in before} == before


def test_files_of_others_are_never_overwritten() -> None:
    one = corpus("one", {name: name for name in "abc"})
    Path("out").mkdir()
    for name, config in (("manifest.jsonl", None), ("test.jsonl", THIRDS)):
        Path("out", name).write_text("mine")
        assert f"out: {name} would be overwritten" in refusal(one, config=config)
        assert Path("out", name).read_text() == "mine"
        Path("out", name).unlink()
        preprocess([one], "out", config)
        preprocess([one], "out", config)


def grown(more: dict[str, Any]) -> tuple[dict[str, str], Report]:
    """Divide three speakers, then three and `more`; return the first division and the second report."""
    few = {f"{speaker}{number}": speaker for speaker in "abc" for number in range(3)}
    preprocess([corpus("in", few)], "out", THIRDS)
    before = homes()
    assert sorted(set(before.values())) == ["dev", "test", "train"]
    return before, preprocess([corpus("in", {**more, **few})], "out", THIRDS)


def test_a_grown_corpus_keeps_its_splits() -> None:
    before, report = grown({f"{speaker}{number}": speaker for speaker in "tuvwxyza" for number in range(3, 9)})
    after = homes()
    assert {name: split for name, split in after.items() if name in before} == before
    assert len(after) == report.kept == 57 and not report.rejects and not report.findings and not report.remarks
    speakers = {(name[0], split) for name, split in after.items()}
    assert len(speakers) == 10, "no speaker is in two splits"
    assert len({split for speaker, split in speakers if speaker in "tuvwxyz"}) == 3
    fresh = preprocess([Path("in/m.jsonl")], "fresh", THIRDS)
    assert fresh.kept == 57 and {name: homes("fresh")[name] for name in before} != before


def test_what_was_out_for_a_while_comes_back_to_its_split() -> None:
    few = {name: name for name in "abcdef"}
    preprocess([corpus("in", few)], "out", THIRDS)
    before = homes()
    preprocess([Path("in/m.jsonl")], "out", PreprocessConfig(split="40/30/30", by=["speaker"], min_seconds=0.225))
    assert 0 < len(homes()) < 6
    preprocess([corpus("in", {**{name: name for name in "uvwxyz"}, **few})], "out", THIRDS)
    assert {name: homes()[name] for name in before} == before


def test_a_newcomer_between_two_splits_is_left_out() -> None:
    few = [Utterance(Path(f"{name}.wav"), text, 0.0, 1.0, {"speaker": name}) for name, text in ("ax", "by", "cz")]
    shares, keys = [0.5, 0.25, 0.25], ["speaker", "text"]
    at_home = dict(enumerate(divide(few, shares, keys)))
    more = [
        Utterance(Path("n.wav"), text, 0.0, 1.0, {"speaker": name})
        for name, text in ("ay", "aw", "bw", "dw", "dv", "eu", "az")
    ]
    names = divide([*few, *more], shares, keys, range(10), at_home)
    assert names[:3] == list(at_home.values())
    assert names[3:] == ["", names[0], "", names[0], names[0], names[8], ""] and names[8]


def test_what_is_left_out_between_splits_is_told() -> None:
    before, report = grown({"n": {"speaker": "a", "text": "new"}})
    assert report.rejects == {} and homes()["n"] == before["a0"]
    config = PreprocessConfig(split="40/30/30", by=["speaker", "text"])
    lines = {name: {"speaker": name, "text": f"text {name}"} for name in "abcdef"}
    preprocess([corpus("in2", lines)], "out2", config)
    there = homes("out2")
    one, other = "a", next(name for name in "bcdef" if there[name] != there["a"])
    report = preprocess([corpus("in2", {**lines, "n": {"speaker": one, "text": f"text {other}"}})], "out2", config)
    assert report.rejects == {"between splits": 1} and not report.failures and homes("out2") == there
    assert "n.flac: shares its speaker or text with utterances of two splits" in report.summary()


def test_another_division_is_refused() -> None:
    lines = {name: name for name in "abcdef"}
    one = corpus("in", lines)
    preprocess([one], "out")
    preprocess([one], "out", THIRDS)
    before = homes()
    for config in (None, PreprocessConfig(split="40/30/30"), PreprocessConfig(split="60/40", by=["speaker"])):
        assert "--split 40/30/30 --by speaker. " in refusal(one, config=config)
    assert preprocess([one], "out", THIRDS).reused == 6 and homes() == before


def test_what_the_corpus_itself_moves_is_told_and_no_old_split_stays() -> None:
    one = corpus("in", {"a": {"split": "train"}, "b": {"split": "test"}, "c": {"split": "dev"}})
    preprocess([one], "out")
    assert "divided as in the corpus, without --split" in refusal(one, config=PreprocessConfig(split="40/30/30"))
    corpus("in", {"a": {"split": "train"}, "b": {"split": "train"}, "c": {"split": "dev"}})
    report = preprocess([one], "out")
    assert report.remarks == ["moved from test to train: 1 utterance, such as b.flac. Train again."]
    assert not Path("out/test.jsonl").exists() and homes() == {"a": "train", "b": "train", "c": "dev"}
    assert not preprocess([one], "out").remarks, "it is told once"


def test_the_manifest_is_named_once(run) -> None:
    result = run("preprocess", corpus("in", {"a": {"split": "train"}}), "-o", "out")
    assert result.out == f"{Path('out/manifest.jsonl').absolute()}\n"
    assert result.err.startswith("1 utterance, 0.0 minutes\nsplits: train.jsonl 1\n") and "manifest" not in result.err


def test_a_recording_stays_in_its_split_though_its_length_is_told_or_its_cues_are_corrected() -> None:
    config = PreprocessConfig(split="40/30/30")
    lines: dict[str, Any] = dict.fromkeys("abcdef", "s")
    preprocess([corpus("in", lines)], "out", config)
    before = homes()
    lengths = {name: {"duration": (3200 + 160 * number) / 16_000} for number, name in enumerate(lines)}
    newer = {name: {"duration": (3200 + 160 * (6 + number)) / 16_000} for number, name in enumerate("zyxwvuts")}
    report = preprocess([corpus("in", {**lengths, **newer})], "out", config)
    assert report.kept == 14 and {name: homes()[name] for name in before} == before
    cues = {name: {"offset": 0.01, "duration": row["duration"] - 0.02} for name, row in lengths.items()}
    preprocess([corpus("in", {**cues, **newer})], "out", config)
    assert {split for name, split in homes().items() if name[0] == "a"} == {before["a"]}


def test_another_part_of_a_recording_is_free() -> None:
    one = ("r.wav", 0.0, 1.0)
    assert _shared(one, ("r.wav", 0.4, 1.0)) == 0.6 and not _shared(one, ("r.wav", 0.6, 1.0))
    assert _shared(one, ("r.wav", 0.0, None)) == 1.0 and not _shared(one, ("r.wav", 1.0, None))
    assert _shared(("r.wav", 3.0, None), ("r.wav", 5.0, None)) and not _shared(one, ("r.wav", 0.95, 0.2))


def test_a_newcomer_inside_what_is_still_there_follows_its_speaker() -> None:
    def turns(*more: tuple[float, float, str]) -> Path:
        lines = []
        for number in range(6):
            soundfile.write(f"{number}.wav", np.sin(np.arange(16_000) * (0.1 + number / 50)), 1000)
            lines += [
                {
                    "audio_filepath": f"{number}.wav",
                    "text": "t",
                    "offset": start,
                    "duration": seconds,
                    "speaker": f"{who}{number}",
                }
                for start, seconds, who in [(0.0, 6.0, "a"), (10.0, 6.0, "b"), *more]
            ]
        Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return Path("t.jsonl")

    for more in ((), ((3.0, 1.0, "b"),)):
        preprocess([turns(*more)], "out", THIRDS)
        told = [(row["speaker"], split) for split in ("train", "dev", "test") for row in rows(f"out/{split}.jsonl")]
        assert len(told) == 12 + 6 * len(more) and len(set(told)) == 12


def test_a_second_run_gives_texts_of_one_part_the_same_files() -> None:
    one = corpus("in", {"a": {"duration": 0.2}})
    one.write_text("".join(one.read_text().replace("text of a", text) for text in ("x", "y", "z")))
    preprocess([one], "out")
    before = Path("out/manifest.jsonl").read_bytes()
    with Path("out/.preprocess.jsonl").open("a") as journal:
        journal.write('\n{"output": "audio/b.flac", "bytes": 1, "made_from": [], "result": {}}')
    assert preprocess([one], "out").reused == 3 and Path("out/manifest.jsonl").read_bytes() == before


def test_what_was_made_keeps_its_name_when_another_comes_before_it() -> None:
    """Else a run that is killed on the way leaves the old manifest with the new one's sound."""
    one, other = corpus("one", {"a": "s", "b": "s"}), corpus("other", {"a": "t", "c": "t"})
    preprocess([one], "out")
    whole, before = rows("out/manifest.jsonl"), {path: path.read_bytes() for path in Path("out/audio").iterdir()}
    report = preprocess([other, one], "out")
    assert report.reused == 2 and before == {path: path.read_bytes() for path in before}
    after = rows("out/manifest.jsonl")
    assert after[2:] == whole and [Path(row["audio_filepath"]).name for row in after[:2]] == ["a-2.flac", "c.flac"]
