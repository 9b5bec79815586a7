from __future__ import annotations

import subprocess
import sys

import pytest

import planner


def test_all_is_what_can_be_imported():
    assert sorted(planner.__all__) == dir(planner) == sorted(planner._HOMES)
    for name in planner.__all__:
        assert getattr(planner, name).__name__ == name


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        planner.nope  # noqa: B018


def test_importing_planner_reads_no_data_and_no_solver():
    script = "import planner, sys; print([m for m in ('ortools', 'pandas', 'pydantic', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
