"""Warnings about what a plan rents."""

from __future__ import annotations

import pytest

import planner

SERVICE = {
    "name": "chat",
    "model": "meta-llama/Llama-3.1-8B",
    "workload": {"constant": {"input_tokens": 500, "output_tokens": 100}, "rate": "5 req/s"},
    "slo": ["ttft p99 <= 2s"],
}


def plan(*gpus, tmp_path=None, **catalog):
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [SERVICE],
        "catalog": {"gpus": {"include": list(gpus)}, **catalog},
    }
    return planner.plan(request, base_dir=tmp_path).plan


def codes(found):
    return [warning.code for warning in found.warnings if warning.code.startswith("W4")]


@pytest.mark.parametrize(("market", "expected"), [("spot", ["W402"]), ("on-demand", [])])
def test_spot_capacity_is_warned_of_where_it_is_used(market, expected, tmp_path):
    rows = ["provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour", "acme,dear,dc1,spot,L4,1,9"]
    rows += [f"acme,box,dc1,{market},L4,1,0.5"]
    (tmp_path / "prices.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    own = {"bundled": False, "files": ["prices.csv"], "markets": ["on-demand", "spot"]}
    found = plan("L4", tmp_path=tmp_path, **own)
    assert codes(found) == expected
    if expected:
        (warning,) = (warning for warning in found.warnings if warning.code == "W402")
        assert warning.observed == sum(rental.instances for rental in found.rentals)
        assert "taken back" in warning.message


def test_unlimited_availability_is_an_assumption():
    assert any("available in any number" in line for line in plan("L4").assumptions)


def test_an_architecture_without_measurements_is_warned_of_where_it_is_used(tmp_path):
    found = plan("MI300X")
    (warning,) = (warning for warning in found.warnings if warning.code == "W403")
    assert warning.observed == "MI300X"
    assert "not checked against any measurement on CDNA3" in warning.message
    assert all("none was fitted on CDNA3" in allocation.provenance_note for allocation in found.allocation)
    for fitted in ("L4", "A100-80GB", "H100-80GB"):
        assert codes(plan(fitted)) == []


def test_ones_own_measurement_of_the_architecture_is_a_check(tmp_path):
    rows = ["model,gpu,gpu_count,tp,pp,engine,precision,input_tokens,output_tokens,load_kind,throughput_req_s"]
    rows += ["Llama-3.1-8B,MI300X,1,1,1,vllm,bf16,1000,200,offline_max,10"]
    (tmp_path / "mine.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [SERVICE],
        "catalog": {"gpus": {"include": ["MI300X"]}},
        "profiles": {"files": ["mine.csv"]},
    }
    assert codes(planner.plan(request, base_dir=tmp_path).plan) == []
    request["profiles"]["prefer"] = "estimated"
    assert codes(planner.plan(request, base_dir=tmp_path).plan) == ["W403"]
