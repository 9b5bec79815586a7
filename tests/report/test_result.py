"""What the Python API returns."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from planner.errors import InputError, OutputExistsError
from planner.files.plan_document import plan_to_document
from planner.files.plan_schema import read_plan
from planner.report.result import SUFFIXES, PlanResult


@pytest.fixture
def result(catalog, today):
    return PlanResult(catalog, today)


def test_is_frozen(result):
    with pytest.raises(FrozenInstanceError):
        result.plan = None


def test_json_is_the_document(result, catalog):
    assert result.to_document() == plan_to_document(catalog)
    assert json.loads(result.to_json()) == result.to_document()
    assert result.to_json().endswith("}\n")


@pytest.mark.parametrize("name", ["melange", "catalog", "infeasible", "odd_names"])
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_saved_plans_are_read_back(name, suffix, request, today, tmp_path):
    plan = request.getfixturevalue(name)
    path = tmp_path / f"plan{suffix}"
    PlanResult(plan, today).save(path)
    assert plan_to_document(read_plan(path)) == plan_to_document(plan)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saves_by_suffix(suffix, result, tmp_path):
    path = tmp_path / f"plan{suffix.upper()}"
    result.save(str(path))
    starts = {
        ".json": "{",
        ".yaml": "schema_version: '1'",
        ".yml": "schema_version: '1'",
        ".csv": "service,",
        ".md": "## q1-fleet",
        ".html": "<!DOCTYPE html>",
    }
    assert path.read_text(encoding="utf-8").startswith(starts[suffix])


def test_never_overwrites_without_force(result, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        result.save(path)
    assert path.read_text() == "mine"
    result.save(path, force=True)
    assert read_plan(path).name == "q1-fleet"


def test_an_unknown_suffix_names_the_known_ones(result, tmp_path):
    with pytest.raises(InputError, match=r"\.xlsx.*\.json.*\.csv") as caught:
        result.save(tmp_path / "plan.xlsx")
    assert "plan.xlsx" in str(caught.value.where)


def test_notebooks_get_a_fragment_not_a_page(result):
    html = result._repr_html_()
    assert html.startswith('<div class="gpuplan"')
    assert "<html" not in html
    assert result.to_html().startswith("<!DOCTYPE html>")


def test_frame_and_csv_agree(result):
    frame = result.to_frame()
    assert list(frame.columns) == result.to_csv().splitlines()[0].split(",")
    assert len(result.to_routing_csv().splitlines()) == 7


def test_importing_the_result_imports_no_heavy_library():
    code = (
        "import sys, planner.report.result, planner.files.plan_document;"
        "print(sorted({'pandas', 'pydantic', 'jinja2', 'rich', 'ruamel', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
