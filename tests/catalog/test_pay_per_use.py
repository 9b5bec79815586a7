"""GPUs of serverless clouds: what ships, what a user's file may hold, and how their time is counted."""

from __future__ import annotations

import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog.gpus import load_gpus
from planner.catalog.pay_per_use import find_pay_per_use, load_pay_per_use, read_pay_per_use, with_own
from planner.domain.pay_per_use import PayPerUse
from planner.errors import DataMissingError, InputError, UnsupportedFormatError
from planner.planning.function_ways import Prices

OFFERS = load_pay_per_use()
GPUS = load_gpus()


def offer(**changes):
    return PayPerUse(**({"name": "a/L4", "provider": "a", "gpu": "L4", "usd_per_gpu_s": 1e-3} | changes))


def test_every_bundled_price_has_a_source_and_is_that_of_a_second():
    assert len(OFFERS) == 40
    assert len({each.name for each in OFFERS}) == 40
    for each in OFFERS:
        assert each.gpu in GPUS.by_name
        assert "https://" in each.source
        assert 0.3 <= 3600 * each.usd_per_gpu_s <= 12.0  # USD/h: a T4 to a B200
        assert each.as_of is not None or "undated" in each.source
    assert {each.provider for each in OFFERS if each.as_of is None} == {"runpod"}


def test_published_prices():
    by_name = {each.name: each for each in OFFERS}
    assert 3600 * by_name["modal/L40S"].usd_per_gpu_s == pytest.approx(1.95, abs=0.005)  # modal.com/pricing
    assert 3600 * by_name["koyeb/L40S"].usd_per_gpu_s == pytest.approx(1.20, abs=1e-5)
    assert by_name["replicate/T4"].usd_per_gpu_s == 0.000225
    cloud_run = by_name["gcp-cloud-run/L4"]
    assert cloud_run.keep_alive_s == 900.0
    # cloud.google.com/run/pricing: 4 vCPUs at 0.000018 and 16 GiB at 0.000002 USD/s beside a GPU at 0.67 USD/h
    assert 3600 * cloud_run.usd_per_container_s == pytest.approx(0.67 + 0.2592 + 0.1152, abs=0.001)
    # modal.com/pricing: 0.0000131 USD/s for each of two physical cores, 0.00000222 for each of 16 GiB
    assert by_name["modal/L4"].usd_per_container_s == pytest.approx(0.000222 + 2 * 0.0000131 + 16 * 0.00000222)


def test_whether_cpu_and_memory_are_in_the_price_is_known_of_every_cloud():
    alone = {each.provider for each in OFFERS if each.vcpus or each.gib}
    assert alone == {"cerebrium", "gcp-cloud-run", "modal"}
    assert {each.provider for each in OFFERS if not each.is_all_in} == {"runware"}
    for each in OFFERS:
        said = each.notes.lower()
        assert ("are in the price" in said) is (each.is_all_in and each.provider not in alone), each.name
        assert ("billed on top" in said.replace("disks are billed on top", "")) is (each.provider in alone), each.name


@given(st.floats(0.001, 1e5), st.sampled_from([0.1, 1.0, 60.0]), st.floats(0.0, 100.0))
def test_time_is_rounded_up_to_steps_and_never_below_the_minimum(held_s, step_s, minimum_s):
    billed = float(offer(step_s=step_s, minimum_s=minimum_s).billed_s(held_s))
    least = max(held_s, minimum_s)
    assert least - 1e-6 <= billed < least + step_s + 1e-6
    assert math.isclose(billed / step_s, round(billed / step_s), rel_tol=1e-9)


def test_three_tenths_are_three_steps_of_a_tenth():
    assert float(offer(step_s=0.1).billed_s(0.1 + 0.2)) == pytest.approx(0.3)


def test_what_containers_cost():
    held = [10.2, 5.0]
    assert offer(step_s=1.0).cost_usd(held, n_requests=7, used_s=3.0) == pytest.approx(16e-3)
    assert offer(step_s=1.0).cost_usd(held, n_requests=7, used_s=3.0, gpus_per_container=2) == pytest.approx(32e-3)
    assert offer(bills_idle=False, keep_alive_s=60.0, usd_per_request=0.01).cost_usd(
        held, n_requests=7, used_s=3.0
    ) == pytest.approx(0.07 + 3e-3)


def test_what_is_beside_a_gpu_is_paid_with_it():
    beside = offer(usd_per_vcpu_s=1e-4, vcpus=4.0, usd_per_gib_s=1e-5, gib=16.0)
    assert beside.usd_per_container_s == pytest.approx(1e-3 + 4e-4 + 1.6e-4)
    held = [10.0, 5.0]
    for n_gpus in (1, 2):
        found = beside.cost_usd(held, n_requests=7, used_s=3.0, gpus_per_container=n_gpus)
        assert found == pytest.approx(15.0 * n_gpus * 1.56e-3)
    assert Prices(usd_per_gpu_hour=1.0, offer=beside).usd_per_rented_s == pytest.approx(1.56e-3)


def test_the_start_of_a_container_is_paid_where_it_is_billed():
    held, starts = [10.2, 5.0, 3.0], [2.0, 2.0, 3.0]
    free = offer(step_s=1.0, bills_container_start=False)
    assert free.cost_usd(held, n_requests=7, used_s=9.0, container_start_s=starts) == pytest.approx(12e-3)
    assert offer(step_s=1.0).cost_usd(held, n_requests=7, used_s=9.0, container_start_s=starts) == pytest.approx(19e-3)
    idle_is_free = offer(bills_idle=False, keep_alive_s=60.0, bills_container_start=False)
    assert idle_is_free.cost_usd(held, n_requests=0, used_s=9.0, container_start_s=starts) == pytest.approx(2e-3)
    assert {each.provider for each in OFFERS if not each.bills_container_start} == {"cerebrium"}


@pytest.mark.parametrize(
    "wrong", [{"usd_per_gpu_s": -1.0}, {"usd_per_gpu_s": math.inf}, {"step_s": math.nan}, {"usd_per_gpu_s": 0.0}]
)
def test_what_is_no_offer_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 0 and finite|costs nothing"):
        offer(**wrong)


def written(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_own_offers_go_first(tmp_path):
    path = written(
        tmp_path,
        "provider,gpu,usd_per_gpu_s,usd_per_request,step_s,minimum_s,bills_idle,keep_alive_s,as_of\n"
        "modal,nvidia-l40s,0.0004,0.001,0.1,10,no,300,2026-11-01\n",
    )
    (own,) = read_pay_per_use(path, gpus=GPUS)
    assert own == offer(
        name="modal/L40S", provider="modal", gpu="L40S", usd_per_gpu_s=0.0004, usd_per_request=0.001, step_s=0.1,
        minimum_s=10.0, bills_idle=False, keep_alive_s=300.0, as_of=date(2026, 11, 1),
    )  # fmt: skip
    both = with_own(OFFERS, [own])
    assert len(both) == len(OFFERS)
    assert find_pay_per_use("modal/l40s", both, GPUS) is own


@pytest.mark.parametrize(
    ("text", "error", "words", "line", "field"),
    [
        ("provider,gpu,usd_per_gpu_s\na,L4,\n", InputError, "no price", 2, "usd_per_gpu_s"),
        ("provider,gpu,usd_per_gpu_s\na,L4,2.5\n", InputError, "more than 1", 2, "usd_per_gpu_s"),
        ("provider,gpu,usd_per_gpu_s\na,L4,-1\n", InputError, "negative", 2, "usd_per_gpu_s"),
        ("provider,gpu,usd_per_gpu_s\na,L4,nan\n", InputError, "finite", 2, "usd_per_gpu_s"),
        ("provider,gpu,usd_per_gpu_s\na,Voodoo2,1e-4\n", InputError, "not known", 2, "gpu"),
        ("provider,gpu,usd_per_gpu_s\n,L4,1e-4\n", InputError, "empty", 2, "provider"),
        ("provider,gpu,usd_per_second\na,L4,1e-4\n", InputError, "Unknown column 'usd_per_second'", 1, None),
        ("gpu,usd_per_gpu_s\nL4,1e-4\n", InputError, "'provider' is missing", 1, None),
        ("provider,gpu,usd_per_gpu_s,usd_per_vcpu_s\na,L4,1e-4,1e-5\n", InputError, "vcpus is not", 2, "vcpus"),
        ("provider,gpu,usd_per_gpu_s,gib\na,L4,1e-4,16\n", InputError, "gib is given", 2, "usd_per_gib_s"),
        ("provider,gpu,usd_per_gpu_s,bills_idle\na,L4,1e-4,perhaps\n", InputError, "not known here", 2, "bills_idle"),
        ("provider,gpu,usd_per_gpu_s,as_of\na,L4,1e-4,May\n", InputError, "not a date", 2, "as_of"),
        ("provider,gpu,usd_per_gpu_s\na,L4,1e-4\na,l4,2e-4\n", InputError, "offered twice, first at line 2", 3, None),
        ("provider,gpu,usd_per_gpu_s\n", InputError, "holds no offer", None, None),
        ("", InputError, "holds no offer", None, None),
    ],
)  # fmt: skip
def test_wrong_files_say_where(text, error, words, line, field, tmp_path):
    with pytest.raises(error, match=words) as raised:
        read_pay_per_use(written(tmp_path, text), gpus=GPUS)
    assert raised.value.where.line == line
    assert raised.value.where.field == field


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "own.csv"
    path.write_bytes(b"provider,gpu\n\xff\xfe")
    with pytest.raises(UnsupportedFormatError, match="Byte 13"):
        read_pay_per_use(path, gpus=GPUS)


def test_an_offer_that_is_not_there():
    with pytest.raises(DataMissingError, match="no pay-per-use offer 'modal/L40X'") as raised:
        find_pay_per_use("modal/L40X", OFFERS, GPUS)
    assert "modal/L40S" in raised.value.hint


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("modal/H100", ["modal/H100-PCIe-80GB"]),
        ("modal/A100", ["modal/A100-40GB-PCIe", "modal/A100-80GB-PCIe"]),
        ("koyeb/RTX", ["koyeb/RTX-A6000"]),
    ],
)
def test_a_family_or_a_beginning_names_the_offers_of_that_cloud(name, meant):
    with pytest.raises(DataMissingError) as raised:
        find_pay_per_use(name, OFFERS, GPUS)
    assert raised.value.hint == f"Did you mean {' or '.join(map(repr, meant))}?"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_lists_the_cheapest_first(gpuplan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ran = gpuplan("catalog", "pay-per-use", "--gpu", "L40S")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split()[:4] == ["gpu", "provider", "USD/s", "USD/h"]
    assert lines[1].split()[:4] == ["L40S", "koyeb", "0.000333", "1.20"]
    assert [line.split()[0] for line in lines[1:]] == ["L40S"] * 5
    by_provider = {line.split()[1]: line.split()[2:4] for line in lines[1:]}
    assert by_provider["modal"] == ["0.000604", "2.17"]  # with 4 vCPUs and 16 GiB
    assert by_provider["runware"][0] == "0.000444+"
    assert "+: CPU and memory may be billed on top" in ran.err


def test_the_command_as_json_and_with_own_offers(gpuplan, tmp_path):
    path = written(tmp_path, "provider,gpu,usd_per_request\nacme,A100-80GB,0.01\n")
    found = gpuplan("catalog", "pay-per-use", "--gpu", "A100", "--file", path, "--json").json
    assert found["kind"] == "PayPerUseOffers"
    assert found["offers"][0]["name"] == "acme/A100-80GB"
    assert {each["gpu"] for each in found["offers"]} == {"A100-80GB", "A100-40GB-PCIe", "A100-80GB-PCIe"}
    assert gpuplan("catalog", "pay-per-use", "--provider", "acme").code == 6
    assert gpuplan("catalog", "show", "L40S", "--json").json["pay_per_use"][0]["name"] == "koyeb/L40S"
