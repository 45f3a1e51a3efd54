"""Manifests, corpus readers and preprocessing.

A manifest is JSON Lines with NeMo's keys: `audio_filepath` (relative to the manifest, or absolute), `text`, `duration`
in seconds, and optionally `offset`, `channel` (counted from 0), `speaker`, `language` and `id`. Other keys are kept.

Layouts that `preprocess` reads: audio with a .txt, .lab or .json of the same name, long recordings with subtitles, CSV,
TSV and JSON Lines with columns of usual names (including NeMo and Hugging Face's metadata.jsonl), LibriSpeech,
LJSpeech, all releases of Common Voice, Kaldi folders, lhotse cuts and supervisions (with the extra `lhotse`). Commands
inside a corpus (Kaldi's pipes) are never run.

Output is 16 kHz, mono, 16 bit. Nothing else changes unless an option requests it, and manifest.meta.json records all
steps. Unusable utterances go to rejects.jsonl with a reason. Usable but suspicious ones are counted in report.json and
report.html (`quality.KINDS`), and `--drop` removes a kind.

An output folder belongs to its inputs and its `--split`. A later run with more inputs adds to it, and every utterance
stays in its split. A new utterance that `--by` would put into two splits is rejected. Other inputs, other split
settings and foreign files in the folder are errors. Nothing is lost, and no utterance moves from test into train.

Long recordings are cut by forced alignment of the whole transcript with the whole recording. On 4.6 minutes of an
audiobook (40 clips of LJ Speech, joined), each of 633 words went to the right segment, although the aligning model
(focusasr-alnum-en) cannot transcribe such sentences. Segments that fit badly are rejected (`--min-confidence`).

Reading order: manifest, corpus, corpus_readers, preprocess, splits, ctc_segmentation.
"""
