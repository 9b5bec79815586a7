"""Integrity of the bundled data: facts that anybody can look up, and rules that every row must keep."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import pytest

from planner.catalog.billing import billing_rule, load_billing_rules
from planner.catalog.gpus import load_gpus, spelling
from planner.catalog.offers import load_offers
from planner.domain.hardware import Market

CATALOGS = Path(__file__).resolve().parents[2] / "catalogs"
OFFERS = load_offers()
GPUS = load_gpus()
BY_NAME = {offer.name: offer for offer in OFFERS}

PLAUSIBLE_USD_PER_GPU_HOUR = {
    "T4": (0.1, 6.0),
    "L4": (0.1, 5.0),
    "A10": (0.1, 10.0),
    "A10G": (0.5, 5.0),
    "L40S": (0.3, 8.0),
    "A100-40GB": (0.2, 6.0),
    "A100-80GB": (0.3, 10.0),
    "H100-80GB": (0.7, 25.0),
    "H200-141GB": (1.0, 25.0),
    "B200-180GB": (1.5, 25.0),
    "MI300X": (1.0, 15.0),
    "GB200": (5.0, 60.0),
}


def rows(name):
    with (CATALOGS / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# -- billing -----------------------------------------------------------------------------------------------------------


def test_billing_rules_are_of_providers_with_offers_and_say_where_they_are_from():
    rules = load_billing_rules()
    assert {rule.provider for rule in rules} <= {offer.provider for offer in OFFERS}
    assert len({(rule.provider, rule.instance_prefix) for rule in rules}) == len(rules)
    for rule in rules:
        assert "https://" in rule.source
        assert rule.as_of is not None or "undated" in rule.notes
        assert rule.minimum_s in {0, 60, 300, 3600}
        assert rule.step_s in {1, 60, 3600}
    for row in rows("billing.csv"):
        assert row["licence"] == "fact"
        assert row["source_url"].startswith("https://")
        assert row["source"]
        assert "http" not in row["source"]


def test_known_billing_rules():
    def counted(provider, instance="any", held_s=10.0):
        offer = next(each for each in OFFERS if each.provider == provider and (instance in {"any", each.instance_type}))
        rule = billing_rule(offer)
        return None if rule is None else float(rule.billed_s(held_s))

    assert (counted("aws"), counted("aws", held_s=61.5)) == (60.0, 62.0)
    assert (counted("gcp"), counted("azure")) == (60.0, 300.0)
    assert counted("oracle-cloud", "bm-gpu-h100-8") == 3600.0
    assert counted("oracle-cloud", "vm-gpu-a10-1") == 60.0
    assert counted("vultr", held_s=3601.0) == 7200.0
    assert counted("coreweave") is None  # nothing that could be cited


# -- offers ------------------------------------------------------------------------------------------------------------


def test_there_are_about_two_thousand_offers_of_34_providers():
    assert len(OFFERS) == 2058
    assert len({offer.provider for offer in OFFERS}) == 34
    counts = Counter(offer.provider for offer in OFFERS)
    assert (counts["azure"], counts["gcp"], counts["aws"]) == (809, 788, 100)


def test_one_file_per_provider():
    for path in (CATALOGS / "offers").glob("*.csv"):
        assert {row["provider"] for row in rows(f"offers/{path.name}")} == {path.stem}


def test_no_offer_twice():
    assert len(BY_NAME) == len(OFFERS)


def test_every_offer_has_price_source_date_and_known_gpu():
    for offer in OFFERS:
        assert offer.price_usd_per_hour > 0, offer.name
        assert offer.gpus_per_instance > 0, offer.name
        assert "@" in offer.source, offer.name
        assert offer.as_of is not None, offer.name
        assert date(2024, 1, 1) <= offer.as_of <= date(2026, 11, 21), offer.name
        assert offer.gpu in GPUS.by_name, offer.name
        assert offer.name == f"{offer.provider}/{offer.instance_type}/{offer.region}/{offer.market}"
        assert offer.available is None
        assert offer.market in {Market.ON_DEMAND, Market.SPOT}


def test_no_prices_in_yuan():
    assert not [offer.name for offer in OFFERS if offer.region.startswith(("cn-", "china"))]


def test_prices_per_gpu_are_plausible():
    for offer in OFFERS:
        low, high = PLAUSIBLE_USD_PER_GPU_HOUR.get(offer.gpu, (0.04, 30.0))
        assert low <= offer.price_usd_per_hour / offer.gpus_per_instance <= high, offer


def test_spot_is_never_dearer_than_on_demand():
    pairs = 0
    for offer in OFFERS:
        if offer.market is Market.SPOT:
            on_demand = BY_NAME.get(offer.name.removesuffix("spot") + "on-demand")
            if on_demand:
                pairs += 1
                assert offer.price_usd_per_hour <= on_demand.price_usd_per_hour, offer.name
    assert pairs > 380


def test_gcp_prices_almost_all_machines_on_both_markets():
    markets = Counter(offer.market for offer in OFFERS if offer.provider == "gcp")
    assert markets[Market.SPOT] == markets[Market.ON_DEMAND] == 394


@pytest.mark.parametrize(
    ("name", "gpu", "count", "price", "vcpus", "ram_gib"),
    [
        ("aws/p5.48xlarge/us-east-1/on-demand", "H100-80GB", 8, 55.04, 192, 2048),
        ("aws/p4d.24xlarge/us-east-1/on-demand", "A100-40GB", 8, 21.957642, 96, 1152),
        ("aws/p4de.24xlarge/us-east-1/on-demand", "A100-80GB", 8, 27.44705, 96, 1152),
        ("aws/p5en.48xlarge/us-east-1/on-demand", "H200-141GB", 8, 63.296, 192, 2048),
        ("aws/p6-b200.48xlarge/us-east-1/on-demand", "B200-180GB", 8, 113.9328, 192, 2048),
        ("aws/g5.xlarge/us-east-1/on-demand", "A10G", 1, 1.006, 4, 16),
        ("aws/g6e.48xlarge/us-east-1/on-demand", "L40S", 8, 30.13118, 192, 1536),
        ("aws/g4dn.metal/us-east-1/on-demand", "T4", 8, 7.824, 96, 384),
        ("gcp/g2-standard-4/us-central1/on-demand", "L4", 1, None, 4, 16),
        ("gcp/g2-standard-96/us-central1/spot", "L4", 8, None, 96, 384),
        ("gcp/a2-ultragpu-8g/us-central1/on-demand", "A100-80GB", 8, None, 96, 1360),
        ("gcp/a2-megagpu-16g/us-central1/on-demand", "A100-40GB", 16, None, 96, 1360),
        ("gcp/a3-highgpu-8g/us-central1/on-demand", "H100-80GB", 8, None, 208, 1872),
        ("azure/Standard_ND96isr_H100_v5/eastus/on-demand", "H100-80GB", 8, 98.32, 96, None),
        ("azure/Standard_ND96amsr_A100_v4/eastus/on-demand", "A100-80GB", 8, 32.77, 96, None),
        ("azure/Standard_NC24ads_A100_v4/eastus/on-demand", "A100-80GB-PCIe", 1, 3.673, 24, None),
        ("azure/Standard_NC40ads_H100_v5/eastus/on-demand", "H100-NVL-94GB", 1, 6.98, 40, None),
        ("azure/Standard_NC64as_T4_v3/eastus/on-demand", "T4", 4, 4.352, 64, None),
        ("lambda/h100-sxm/global/on-demand", "H100-80GB", 1, 4.29, None, None),
        ("vultr/l40s-bare-metal/global/on-demand", "L40S", 8, 6.784, None, None),
    ],
)
def test_known_instance_types(name, gpu, count, price, vcpus, ram_gib):
    offer = BY_NAME[name]
    assert (offer.gpu, offer.gpus_per_instance) == (gpu, count)
    if price is not None:
        assert offer.price_usd_per_hour == pytest.approx(price)
    if vcpus is not None:
        assert offer.vcpus == vcpus
    if ram_gib is not None:
        assert offer.ram_bytes == ram_gib * 2**30


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("aws/g6f.large/us-east-1/on-demand", 1 / 8),
        ("aws/g6f.2xlarge/us-east-1/on-demand", 1 / 4),
        ("aws/gr6f.4xlarge/us-east-1/on-demand", 1 / 2),
        ("azure/Standard_NV6ads_A10_v5/eastus/on-demand", 1 / 6),
        ("azure/Standard_NC16ads_A10_v4/southcentralus/on-demand", 2 / 3),
        ("gcp/g4-standard-6/us-central1/spot", 1 / 8),
    ],
)
def test_shares_of_a_gpu(name, count):
    assert in_any_region(name).gpus_per_instance == pytest.approx(count, abs=1e-6)


def in_any_region(name):
    provider, instance_type, _, market = name.split("/")
    return next(o for o in OFFERS if (o.provider, o.instance_type, o.market) == (provider, instance_type, market))


def test_azure_rtx_pro_6000_sizes_without_a_published_gpu_count_are_out():
    assert not [offer.name for offer in OFFERS if "RTXPRO6000" in offer.instance_type]


def test_an_assumed_form_factor_is_the_slower_one_and_noted():
    assumed = [offer for offer in OFFERS if "PCIe card is assumed" in offer.notes]
    assert len(assumed) > 60
    assert {offer.gpu for offer in assumed} <= {
        *("A100-40GB-PCIe", "A100-80GB-PCIe", "H100-PCIe-80GB", "V100-PCIe-16GB", "H200-NVL-141GB"),
    }


def test_sources_page_names_every_source():
    page = (CATALOGS / "SOURCES.md").read_text(encoding="utf-8")
    counts = Counter(offer.source.split(" ")[0] for offer in OFFERS)
    for source, count in counts.items():
        assert re.search(rf"^\| {count} \|.*{re.escape(source)}", page, re.MULTILINE), (source, count)
    for row in rows("gpu_achieved.csv"):
        assert row["source"].split(" ")[0] in page


# -- GPUs --------------------------------------------------------------------------------------------------------------


def test_there_are_44_gpus():
    assert len(GPUS.specs) == 44


@pytest.mark.parametrize(
    ("name", "bandwidth_gb_s", "bf16_tflops", "tdp_w", "link_gb_s"),
    [
        ("A100-80GB", 2039, 312, 400, 300),
        ("A100-80GB-PCIe", 1935, 312, 300, 31.5),
        ("A100-40GB", 1555, 312, 400, 300),
        ("H100-80GB", 3350, 989, 700, 450),
        ("H100-PCIe-80GB", 2000, 756.5, 350, 63),
        ("H200-141GB", 4800, 989, 700, 450),
        ("B200-180GB", 8000, 2250, 1000, 900),
        ("L4", 300, 121, 72, 31.5),
        ("L40S", 864, 362, 350, 31.5),
        ("T4", 320, 65.13, 70, 15.75),
        ("MI300X", 5300, 1307, 750, 448),
    ],
)
def test_known_gpus(name, bandwidth_gb_s, bf16_tflops, tdp_w, link_gb_s):
    gpu = GPUS.get(name)
    assert gpu.name == name
    assert gpu.bandwidth_bytes_per_s == pytest.approx(bandwidth_gb_s * 1e9)
    assert gpu.peak_flops["bf16"] == pytest.approx(bf16_tflops * 1e12)
    assert gpu.tdp_w == tdp_w
    assert gpu.link_bytes_per_s == pytest.approx(link_gb_s * 1e9)


def test_formats_follow_the_architecture():
    for gpu in GPUS.specs:
        if gpu.architecture in {"Pascal", "Volta", "Turing", "Ampere", "CDNA2"}:
            assert "fp8" not in gpu.peak_flops, gpu.name
        if gpu.architecture in {"Ada", "Hopper", "CDNA3"}:
            assert "fp8" in gpu.peak_flops, gpu.name
            assert "fp4" not in gpu.peak_flops, gpu.name
        if gpu.architecture.startswith("Blackwell"):
            assert gpu.peak_flops["fp4"] > gpu.peak_flops["fp8"] > gpu.peak_flops["bf16"], gpu.name


def test_memory_is_what_a_driver_reports_or_the_nominal_size():
    for row in rows("gpus.csv"):
        memory, nominal = float(row["memory_bytes"]), float(row["memory_gb_nominal"]) * 1e9
        if row["memory_basis"] == "nominal":
            assert memory == nominal, row["name"]
        else:
            assert row["memory_basis"] == "driver"
            assert memory % 2**20 == 0
            assert 0.98 < memory / nominal < 1.08, row["name"]


def test_rates_that_were_reached_are_below_the_peak():
    reached = 0
    for gpu in GPUS.specs:
        for key, rate in gpu.achieved_flops.items():
            assert 0.4 * gpu.peak_flops[key] < rate < gpu.peak_flops[key], gpu.name
            reached += 1
        if gpu.achieved_bandwidth_bytes_per_s is not None:
            assert 0.7 < gpu.achieved_bandwidth_bytes_per_s / gpu.bandwidth_bytes_per_s < 1, gpu.name
            reached += 1
    assert reached == len(rows("gpu_achieved.csv")) == 10


def test_a_100_reaches_what_was_measured():
    gpu = GPUS.get("A100-80GB")
    assert gpu.achieved_flops["bf16"] == pytest.approx(293.72e12)
    assert gpu.achieved_bandwidth_bytes_per_s == pytest.approx(1.75e12)
    assert GPUS.get("MI300X").achieved_flops == {}


def test_power_and_links():
    for gpu in GPUS.specs:
        assert gpu.idle_w is None or 0 < gpu.idle_w < 0.4 * gpu.tdp_w, gpu.name
        assert gpu.link_bytes_per_s >= gpu.pcie_bytes_per_s > 0, gpu.name
        assert gpu.link != "PCIe" or gpu.link_bytes_per_s == gpu.pcie_bytes_per_s, gpu.name
        assert gpu.source, gpu.name


def test_unverified_fields_are_columns():
    columns = set(rows("gpus.csv")[0])
    for gpu in GPUS.specs:
        assert set(gpu.unverified_fields) <= columns, gpu.name


# -- aliases -----------------------------------------------------------------------------------------------------------


def test_no_alias_means_two_gpus():
    meant = defaultdict(set)
    for row in rows("gpu_aliases.csv"):
        meant[spelling(row["alias"])].add(row["gpu"])
    for spec in GPUS.specs:
        meant[spelling(spec.name)].add(spec.name)
    assert {alias: gpus for alias, gpus in meant.items() if len(gpus) > 1} == {}


def test_no_alias_is_written_twice():
    spellings = Counter(spelling(row["alias"]) for row in rows("gpu_aliases.csv"))
    assert [alias for alias, count in spellings.items() if count > 1] == []


def test_every_alias_leads_to_a_gpu():
    assert {row["gpu"] for row in rows("gpu_aliases.csv")} <= set(GPUS.by_name)


def test_every_family_has_members_of_its_name():
    for family, members in GPUS.families.items():
        assert members
        assert all(spelling(member).startswith(family) for member in members), family
