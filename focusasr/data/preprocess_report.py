"""Results of `preprocess`: manifests, rejects, findings, report.json and the summary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from focusasr import __version__
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.data.corpus import Reject
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.data.quality import KINDS, Finding, PreparedUtterance, check, counts
from focusasr.data.splits import NAMES, SplitHistory, divide, parse_shares
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import SettingError
from focusasr.runtime.files import written_aside
from focusasr.runtime.settings import to_settings

FAILURES = frozenset(
    ("missing", "unreadable", "unreadable text", "broken row", "several texts")
)  # kinds that make the command fail
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

    @property
    def failed(self) -> bool:
        """Whether an utterance or file could not be read."""
        return self.failures > 0

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


@dataclass(frozen=True)
class Results:
    """The results of a run, in the order of its sources."""

    kept: list[PreparedUtterance]
    rejects: list[Reject]
    reused: int


def check_choices(config: PreprocessConfig) -> None:
    """Reject invalid settings before any work: SettingError."""
    if config.split is not None:
        parse_shares(config.split)
    for kind in config.drop or []:
        if kind not in KINDS:
            raise SettingError("drop", kind, ", ".join(KINDS))


def write_results(
    prepared: SplitHistory, results: Results, inputs: Sequence[object], config: PreprocessConfig
) -> Report:
    """Assign splits, run the checks, and write all results into the folder; the manifest is written last."""
    folder = prepared.folder
    kept, slow = _by_rate(results.kept, config)
    kept, between = _divided(kept, config, prepared)
    findings = check(kept)
    kept, dropped, findings = _without(kept, findings, config)
    rejects = [*results.rejects, *slow, *between, *dropped]
    splits = split_members(one.utterance for one in kept)
    prepared.remarks += _lacking(splits, config) if kept else []
    prepared.record(splits, [*RESULTS, *(f"{name}.jsonl" for name in splits)])
    report = Report(
        manifest=folder / "manifest.jsonl",
        rejects_file=folder / "rejects.jsonl",
        kept=len(kept),
        reused=results.reused,
        seconds=sum(one.measured.seconds for one in kept),
        rejects=dict(Counter(reject.kind for reject in rejects).most_common()),
        examples={reject.kind: reject.reason for reject in reversed(rejects)}
        | {f"found {finding.kind}": finding.reason for finding in reversed(findings)},
        splits={name: len(utterances) for name, utterances in splits.items()},
        findings=counts(findings),
        remarks=prepared.remarks,
    )
    facts = _facts(report, inputs, config)
    for name, utterances in splits.items():
        write_manifest(folder / f"{name}.jsonl", utterances)
    _write_rejects(folder / "rejects.jsonl", rejects)
    _write_json(folder / "report.json", {**facts, "found": [_to_json(kept, finding) for finding in findings]})
    _write_json(folder / "manifest.meta.json", facts)
    write_manifest(report.manifest, (one.utterance for one in kept))
    return replace(report, facts=facts, utterances=kept, found=findings)


def _by_rate(kept: list[PreparedUtterance], config: PreprocessConfig) -> tuple[list[PreparedUtterance], list[Reject]]:
    """Return the utterances within the range of characters per second, and rejects for the others."""
    low, high = config.min_rate or 0.0, config.max_rate or float("inf")
    rejects = []
    for one in kept:
        if not low <= one.rate <= high:
            reason = f"{one.utterance.audio.name}: {one.rate:.1f} characters per second, not {low:g} to {high:g}"
            rejects.append(Reject("speaking rate", reason, one.utterance.audio, one.utterance.text))
    return [one for one in kept if low <= one.rate <= high], rejects


def _divided(
    kept: list[PreparedUtterance], config: PreprocessConfig, prepared: SplitHistory
) -> tuple[list[PreparedUtterance], list[Reject]]:
    """Return the utterances with their splits, and rejects for new ones that would link two splits of earlier runs."""
    if config.split is None or not kept:
        return kept, []
    utterances = [one.utterance for one in kept]
    keys = config.by or []
    parts = [prepared.part(utterance) for utterance in utterances]
    divided, rejects = [], []
    for one, name in zip(
        kept, divide(utterances, parse_shares(config.split), keys, parts, prepared.homes), strict=True
    ):
        utterance = replace(one.utterance, extra={**one.utterance.extra, "split": name})
        if name:
            divided.append(replace(one, utterance=utterance))
        else:
            reason = f"{utterance.audio.name}: shares its {' or '.join(keys)} with utterances of two splits"
            rejects.append(Reject("between splits", reason, utterance.audio, utterance.text))
    return divided, rejects


def _lacking(splits: Mapping[str, object], config: PreprocessConfig) -> list[str]:
    """Return a warning that names empty splits, or nothing if each split has utterances."""
    wanted = NAMES[len(parse_shares(config.split))] if config.split else ()
    lacking = [f"{name}.jsonl" for name in wanted if name not in splits]
    if not lacking:
        return []
    few = f"too few different values of {', '.join(config.by)}" if config.by else "too few utterances"
    return [f"nothing for {', '.join(lacking)}: {few}. Add more, or change --split or --by."]


def _without(
    kept: list[PreparedUtterance], findings: list[Finding], config: PreprocessConfig
) -> tuple[list[PreparedUtterance], list[Reject], list[Finding]]:
    """Remove utterances with findings that `drop` names; return the others, the rejects and the other findings."""
    reasons = {finding.index: finding for finding in reversed(findings) if finding.kind in (config.drop or [])}
    if not reasons:
        return kept, [], findings
    utterances = {index: kept[index].utterance for index in sorted(reasons)}
    rejects = [Reject(reasons[i].kind, reasons[i].reason, one.audio, one.text) for i, one in utterances.items()]
    stays = [one for index, one in enumerate(kept) if index not in reasons]
    return stays, rejects, [finding for finding in check(stays) if finding.kind not in (config.drop or [])]


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


def _to_json(kept: Sequence[PreparedUtterance], finding: Finding) -> dict[str, Any]:
    return {"kind": finding.kind, "reason": finding.reason, "audio_filepath": str(kept[finding.index].utterance.audio)}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    with (
        written_aside(path) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as out,
    ):
        for reject in rejects:
            audio = {"audio_filepath": str(reject.audio)} if reject.audio else {}
            row = {**audio, "text": reject.text, "kind": reject.kind, "reason": reject.reason}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
