"""Results of `preprocess`: manifests, rejects, findings, report.json and the summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from focusasr import __version__
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.data.corpus import Reject, each
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.data.quality import KINDS, Finding, PreparedUtterance, check
from focusasr.data.splits import NAMES, SplitHistory, divide, parse_shares
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import SettingError
from focusasr.runtime.files import write_json, write_lines, written_aside
from focusasr.runtime.settings import to_settings

# kinds of rejects that make the command fail
FAILURES = frozenset(("missing", "unreadable", "unreadable text", "broken row", "several texts"))
RESULTS = ("manifest.jsonl", "manifest.meta.json", "rejects.jsonl", "report.json", "report.html")


@dataclass(frozen=True)
class Report:
    """The result of one run; `reused` of the `kept` are from earlier runs, rejects and findings are counted by kind."""

    manifest: Path
    rejects_file: Path
    kept: int
    reused: int
    seconds: float
    rejects: dict[str, int]
    examples: dict[str, str]  # the first reason of each kind
    splits: dict[str, int]
    findings: dict[str, int]
    remarks: list[str]  # on earlier runs
    facts: dict[str, Any] = field(default_factory=dict, repr=False)  # these and the rest are for report.html
    utterances: Sequence[PreparedUtterance] = ()
    found: Sequence[Finding] = ()

    @property
    def failures(self) -> int:
        """The number of unreadable utterances or files; too short, too long, empty or repeated ones are no failure."""
        return sum(count for kind, count in self.rejects.items() if kind in FAILURES)

    def summary(self) -> str:
        """Return printable lines: kept utterances, and rejects and findings with counts by kind."""
        before = f", {self.reused} of them from earlier runs" if self.reused else ""
        length = f"{self.seconds / 3600:.2f} hours" if self.seconds >= 3600 else f"{self.seconds / 60:.1f} minutes"
        lines = [f"{pluralize(self.kept, 'utterance')}, {length}{before}"]
        if self.splits:
            told = ", ".join(f"{name}.jsonl {count}" for name, count in self.splits.items())
            lines.append(f"splits: {told}")
        lines += self.remarks
        if self.rejects:
            lines.append(f"{self.rejects_file}: {sum(self.rejects.values())} rejected")
        lines += [f"  {count} {kind}, as {self.examples[kind]}" for kind, count in self.rejects.items()]
        if self.findings:
            page = self.manifest.with_name("report.html")
            found = pluralize(sum(self.findings.values()), "finding")
            lines.append(f"{page}: {found} in kept utterances (--drop KIND rejects them)")
        lines += [f"  {count} {kind}, as {self.examples[f'found {kind}']}" for kind, count in self.findings.items()]
        return "\n".join(lines)


def check_choices(config: PreprocessConfig) -> None:
    """Reject invalid settings before any work: SettingError."""
    if config.split is not None:
        parse_shares(config.split)
    for kind in config.drop or []:
        if kind not in KINDS:
            raise SettingError("drop", kind, ", ".join(KINDS))


def write_results(
    history: SplitHistory,
    items: list[PreparedUtterance | Reject],
    reused: int,
    inputs: Sequence[object],
    config: PreprocessConfig,
) -> Report:
    """Assign splits, run the checks, and write all results into the folder; the manifest is written last."""
    folder = history.folder
    items = _divided(list(each(items, lambda one: _at_rate(one, config))), config, history)
    kept = [item for item in items if isinstance(item, PreparedUtterance)]
    findings = check(kept)
    dropped: dict[int, Reject] = {}
    for finding in findings:
        if finding.kind in (config.drop or []):
            one = kept[finding.index]
            dropped.setdefault(finding.index, Reject(finding.kind, finding.reason, one.output, one.utterance.text))
    rejects = [*(item for item in items if isinstance(item, Reject)), *dropped.values()]
    findings = [one for one in findings if one.index not in dropped]
    found = [
        {"kind": one.kind, "reason": one.reason, "audio_filepath": str(kept[one.index].output)} for one in findings
    ]
    kept = [one for index, one in enumerate(kept) if index not in dropped]
    splits = split_members(one.utterance for one in kept)
    history.remarks += _lacking(splits, config) if kept else []
    history.record(splits, [*RESULTS, *(f"{name}.jsonl" for name in splits)])
    report = Report(
        manifest=folder / "manifest.jsonl",
        rejects_file=folder / "rejects.jsonl",
        kept=len(kept),
        reused=reused,
        seconds=sum(one.measured.seconds for one in kept),
        rejects=dict(Counter(reject.kind for reject in rejects).most_common()),
        examples={reject.kind: reject.reason for reject in reversed(rejects)}
        | {f"found {finding.kind}": finding.reason for finding in reversed(findings)},
        splits={name: len(utterances) for name, utterances in splits.items()},
        findings=dict(Counter(finding.kind for finding in findings)),
        remarks=history.remarks,
    )
    facts = _facts(report, inputs, config)
    for name, utterances in splits.items():
        write_manifest(folder / f"{name}.jsonl", utterances)
    write_lines(report.rejects_file, _rejects_as_json(rejects))
    for name, value in (("report.json", {**facts, "found": found}), ("manifest.meta.json", facts)):
        with written_aside(folder / name) as aside:
            write_json(aside, value)
    write_manifest(report.manifest, (one.utterance for one in kept))
    return replace(report, facts=facts, utterances=kept, found=findings)


def _at_rate(one: PreparedUtterance, config: PreprocessConfig) -> PreparedUtterance:
    low, high = config.min_rate or 0.0, config.max_rate or float("inf")
    if not low <= one.rate <= high:
        raise one.reject("speaking rate", f"{one.rate:.1f} characters per second, not {low:g} to {high:g}")
    return one


def _divided(
    items: list[PreparedUtterance | Reject], config: PreprocessConfig, history: SplitHistory
) -> list[PreparedUtterance | Reject]:
    """Assign the splits; new utterances that would link two splits of earlier runs become rejects."""
    utterances = [one.utterance for one in items if isinstance(one, PreparedUtterance)]
    if config.split is None or not utterances:
        return items
    keys = config.by or []
    parts = [history.part(utterance) for utterance in utterances]
    names = iter(divide(utterances, parse_shares(config.split), keys, parts, history.homes))

    def with_split(one: PreparedUtterance) -> PreparedUtterance:
        name = next(names)
        if not name:
            raise one.reject("between splits", f"shares its {' or '.join(keys)} with utterances of two splits")
        one.utterance.extra["split"] = name
        return one

    return list(each(items, with_split))


def _lacking(splits: Mapping[str, object], config: PreprocessConfig) -> list[str]:
    """Return a warning that names empty splits, or nothing if each split has utterances."""
    wanted = NAMES[len(parse_shares(config.split))] if config.split else ()
    lacking = [f"{name}.jsonl" for name in wanted if name not in splits]
    if not lacking:
        return []
    few = f"too few different values of {', '.join(config.by)}" if config.by else "too few utterances"
    return [f"nothing for {', '.join(lacking)}: {few}. Add more, or change --split or --by."]


def split_members(utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    """Return the utterances of each split whose name is a valid file name."""
    splits: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        name = utterance.extra.get("split")
        if isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,60}", name) and name not in ("manifest", "rejects"):
            splits.setdefault(name, []).append(utterance)
    return splits


def _facts(report: Report, inputs: Sequence[object], config: PreprocessConfig) -> dict[str, Any]:
    """Return the facts about the manifest for its header file and the report."""
    return {
        "focusasr": __version__,
        "inputs": [str(given) for given in inputs],
        "utterances": report.kept,
        "hours": round(report.seconds / 3600, 4),
        "steps": steps(config),
        "settings": to_settings(config),
        "splits": report.splits,
        "rejects": report.rejects,
        "findings": report.findings,
    }


def steps(config: PreprocessConfig) -> list[str]:
    """Return the processing steps of each utterance, in order."""
    done = ["decode", "mean of the channels" if config.channel is None else f"channel {config.channel}"]
    if config.split_seconds is not None:
        done.append(f"cut at pauses where longer than {config.split_seconds:g} s, aligned by {config.align_with}")
    done.append(f"resample to {SAMPLE_RATE_HZ} Hz where it has another rate (soxr, HQ)")
    if config.trim_silence:
        done.append("cut silence off before and after speech (silero-vad)")
    if config.loudness == "ebu":
        done.append(f"loudness {config.lufs:g} LUFS (EBU R128), peaks at most {config.peak_db:g} dB of full scale")
    if config.loudness == "peak":
        done.append(f"peak {config.peak_db:g} dB of full scale")
    done.append(f"16 bit {config.format.upper()}")
    done.append(f"text: single spaces, case {config.case}, punctuation {config.punctuation}")
    return done


def _rejects_as_json(rejects: Iterable[Reject]) -> Iterator[dict[str, Any]]:
    for reject in rejects:
        audio = {"audio_filepath": str(reject.audio)} if reject.audio else {}
        yield {**audio, "text": reject.text, "kind": reject.kind, "reason": reject.reason}
