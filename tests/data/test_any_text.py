"""Readers of texts, tables and segments bear any content: utterances, rejects, or one line of refusal."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.corpus_readers import read_corpora
from focusasr.data.segment_files import read_segments
from focusasr.evaluation.hypotheses import read_hypotheses, read_references
from focusasr.runtime.errors import InputError

WORDS = (
    "0 1.5 -1 1e999 0:01:02.5 a.wav path text start end audio id é <exists> ooTextFile <TIER> </TIER> ;; (u1) "
    'ignore_time_segment_in_scoring "TextGrid" "IntervalTier"'
).split()
PIECES = st.sampled_from([*WORDS, *'\n\t ,;|"{}[]:\0\ud800', "rec 1 a 0 1 ", "{ a / b }", "9" * 400])
CONTENT = st.lists(PIECES, max_size=30).map("".join)


def written(name: str, content: str) -> Path:
    path = Path(tempfile.mkdtemp(dir=".")) / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    return path.absolute()


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".TextGrid", ".eaf", ".txt", ".lab", ".tsv"])
@settings(max_examples=25, deadline=None)
@given(CONTENT)
def test_segments_of_any_content(suffix: str, content: str) -> None:
    path = written(f"a{suffix}", content)
    for item in read_segments(Path("a.wav"), path, "a"):
        assert isinstance(item, CorpusUtterance) or "\n" not in item.reason


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.jsonl", "t.stm", "data.list"])
@settings(max_examples=25, deadline=None)
@given(CONTENT)
def test_tables_of_any_content(name: str, content: str) -> None:
    try:
        items = list(read_corpora([written(name, content)]))
    except InputError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert all(isinstance(item, (CorpusUtterance, Reject)) for item in items)


@pytest.mark.parametrize("name", ["t.txt", "text", "t.trn", "t.stm", "t.ctm", "t.srt", "t.json", "t.tsv"])
@settings(max_examples=25, deadline=None)
@given(CONTENT, CONTENT)
def test_texts_of_any_content(name: str, one: str, other: str) -> None:
    try:
        references = read_references(written(name, one))
        assert len(read_hypotheses(written(name, other), references)) == len(references)
    except InputError as refusal:
        assert "\n" not in str(refusal)
