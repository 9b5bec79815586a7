"""docs/reference/warnings.md lists the codes that exist, and no others."""

import re
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_every_code_is_documented_and_every_documented_code_exists():
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((REPO / "planner").rglob("*.py")))
    used = set(re.findall(r"[\"'](W\d{3})[\"']", code))
    page = (REPO / "docs" / "reference" / "warnings.md").read_text(encoding="utf-8")
    assert used == set(re.findall(r"^\| (W\d{3}) \|", page, re.MULTILINE))
