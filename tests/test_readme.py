"""The READMEs: short, in plain English, and every path, command and figure in them exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from focusasr.cli import app
from focusasr.config import DEFAULT_CHECKPOINT

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
READMES = [README, *sorted((ROOT / "scripts").glob("*/README.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FOREIGN_WORDS = re.compile(
    r"sister|anew|\btold\b|\btells?\b|\bsaid\b|\bsays?\b|\b(un)?heard\b|\bhears?\b|parted|\bbeside\b|of use|wanted:"
    r"|\bgo(es|ne)? on\b|\bbegun\b|\blies?\b|\bhonest|\bfor ever\b|\bat hand\b|\bby turns\b|\bnobody\b|\bso many\b"
    r"|\bcomes? along\b|\bcame about\b|\bother throats\b|\bin good order\b|(?<![-\w])rooms?\b",
    re.I,
)
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in vars(typer.main.get_command(app.app))["commands"].items()
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each focusasr command in the shell blocks, without what follows a pipe."""
    for language, block in BLOCK.findall(text):
        if language in ("sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                starts = [at for at, word in enumerate(words) if Path(word).name == "focusasr" and words[at + 1 :]]
                yield from (words[at + 1 :] for at in starts)


def inline_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each focusasr command in the text; one that starts with an option belongs to any command."""
    for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text)):
        words = code.split()
        if words[0] == "focusasr" and words[1:] and words[1] in OPTIONS:
            yield words[1:]
        elif words[0] in OPTIONS or words[0].startswith("--"):
            yield words


COMMANDS = [
    pytest.param(words, id=f"{named(path)}: {shlex.join(words)}")
    for path in READMES
    for find in (shell_commands, inline_commands)
    for words in find(path.read_text(encoding="utf-8"))
]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100
    assert ";" not in text


@pytest.mark.parametrize("path", READMES, ids=named)
def test_readme_uses_words_of_the_field(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [(number, found[0]) for number, line in enumerate(lines, 1) if (found := FOREIGN_WORDS.search(line))]


@pytest.mark.parametrize("path", READMES, ids=named)
def test_readme_links_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for link in (link for link in links if "://" not in link):
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", READMES, ids=named)
def test_readme_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w./-])(?:scripts|tests|focusasr|checkpoints)/[\w./-]*\w", text)
    assert not [place for place in paths if place != "scripts/checks/NAME.py" and not (ROOT / place).exists()]
    scripts = re.findall(r"(?<=`)[a-z_]+\.(?:py|sh|toml|png)(?=[` ])", text)
    assert path == README or not [name for name in scripts if not list(path.parent.rglob(name))]


@pytest.mark.parametrize("words", COMMANDS)
def test_readme_command_and_its_options_exist(words: list[str]) -> None:
    if words[0].startswith("--"):
        known = set().union(*OPTIONS.values()) | {"--debug"}
    else:
        assert words[0] in {*OPTIONS, "COMMAND", "--help"}
        known = OPTIONS.get(words[0], set()) | {"--help"}
    options = [word for word in words if re.match(r"--?[A-Za-z]", word)]
    assert not [option for option in options if option.replace("_", "-") not in known]


def test_readme_results_are_those_of_the_model_card() -> None:
    card = (ROOT / "checkpoints" / DEFAULT_CHECKPOINT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", README.read_text(encoding="utf-8"), re.M)
    assert rows
    for name, figure in rows:
        (measured,) = re.findall(rf"^\| {name}(?:/test)? \|.*$", card, re.M)
        assert figure in measured, name
