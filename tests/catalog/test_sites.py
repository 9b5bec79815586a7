"""The bundled electricity of clouds and GPUs: every row is plausible, sourced, and covers what can be rented."""

from __future__ import annotations

import csv

import pytest
from tests_support import REPO

from planner.catalog.gpus import load_gpus
from planner.catalog.offers import load_offers
from planner.catalog.sites import known_site, load_sites
from planner.profilers.power import gpu_draw


def rows(*path):
    return list(csv.DictReader((REPO / "/".join(path)).read_text(encoding="utf-8").splitlines()))


def test_every_row_is_plausible_and_sourced():
    table = rows("catalogs", "carbon.csv")
    assert len({(row["provider"], row["region"]) for row in table}) == len(table)
    for row in table:
        assert 1.0 <= float(row["pue"]) <= 2.0
        assert row["source"]
        assert row["licence"] in {"Apache-2.0", "MIT", "fact"}
        assert not row["carbon_g_per_kwh"] or 0 < float(row["carbon_g_per_kwh"]) < 1000
        assert bool(row["carbon_g_per_kwh"]) == bool(row["region"])


def test_known_facts():
    assert known_site("gcp", "europe-north1").carbon_g_per_kwh == (39.32,)
    assert known_site("aws", "eu-north-1").carbon_g_per_kwh == (8.0,)
    assert known_site("azure", "germanywestcentral").carbon_g_per_kwh == (380.95,)
    assert known_site("aws", "mars-1").pue == load_sites()["aws", ""].pue == 1.135
    assert known_site("nobody", "nowhere").pue == 1.58
    assert known_site("nobody", "nowhere").carbon_in(0) is None


@pytest.mark.parametrize("provider", ["aws", "azure", "gcp"])
def test_the_large_clouds_regions_are_known(provider):
    regions = {offer.region for offer in load_offers() if offer.provider == provider} - {"unspecified"}
    assert regions
    for region in regions:
        assert known_site(provider, region).carbon_g_per_kwh, region


def test_idle_draws_less_than_busy_and_busy_no_more_than_tdp():
    for spec in load_gpus().specs:
        draw = gpu_draw(spec)
        assert 0 < draw.idle_w < draw.busy_w <= spec.tdp_w, spec.name
    h100 = load_gpus().get("H100-80GB")
    assert (gpu_draw(h100).idle_w, gpu_draw(h100).busy_w) == (117.0, pytest.approx(693.0))
    assert gpu_draw(load_gpus().get("L40")).idle_w == pytest.approx(60.0)


def test_power_parameters_have_a_source():
    for row in rows("profiles", "power.csv"):
        assert row["source"]
        most = {"cap_exponent": 2.0, "arithmetic_fraction": 1.2}  # what is fitted above the TDP is held to it
        assert 0 < float(row["value"]) <= most.get(row["parameter"], 1.0)
