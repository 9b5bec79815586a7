"""Every command and Python block that README and docs show runs, and ends as the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests_support import REPO, copy_user_files

PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(console|sh|bash|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXIT = re.compile(r"#\s*exits? (\d+)")
SETUP_COMMANDS = {"make", "pip", "python", "git", "cd"}
"""Shown to the reader, and covered by CI itself rather than from inside a test."""


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def command_lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    if any(line.startswith("$ ") for line in joined.splitlines()):
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


LONG_PAGES = ("docs/explanation/formulation.md", "docs/explanation/limits.md")
"""Half a minute each: `make test-slow` runs them."""


def pages():
    for page in PAGES:
        name = str(page.relative_to(REPO))
        yield pytest.param(page, id=name, marks=[pytest.mark.slow] if name in LONG_PAGES else [])


@pytest.mark.parametrize("page", list(pages()))
def test_commands_and_code_of(page, gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, str(page), "exec"), {})
            continue
        for line in command_lines(block):
            run_line(line, gpuplan)


def run_line(line, gpuplan):
    wanted = int(match[1]) if (match := EXIT.search(line)) else 0
    words = shlex.split(line, comments=True)
    if not words or words[0] in SETUP_COMMANDS:
        return
    assert words[0] == "gpuplan", f"the test cannot run {line!r}"
    target = None
    if ">" in words:
        at = words.index(">")
        words, target = words[:at], words[at + 1]
    if "|" in words:
        words = words[: words.index("|")]
    ran = gpuplan(*words[1:])
    assert ran.code == wanted, f"{line}\n{ran.out}\n{ran.err}"
    if target is not None:
        Path(target).write_text(ran.out, encoding="utf-8")


def test_readme_shows_the_two_commands_first():
    first = [
        line for language, block in blocks(REPO / "README.md") if language != "python" for line in command_lines(block)
    ]
    assert first[:2] == ["make demo", "make test"]


def test_every_command_is_documented():
    from planner.cli.main import COMMANDS

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [command for command in COMMANDS if f"gpuplan {command}" not in text]
