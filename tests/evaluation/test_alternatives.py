"""References with alternatives: each hypothesis is compared with the one that fits it best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focusasr.evaluation.alternatives import best_text


@pytest.mark.parametrize(
    ("reference", "hypothesis", "best"),
    [
        ("{ colour / color } of tea", "color of tea", "color of tea"),
        ("{colour / color} of tea", "nothing", "colour of tea"),
        ("i { uh / @ } see", "i see", "i see"),
        ("i (uh) see", "i uh see", "i uh see"),
        ("{ ten past one / one ten } and { a / b }", "one ten and b", "one ten and b"),
        ("him/her {and/or / or}", "him/her or", "him/her or"),
    ],
)
def test_the_alternative_with_the_fewest_errors_counts(reference: str, hypothesis: str, best: str) -> None:
    assert best_text(reference, hypothesis) == best


def test_many_choices_are_made_one_by_one() -> None:
    words = [f"w{number}" for number in range(20)]
    reference = " ".join(f"{{ x / {word} }}" for word in words)
    assert best_text(reference, " ".join(words)) == " ".join(words)


def test_choices_are_scored_and_ignored_time_is_not(run) -> None:
    stm = ["rec 1 a 0 2 { okay / ok } then", "rec 1 a 2 3 ignore_time_segment_in_scoring", "rec 1 a 3 4 bye"]
    Path("r.stm").write_text("\n".join(stm))
    Path("h.ctm").write_text("rec 1 0.1 0.2 ok\nrec 1 0.5 0.2 than\nrec 1 2.5 0.1 noise\nrec 1 3.5 0.1 bye\n")
    result = run("evaluate", "r.stm", "--hypotheses", "h.ctm", "--json")
    found = json.loads(result.out)
    assert (result.status, found["words"], found["substitutions"], found["insertions"]) == (0, 3, 1, 0)
    refused = run("evaluate", "r.stm", "--hypotheses", "h.ctm", "--against", "h.ctm")
    assert refused.status == 2 and "--against" in refused.err and not refused.out


def test_ids_in_both_files_are_no_words(run) -> None:
    Path("ref.txt").write_text("spk1_0001 the cat sat\nspk1_0002 hello world\nspk2_0001 do not go\n")
    Path("hyp.txt").write_text("spk2_0001 do not go\nspk1_0001 the cat sat\nspk1_0002 hello word\n")
    result = run("evaluate", "ref.txt", "--hypotheses", "hyp.txt", "--json")
    assert (result.status, json.loads(result.out)["wer"]) == (0, 1 / 8)
