"""Writes each benchmark's table into its own section of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
HEADER = """# Benchmarks

Each section is written by the script that it names; `make bench` runs them all but those that need a real engine,
which `make bench-engine` runs.
"""


def machine() -> str:
    """Return what the figures were measured on."""
    return f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


def write_section(name: str, markdown: str) -> None:
    """Replace the section called `name` on the benchmarks page by `markdown`, or append it."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEADER
    section = f"<!-- begin {name} -->\n\n{markdown.strip()}\n\n<!-- end {name} -->\n"
    pattern = re.compile(rf"<!-- begin {re.escape(name)} -->.*?<!-- end {re.escape(name)} -->\n", re.DOTALL)
    replaced, found = pattern.subn(lambda _: section, text)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(replaced if found else f"{text.rstrip()}\n\n{section}", encoding="utf-8")
