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
