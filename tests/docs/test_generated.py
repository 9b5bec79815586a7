from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
from ruamel.yaml import YAML
from tests_support import REPO


def test_the_request_page_is_generated_from_the_schemas():
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=REPO, check=False)
    assert done.returncode == 0, "docs/reference/request.md is out of date: run `make docs`"


def test_committed_schemas_are_those_of_the_code(gpuplan):
    assert gpuplan("schema", "--check", REPO / "docs/schemas/v1").code == 0


def test_schema_drift_is_seen(gpuplan, tmp_path):
    assert gpuplan("schema", "--write", tmp_path).code == 0
    assert gpuplan("schema", "--check", tmp_path).code == 0
    path = tmp_path / "plan.schema.json"
    path.write_text(path.read_text(encoding="utf-8").replace("gap", "gup"), encoding="utf-8")
    assert gpuplan("schema", "--check", tmp_path).code == 5


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_requests_match_the_json_schema(path, gpuplan):
    schema = gpuplan("schema", "plan-request").json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(YAML(typ="safe").load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("melange*.json")), ids=lambda path: path.name)
def test_example_melange_configs_match_the_json_schema(path, gpuplan):
    schema = gpuplan("schema", "melange-config").json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), schema)


def test_the_json_schema_refuses_what_the_reader_refuses(gpuplan):
    schema = gpuplan("schema", "plan-request").json
    request = YAML(typ="safe").load((REPO / "examples/request.yaml").read_text(encoding="utf-8"))
    request["catalgo"] = {}
    with pytest.raises(jsonschema.ValidationError, match="catalgo"):
        jsonschema.validate(request, schema)
