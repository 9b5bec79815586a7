"""Electricity in requests: what is known, what the user states, and what is said where neither is."""

from __future__ import annotations

from datetime import date

import pytest
from tests_support import copy_user_files

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


SITES = {"old-hall": {"pue": 1.5, "carbon": "700 g/kWh"}, "new-hall": {"pue": 1.1, "carbon": "30 g/kWh"}}


def with_sites(**changes):
    return request(catalog=request()["catalog"] | {"sites": SITES}, **changes)


def halls(plan):
    return {row.region for row in plan.allocation}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({}, {"old-hall"}),
        ({"constraints": {"carbon": {"max": "0.1 kg/h"}}}, {"new-hall"}),
        ({"constraints": {"carbon": {"price": "300 USD/t"}}}, {"new-hall"}),
        ({"constraints": {"carbon": {"price": "1 USD/t"}}}, {"old-hall"}),
        ({"objective": "carbon"}, {"new-hall"}),
        ({"objective": {"minimise": {"cost": 1, "carbon": 5}}}, {"new-hall"}),
        ({"objective": ["energy", "cost"]}, {"new-hall"}),
    ],
    ids=str,
)
def test_carbon_in_requests(changes, where):
    if isinstance(changes.get("objective"), list):
        changes = {"objective": {"minimise": changes["objective"]}}
    assert halls(planned(with_sites(**changes))) == where


def test_the_price_of_electricity_decides_between_own_sites():
    dear = SITES | {"old-hall": {"pue": 1.5, "energy_price": "0.40 USD/kWh"}}
    plan = planned(request(catalog=request()["catalog"] | {"sites": dear}))
    assert halls(plan) == {"new-hall"}
    assert plan.energy_usd_per_hour == 0.0
    dear["new-hall"] = {"pue": 1.1, "energy_price": "0.40 USD/kWh"}
    plan = planned(request(catalog=request()["catalog"] | {"sites": dear}))
    assert plan.energy_usd_per_hour == pytest.approx(plan.mean_power_w / 1000 * 0.4)
    assert any("0.4 USD/kWh on top" in text for text in plan.assumptions)


def test_a_budget_that_cannot_hold_names_itself_and_what_would_do():
    result = planner.plan(with_sites(constraints={"carbon": {"max": "0.01 kg/h"}}), today=AS_OF)
    names = [conflict.requirement for conflict in result.plan.conflicts]
    assert names[0] == "carbon <= 0.01 kg/h"
    assert result.plan.conflicts[0].relaxed < 0.1


def test_places_of_unknown_intensity_are_left_out_where_carbon_counts():
    sites = {"new-hall": SITES["new-hall"]}
    document = request(catalog=request()["catalog"] | {"sites": sites}, constraints={"carbon": {"price": "1 USD/t"}})
    plan = planned(document)
    assert halls(plan) == {"new-hall"}
    (warning,) = [item for item in plan.warnings if item.code == "W205"]
    assert "old-hall (owned)" in warning.message
    with pytest.raises(InputError, match="not known in new-hall"):
        planned(request(constraints={"carbon": {"max": "1 kg/h"}}))
    assert halls(planned(request(constraints={"carbon": {"price": "0 USD/t"}}))) == {"old-hall"}


@pytest.mark.parametrize(
    "constraints",
    [{"carbon": {}}, {"carbon": {"max": "12"}}, {"carbon": {"max": "1 kW"}}, {"energy": {"max": "3 kW"}}],
    ids=str,
)
def test_wrong_limits_are_refused(constraints):
    with pytest.raises(InputError):
        planned(with_sites(constraints=constraints))


@pytest.mark.slow
def test_the_example_and_its_front(gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    plan = gpuplan("plan", "examples/carbon.yaml", "--no-verify", "--json", "--as-of", "2026-11-19").json
    assert plan["status"] == "optimal"
    assert plan["carbon_kg_per_hour"] <= 0.5
    assert plan["energy_usd_per_hour"] > 0
    done = gpuplan("sweep", "examples/carbon.yaml", "--pareto", "cost,carbon", "--points", "3", "-o", "front.csv")
    assert done.code == 0
    head, *lines = (tmp_path / "front.csv").read_text(encoding="utf-8").splitlines()
    column = head.split(",").index("carbon_kg_per_hour")
    emitted = [float(line.split(",")[column]) for line in lines]
    assert emitted == sorted(emitted, reverse=True)
    assert emitted


def test_the_load_goes_where_electricity_is_clean_at_that_hour(gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = gpuplan("plan", "examples/carbon_day.yaml", "-o", "plan.json", "--as-of", "2026-11-19")
    assert done.code == 0
    assert "kg CO2e/h" in done.out
    plan = planner.read_plan("plan.json")
    where = [{item.offer.split("/")[2] for item in period.rentals} for period in plan.schedule]
    assert (where[2], where[12]) == ({"coast"}, {"desert"})
    assert plan.carbon_kg_per_hour == pytest.approx(
        sum(period.carbon_kg_per_hour for period in plan.schedule) / len(plan.schedule)
    )
    assert "carbon/synthetic_day.csv" in plan.inputs["files"]
    assert gpuplan("explain", "plan.json").code == 0


DAY = {"horizon": {"periods": "2h", "step": "1h"}, "constraints": {"carbon": {"price": "100 USD/t"}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("region,hour\nold-hall,0\n", "The columns are region, hour"),
        ("region,hour,g_per_kwh\n", "no intensities"),
        ("region,hour,g_per_kwh\nold-hall,1,300\n", "Hour 0 of old-hall is missing"),
        ("region,hour,g_per_kwh\nold-hall,0,-3\n", "negative"),
        ("region,hour,g_per_kwh\nold-hall,0,many\n", "not a finite number"),
        ("region,hour,g_per_kwh\n" + "".join(f"old-hall,{h},1\n" for h in range(1)), None),
        (None, "cannot be read"),
    ],
    ids=str,
)
def test_hours_that_cannot_be_read(tmp_path, text, message):
    if text is not None:
        (tmp_path / "hours.csv").write_text(text, encoding="utf-8")
    catalog = request()["catalog"] | {"sites": SITES, "carbon_by_hour": "hours.csv"}
    document = request(catalog=catalog, **DAY)
    if message is None:
        assert planned(document, base_dir=tmp_path).carbon_kg_per_hour > 0
        return
    with pytest.raises(InputError, match=message):
        planned(document, base_dir=tmp_path)


def test_hours_of_regions_without_machines_are_refused(tmp_path):
    rows = "".join(f"old-hal,{hour},100\n" for hour in range(24))
    (tmp_path / "hours.csv").write_text(f"region,hour,g_per_kwh\n{rows}", encoding="utf-8")
    catalog = request()["catalog"] | {"sites": SITES, "carbon_by_hour": "hours.csv"}
    with pytest.raises(InputError, match="no offer in any region of hours") as caught:
        planned(request(catalog=catalog, **DAY), base_dir=tmp_path)
    assert caught.value.where.field == "catalog.carbon_by_hour"


def test_hours_need_a_horizon_and_steps_take_their_mean(tmp_path):
    rows = "".join(f"{region},{hour},{grams}\n" for region in SITES for hour, grams in enumerate((100, 300)))
    (tmp_path / "hours.csv").write_text(f"region,hour,g_per_kwh\n{rows}", encoding="utf-8")
    catalog = request()["catalog"] | {"carbon_by_hour": "hours.csv"}
    with pytest.raises(InputError, match="no horizon"):
        planned(request(catalog=catalog), base_dir=tmp_path)
    plan = planned(request(catalog=catalog, horizon={"periods": "4h", "step": "2h"}), base_dir=tmp_path)
    for period in plan.schedule:
        assert period.carbon_kg_per_hour == pytest.approx(period.mean_power_w / 1000 * 0.2)


def service_with(**engine):
    service = request()["services"][0] | {"engine": engine}
    service["workload"] = service["workload"] | {"rate": "80 req/s"}
    return [service]


def test_power_limits_let_more_be_served_where_power_is_short(tmp_path):
    tight = {"constraints": {"power": {"old-hall": "1.9kW", "new-hall": "0W"}}}
    assert planned(request(services=service_with(), **tight)).status == "infeasible"
    plan = planned(request(services=service_with(power_caps=["100%", "350W"]), **tight))
    assert plan.status == "optimal"
    assert {row.power_cap_w for row in plan.allocation} >= {350.0}
    assert plan.power_w <= 1900
    assert any("slows arithmetic" in text for text in plan.assumptions)
    # Without a limit on power the slower machines are not worth having.
    free = planned(request(services=service_with(power_caps=["100%", "50%"])))
    assert {row.power_cap_w for row in free.allocation} == {None}
    assert free.cost_usd_per_hour <= plan.cost_usd_per_hour


def test_gpus_of_which_nothing_is_known_under_a_limit_are_said():
    catalog = request()["catalog"]
    catalog["owned"].append({"gpu": "L40S", "count": 4, "gpus_per_instance": 1, "region": "attic", "price": "1 USD/h"})
    plan = planned(request(catalog=catalog, services=service_with(power_caps=["100%", "70%", "200W"])))
    (text,) = [text for text in plan.assumptions if "Nothing is known of" in text]
    assert "H100-80GB, L40S" in text


@pytest.mark.parametrize("caps", [[], ["170%"], ["0%"], ["-5W"], ["70 kg"], [70]], ids=str)
def test_wrong_power_limits_are_refused(caps):
    with pytest.raises(InputError):
        planned(request(services=service_with(power_caps=caps)))


def test_watts_are_thought_of_where_a_limit_has_no_unit():
    with pytest.raises(InputError, match=r"350% or 350 watts"):
        planned(request(services=service_with(power_caps=[350])))


def test_limits_of_which_nothing_is_known_on_any_gpu_are_refused():
    with pytest.raises(InputError) as caught:
        planned(request(services=service_with(power_caps=["20%"])))
    assert caught.value.where.field == "services[0].engine.power_caps"
    assert "H100-80GB from" in caught.value.hint


def test_a_watt_of_peak_can_count_for_more_or_less():
    """Three H100 draw 2.1 kW at peak; with a PUE of 1.4 the meter sees 2.94 kW."""
    for power, fits in (
        ({"old-hall": "2.2kW"}, True),
        ({"old-hall": {"max": "2.2kW", "factor": 1.4}}, False),
        ({"old-hall": {"max": "3kW", "factor": 1.4}}, True),
        ({"old-hall": {"max": "1.7kW", "factor": 0.79}}, True),
        ({"max": "2.2kW", "factor": 1.4}, False),
    ):
        limited = {"power": power if "max" in power else power | {"new-hall": "0W"}}
        plan = planned(request(services=service_with(), constraints=limited))
        assert (plan.status == "optimal") is fits, power
    with pytest.raises(InputError):
        planned(request(constraints={"power": {"old-hall": {"max": "2kW", "factor": 0}}}))
