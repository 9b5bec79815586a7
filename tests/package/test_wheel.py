"""The main job, from the wheel, in an empty directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest
from tests_support import REPO


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPO)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (path,) = folder.glob("gpuplan-*.whl")
    return path


def test_the_wheel_holds_the_data_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("catalogs/gpus.csv", "profiles/SOURCES.md", "examples/request.yaml", "examples/traces/SOURCES.md"):
        assert f"planner/_data/{wanted}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "tests" in name or "benchmarks" in name]


def test_the_main_job_from_the_wheel_in_an_empty_directory(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def gpuplan(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "planner.cli.main", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-P", "-c", "import planner; print(planner.__file__)"],
        cwd=empty, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site)), "the source checkout was used instead of the wheel"
    gpuplan("init", "-o", "request.yaml")
    plan = json.loads(
        gpuplan("plan", "request.yaml", "--no-verify", "--json", "-o", "plan.csv", "--as-of", "2026-11-21")
    )
    assert plan["status"] == "optimal"
    assert plan["allocation"]
    assert (empty / "plan.csv").read_text(encoding="utf-8").count("\n") == len(plan["allocation"]) + 1
