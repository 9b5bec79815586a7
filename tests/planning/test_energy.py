"""Electricity in requests: what is known, what the user states, and what is said where neither is."""

from __future__ import annotations

from datetime import date

import pytest

import planner
from planner.errors import InputError

AS_OF = date(2026, 11, 19)


def request(**changes):
    """A small request on two owned machines, in two halls."""
    document = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "workload": {"constant": {"input_tokens": 500, "output_tokens": 200}, "rate": "12 req/s"},
                "slo": ["ttft p99 <= 2s", "tpot p95 <= 60ms"],
            }
        ],
        "catalog": {
            "bundled": False,
            "owned": [
                {"gpu": "H100-80GB", "count": 8, "gpus_per_instance": 1, "region": "old-hall", "price": "1.00 USD/h"},
                {"gpu": "H100-80GB", "count": 8, "gpus_per_instance": 1, "region": "new-hall", "price": "1.05 USD/h"},
            ],
        },
    }
    for key, value in changes.items():
        document[key] = document[key] | value if key in document and isinstance(value, dict) else value
    return document


def planned(document, **given):
    return planner.plan(document, today=AS_OF, **given).plan


def test_the_users_site_decides_power_and_emissions():
    sites = {"old-hall": {"pue": 2.0, "carbon": "500 g/kWh"}, "new-hall": {"pue": 1.1}}
    catalog = request()["catalog"] | {"sites": sites}
    plan = planned(request(catalog=catalog))
    (row,) = plan.allocation
    assert row.region == "old-hall"
    load = row.utilization * row.replicas
    assert plan.mean_power_w == pytest.approx(2.0 * (117 * row.replicas + (693 - 117) * load))
    assert plan.carbon_kg_per_hour == pytest.approx(plan.mean_power_w / 1000 * 0.5)
    assert planned(request()).mean_power_w == pytest.approx(plan.mean_power_w / 2.0 * 1.58)


def test_a_region_of_unknown_intensity_is_said():
    result = planner.plan(request(), today=AS_OF)
    assert result.plan.carbon_kg_per_hour is None
    assert result.plan.carbon_unknown_w == result.plan.mean_power_w > 0
    assert "not known in old-hall (owned)" in result.to_markdown()
    assert "on average with PUE" in result.to_markdown()
    assert any("linear in their load" in text for text in result.plan.assumptions)


def test_a_site_without_machines_is_refused():
    catalog = request()["catalog"] | {"sites": {"new-hal": {"pue": 1.1}}}
    with pytest.raises(InputError, match="no offer in the region 'new-hal'") as caught:
        planned(request(catalog=catalog))
    assert "new-hall" in str(caught.value.hint)
    assert caught.value.where.field == "catalog.sites.new-hal"


@pytest.mark.parametrize("site", [{"pue": 0.9}, {"carbon": "230"}, {"carbon": "-1 g/kWh"}, {"carbn": "1 g/kWh"}])
def test_wrong_sites_are_refused(site):
    with pytest.raises(InputError):
        planned(request(catalog=request()["catalog"] | {"sites": {"old-hall": site}}))
