"""A user's own rows of the estimator's parameters go before every bundled one, and are told apart from one another."""

from __future__ import annotations

import pytest

from planner.catalog.gpus import load_gpus
from planner.errors import InputError
from planner.planning.estimate_points import read_question
from planner.profilers.efficiency import default_params
from planner.profilers.params_file import EfficiencyRow, parse_rows

A100 = load_gpus().get("A100-80GB")
HEADER = "parameter,scope,value,unit,source,reason\n"


def overhead_s(scope: str, version: str) -> float:
    row = EfficiencyRow(parameter="step_overhead_s", scope=scope, value=0.1, unit="s", source="", reason="")
    return (
        default_params().with_rows([row]).efficiency(A100, "vllm", link_kind="nvlink", version=version).step_overhead_s
    )


@pytest.mark.parametrize("version", ["0.5.0", "unstated", "0.11.0", ""])
@pytest.mark.parametrize("scope", ["vllm", "vllm/nvidia", "default", "VLLM"])
def test_a_row_for_an_engine_holds_for_all_of_its_releases(scope, version):
    assert overhead_s(scope, version) == 0.1


def test_a_narrower_row_of_ones_own_goes_before_a_wider_one():
    rows = [
        EfficiencyRow(parameter="step_overhead_s", scope=scope, value=value, unit="s", source="", reason="")
        for scope, value in (("vllm", 0.1), ("vllm@2024", 0.2))
    ]
    params = default_params().with_rows(rows)
    found = {v: params.efficiency(A100, "vllm", link_kind="nvlink", version=v).step_overhead_s for v in ("0.5", "0.11")}
    assert found == {"0.5": 0.2, "0.11": 0.1}


@pytest.mark.parametrize(("scope", "version"), [("vllm@2024", "0.11.0"), ("vllm/amd", "0.11.0"), ("sglang", "")])
def test_a_row_for_something_else_changes_nothing(scope, version):
    bundled = default_params().efficiency(A100, "vllm", link_kind="nvlink", version=version).step_overhead_s
    assert overhead_s(scope, version) == bundled


def test_the_same_row_twice_is_refused_with_both_lines():
    with pytest.raises(InputError, match="here twice, first in line 2") as error:
        parse_rows(HEADER + "step_overhead_s,vllm,0.1,s,,\nstep_overhead_s,VLLM,0.2,s,,\n", "rows.csv")
    assert error.value.where.line == 3


def test_a_row_without_a_version_is_of_today_for_a_user_and_of_2024_in_a_published_table():
    row = {
        "model": "Llama-3.1-8B", "gpu": "L40S", "engine": "vllm", "input_tokens": "500", "output_tokens": "200",
        "load_kind": "static_batch", "concurrency_or_rate": "16",
    }  # fmt: skip
    own = EfficiencyRow(parameter="step_overhead_s", scope="vllm", value=0.1, unit="s", source="", reason="")
    params = default_params()
    assert read_question(row, params).config.engine_version == "unstated"
    assert read_question(row, params, is_published=False).config.engine_version == ""
    assert read_question(row, params.with_rows([own])).config.engine_version == ""


def test_releases_named_by_a_word_are_todays():
    params = default_params()
    for version in ("nightly", "latest", "current"):
        assert params.is_release_fitted("vllm", version)
        named = params.efficiency(A100, "vllm", link_kind="nvlink", version=version)
        assert named == params.efficiency(A100, "vllm", link_kind="nvlink", version="")
    assert not params.is_release_fitted("vllm", "0.7.0")
