"""What replicas have ready beside the adapters that they serve: against trying everything, and what must never be."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from planner.catalog.gpus import load_gpus
from planner.domain.adapters import Isolation, Standby, Tenancy, Tenant
from planner.domain.hardware import EngineConfig, Market, Offer
from planner.domain.plan import PreloadMethod
from planner.domain.problem import FleetProblem, ServingOption
from planner.domain.workload import Bucket, Demand
from planner.errors import SolverLiedError
from planner.files.documents import parse_document
from planner.files.plan_schema import plan_from_document
from planner.optimize import Assignment, SolverSettings, solve, verify_plan
from planner.planning import adapter_tiers
from planner.planning.adapter_tiers import OUT_FRACTION, with_tiers
from planner.planning.adapters import SlotKind
from planner.profilers.adapter_engines import SlotShape

MB = 1e6
GPU = load_gpus().get("A100-40GB")
SLOT_BYTES = 80 * MB
KIND = SlotKind(
    isolation=Isolation.SHARED_PROCESS,
    adapters=4,
    shape=SlotShape(rank=32, modules=frozenset({"q_proj"}), bytes_each=SLOT_BYTES),
    engine="vllm",
)


def problem_of(rates, sizes, idle_sizes, *, slots, ram_bytes, gpus=(GPU.name,)):
    """Return adapters on GPUs that serve 2 req/s each with `slots` slots, and adapters that nobody asks for.

    gpus : A100s; where there are several kinds, one of each.
    """
    tenants = [
        Tenant(name=f"a{i}", rate_rps=rate, memory_bytes=size, group=i)
        for i, (rate, size) in enumerate(zip(rates, sizes, strict=True))
    ]
    standby = [
        Standby(name=f"idle{i}", memory_bytes=size, isolation=Isolation.SHARED_PROCESS)
        for i, size in enumerate(idle_sizes)
    ]
    options = tuple(
        ServingOption(
            service="s",
            offer=Offer(
                name="one" if gpu == GPU.name else gpu,
                provider="p",
                instance_type="one",
                region="r",
                market=Market.ON_DEMAND,
                gpu=gpu,
                gpus_per_instance=1,
                price_usd_per_hour=1.0,
                ram_bytes=ram_bytes,
                available=None if len(gpus) == 1 else 1,
            ),
            gpus_per_replica=1,
            throughput_rps=np.full(len(tenants), 2.0),
            config=EngineConfig(engine=KIND.engine),
            slots=KIND.slots(slots),
        )
        for gpu in gpus
    )
    buckets = tuple(Bucket(row=i, column=0, group=i, rate_rps=rate) for i, rate in enumerate(rates))
    tenancy = Tenancy(
        service="s", tenants=tuple(tenants), idle=tuple(each.name for each in standby), standby=tuple(standby)
    )
    return FleetProblem(demands=(Demand(service="s", buckets=buckets),), options=options, tenancies=(tenancy,))


def solved(problem):
    plan = solve(problem, settings=SolverSettings(relative_gap=0.0), assignment=Assignment.fractional())
    return with_tiers(problem, plan, kinds={"s": [KIND]}, gpus=load_gpus())


def most_saved(problem, plan):
    """Return the most seconds per second that anything ready can save, by trying every place for every adapter."""
    (item,), (tenancy,) = plan.adapters, problem.tenancies
    sizes = tenancy.sizes_bytes
    option, *_ = problem.options
    by_name = {each.offer.name: load_gpus().get(each.offer.gpu) for each in problem.options}
    gpus = [by_name[replica.option] for replica in item.placement]
    half, whole = option.offer.ram_bytes / 2, option.offer.ram_bytes
    held = [[each.adapter for each in replica.adapters] for replica in item.placement]
    beside_engine = max(half, whole - 1.5e9)
    largest = sorted(sizes.values(), reverse=True)
    most = sum(total <= beside_engine for total in itertools.accumulate(largest))
    most = max(most, option.slots.count)
    rates = {each.name: OUT_FRACTION * each.rate_rps for each in tenancy.tenants}
    least = min(rates.values())
    waiting = [each.name for each in tenancy.tenants if sum(each.name in names for names in held) == 1]
    waiting += [each.name for each in tenancy.standby]

    def choices(name):
        yield None
        for number, names in enumerate(held):
            if name not in names:
                yield number, False
                yield number, True

    best = 0.0
    for places in itertools.product(*(choices(name) for name in waiting)):
        saved, used, slots = 0.0, [sum(sizes[n] for n in names) for names in held], [len(names) for names in held]
        counts = [len(names) for names in held]
        for name, place in zip(waiting, places, strict=True):
            if place is None:
                continue
            number, is_in_slot = place
            used[number] += sizes[name]
            counts[number] += 1
            slots[number] += is_in_slot
            copy_s = sizes[name] / gpus[number].pcie_bytes_per_s
            saved += rates.get(name, least) * (0.68 if is_in_slot else 0.68 - copy_s)
        fits = all(
            total <= max(half, sum(sizes[n] for n in names)) * (1 + 1e-9)
            for total, names in zip(used, held, strict=True)
        )
        if fits and max(slots) <= option.slots.count and max(counts) <= most:
            best = max(best, saved)
    return best


SIZES = st.sampled_from([20 * MB, 40 * MB, 80 * MB])


@given(
    st.lists(st.sampled_from([0.2, 0.5, 1.0, 1.4]), min_size=1, max_size=3),
    st.data(),
    st.integers(1, 3),
    st.sampled_from([0.2e9, 0.3e9, 0.5e9, 4e9]),
)
@settings(max_examples=25)
def test_what_is_ready_is_the_best_of_all_choices(rates, data, slots, ram_bytes):
    slots = max(2, slots)
    sizes = data.draw(st.lists(SIZES, min_size=len(rates), max_size=len(rates)))
    idle = data.draw(st.lists(SIZES, max_size=3))
    problem = problem_of(rates, sizes, idle, slots=slots, ram_bytes=max(ram_bytes, 2 * slots * SLOT_BYTES))
    plan = solved(problem)
    best = most_saved(problem, plan)
    preload = plan.adapters[0].preload
    assert preload.method is PreloadMethod.PROGRAMME
    assert preload.saved_s_per_s == pytest.approx(best, rel=1e-5, abs=1e-12)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(adapter_tiers, "MOST_PAIRS", -1)
        quick = solved(problem).adapters[0].preload
    assert quick.method is PreloadMethod.DENSITY
    assert quick.saved_s_per_s <= best * (1 + 1e-9) <= quick.bound_s_per_s * (1 + 1e-6)


@given(
    st.lists(st.sampled_from([0.3, 0.6, 0.9]), min_size=3, max_size=3),
    st.data(),
    st.sampled_from([0.3e9, 0.5e9, 4e9]),
    st.sampled_from([0.15e9, 2e9]),
)
@settings(max_examples=20)
def test_what_is_ready_is_the_best_where_replicas_copy_at_different_speeds(rates, data, ram_bytes, slow_bytes_per_s):
    # The slower the bus, the more a slot saves beside host memory: most of what is saved for the largest ones.
    sizes = data.draw(st.lists(SIZES, min_size=len(rates), max_size=len(rates)))
    idle = data.draw(st.lists(SIZES, min_size=1, max_size=3))
    specs = load_gpus()
    problem = problem_of(
        rates, sizes, idle, slots=2, ram_bytes=max(ram_bytes, 4 * SLOT_BYTES), gpus=(GPU.name, "H100-80GB")
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SPEEDS, GPU.name, slow_bytes_per_s)
        patched.setattr(type(specs), "get", slowed(type(specs).get))
        plan = solved(problem)
        best = most_saved(problem, plan)
        patched.setattr(adapter_tiers, "MOST_PAIRS", -1)
        quick = solved(problem).adapters[0].preload
    preload = plan.adapters[0].preload
    assert preload.saved_s_per_s == pytest.approx(best, rel=1e-5, abs=1e-12)
    assert best <= preload.bound_s_per_s * (1 + 1e-6)
    assert quick.saved_s_per_s <= best * (1 + 1e-9) <= quick.bound_s_per_s * (1 + 1e-6)


SPEEDS: dict[str, float] = {}


def slowed(get):
    """Return a look-up of GPUs whose bus has the speed in `SPEEDS`, where one is there."""

    def found(catalog, name):
        gpu = get(catalog, name)
        return replace(gpu, pcie_bytes_per_s=SPEEDS[gpu.name]) if gpu.name in SPEEDS else gpu

    return found


def test_a_spare_slot_goes_to_who_saves_most_and_memory_to_the_others():
    # One replica has both adapters and room for one more: a large idle one saves the longer copy in a slot.
    problem = problem_of([0.5, 0.5], [20 * MB] * 2, [20 * MB, 80 * MB, 40 * MB], slots=3, ram_bytes=0.5e9)
    (item,) = solved(problem).adapters
    (replica,) = item.placement
    assert replica.tiers.gpu == ("idle1",)
    assert set(replica.tiers.host) == {"idle0", "idle2"}
    assert replica.tiers.host_bytes == pytest.approx(180 * MB)
    (host,) = item.hosts
    assert host.held == 5
    assert host.engine_flags.endswith("--max-loras 3 --max-lora-rank 32 --max-cpu-loras 5")


def test_an_engine_may_keep_no_more_than_memory_holds_of_the_largest():
    # By plan half of 400 MB; whoever is asked for last may be any, and the largest must fit the whole.
    problem = problem_of([0.5, 0.5], [80 * MB] * 2, [2 * MB] * 40, slots=2, ram_bytes=0.4e9)
    (item,) = solved(problem).adapters
    (replica,) = item.placement
    assert replica.tiers.host_bytes <= 0.2e9
    ranked = sorted([80 * MB] * 2 + [2 * MB] * 40, reverse=True)
    assert sum(ranked[: item.hosts[0].held]) <= 0.4e9


def test_the_check_finds_what_cannot_be():
    problem = problem_of([1.5, 1.5], [20 * MB] * 2, [80 * MB] * 3, slots=3, ram_bytes=0.8e9)
    plan = solved(problem)
    (item,) = plan.adapters
    sizes = problem.tenancies[0].sizes_bytes
    first, second = item.placement
    own, other = ([held.adapter for held in replica.adapters] for replica in (first, second))
    assert len(own) == len(other) == 2  # one slot of each is left

    def with_item(**changes):
        return replace(plan, adapters=(replace(item, **changes),))

    def with_host(**changes):
        host = replace(item.hosts[0], **changes)
        rows = tuple(replace(row, engine_flags=host.engine_flags) for row in plan.allocation)
        return replace(plan, adapters=(replace(item, hosts=(host,)),), allocation=rows)

    def with_first(**changes):
        ready = {name: changes[name] for name in TIERS if name in changes}
        tiers = replace(first.tiers, **({"gpu": ("idle0",), "host": ()} | ready))
        taken = sum(sizes.get(name, 0.0) for name in (*own, *tiers.gpu, *tiers.host))
        tiers = replace(tiers, **{"host_bytes": taken, **changes})
        nothing = replace(second.tiers, gpu=(), host=(), host_bytes=sum(map(sizes.get, other)))
        preload = replace(item.preload, on_disk=tuple(sorted({"idle0", "idle1", "idle2"} - {*tiers.gpu, *tiers.host})))
        placement = (replace(first, tiers=tiers), replace(second, tiers=nothing))
        changed = with_host(held=4, engine_flags=KIND.flags(3, held=4))
        return replace(changed, adapters=(replace(changed.adapters[0], placement=placement, preload=preload),))

    verify_plan(problem, plan)
    verify_plan(problem, with_first())
    wrong = {
        "4 adapters in slots": with_first(gpu=("idle0", "idle1")),
        "3 adapters in slots and 1 in host memory": with_first(host=("idle0",)),  # twice
        "nobody ready, which it has no slot for": with_first(host=("nobody",)),
        "take 120000000.0 bytes of host memory, and it says 1.0": with_first(host_bytes=1.0),
        "of 90000000.0": with_first(host_room_bytes=90 * MB),
        "and it has 800000000.0": with_first(host_room_bytes=1e9),
        "are said to be on disk only": with_item(preload=replace(item.preload, on_disk=("idle0",))),
        "and room for 2": with_item(hosts=(replace(item.hosts[0], held=2),)),
        "made for the rank 32, and it says 16": with_host(rank=16),
        "one starts with '', and its replicas with '--enable-lora": replace(
            plan, allocation=tuple(replace(row, engine_flags="") for row in plan.allocation)
        ),
        "saves more than its bound": with_item(preload=replace(item.preload, bound_s_per_s=0.0)),
    }
    held = item.hosts[0].held
    assert item.hosts[0].engine_flags == KIND.flags(3, held=held)
    flags = {
        "numbers swapped": f"--enable-lora --max-loras {held} --max-lora-rank 32 --max-cpu-loras 3",
        "another rank": f"--enable-lora --max-loras 3 --max-lora-rank 64 --max-cpu-loras {held}",
        "one fewer in host memory": f"--enable-lora --max-loras 3 --max-lora-rank 32 --max-cpu-loras {held - 1}",
        "another engine's": f"--enable-lora --max-loras-per-batch 3 --max-lora-rank 32 --max-loaded-loras {held}",
        "one missing": f"--enable-lora --max-loras 3 --max-cpu-loras {held}",
        "one twice": f"{KIND.flags(3, held=held)} --max-loras 4",
        "one without its number": f"--enable-lora --max-loras --max-lora-rank 32 --max-cpu-loras {held}",
        "none": "",
    }
    cases = [*wrong.items(), *((f"starts with '{each}'", with_host(engine_flags=each)) for each in flags.values())]
    for words, each in cases:
        with pytest.raises(SolverLiedError, match=words):
            verify_plan(problem, each)


TIERS = ("gpu", "host")


# --- from a request --------------------------------------------------------------------------------------------------


def planned(each, *, catalog=None, base_dir=None, **service):
    asked = {
        "name": "chat",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "adapters": {"each": each},
        "parallelism": {"tp": 1},
        "workload": {"constant": {"input_tokens": 800, "output_tokens": 200}},
        "slo": ["ttft p99 <= 2s", "tpot mean <= 60ms"],
    }
    request = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [asked | service],
        "catalog": catalog or {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}},
    }
    return planner.plan(request, base_dir=base_dir, today=date(2026, 11, 29))


def adapter(name, rate="0.2 req/s", **given):
    return {"name": name, "rank": 16, "target_modules": "q k v o", "rate": rate} | given


@pytest.fixture(scope="module")
def mixed():
    each = [adapter("a"), adapter("b"), adapter("own", isolation="dedicated"), adapter("idle", "0 req/s")]
    return planned([*each, adapter("large", "0 req/s", rank=64), adapter("apart", "0 req/s", isolation="dedicated")])


def test_every_adapter_has_a_tier_in_the_document_and_the_csv(mixed):
    (item,) = mixed.to_document()["adapters"]
    shared = next(replica for replica in item["placement"] if len(replica["adapters"]) == 2)
    assert shared["tiers"]["gpu"] == []
    # The one that is merged elsewhere must not share; the idle one may, and waits in host memory.
    assert shared["tiers"]["host"] == ["idle"]
    assert item["preload"]["on_disk"] == item["preload"]["unfit"] == ["large", "apart"]
    rows = list(csv.DictReader(io.StringIO(mixed.to_adapters_csv())))
    assert {(row["adapter"], row["tier"]) for row in rows} == {
        ("a", "gpu"), ("b", "gpu"), ("own", "gpu"), ("idle", "host"), ("large", "disk"), ("apart", "disk"),
    }  # fmt: skip
    assert [row["replica"] for row in rows if row["tier"] == "disk"] == ["", ""]
    again = plan_from_document(parse_document(mixed.to_json().encode(), name="plan.json"))
    assert again.adapters[0].placement[1].tiers.host == mixed.plan.adapters[0].placement[1].tiers.host
    assert json.loads(mixed.to_json())["adapters"][0]["preload"]["method"] == "integer-programme"


def test_reports_name_a_few_and_say_how_they_were_chosen(mixed):
    for text in (mixed.to_markdown(), mixed.to_html()):
        assert "idle in host memory; large, apart in no more than disk; 2 of these need an engine" in text
        assert "Chosen by an integer programme, nothing saves more." in text
    many = planned([adapter("a"), adapter("b"), *(adapter(f"i{number}", "0 req/s") for number in range(8))])
    assert "i0, i1, i2 and 5 more in host memory" in many.to_markdown()


def test_an_idle_adapter_is_unfit_only_where_the_engine_has_no_room_for_its_modules():
    each = [adapter("a"), adapter("b"), adapter("wide", "0 req/s", target_modules="all-linear")]
    assert planned(each).plan.adapters[0].preload.unfit == ()
    assert planned(each, engine={"name": "sglang"}).plan.adapters[0].preload.unfit == ("wide",)
    each = [adapter(name, target_modules="q k v o gate up down") for name in "ab"] + each[2:]
    assert planned(each, engine={"name": "sglang"}).plan.adapters[0].preload.unfit == ()


def test_slots_need_host_memory_for_what_is_in_them(tmp_path):
    lines = "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour,ram_gib\n"
    (tmp_path / "small.csv").write_text(f"{lines}acme,small,here,on-demand,A100-40GB,1,3.5,1\n", encoding="utf-8")
    (tmp_path / "large.csv").write_text(f"{lines}acme,large,here,on-demand,A100-40GB,1,3.5,64\n", encoding="utf-8")
    each = [adapter(f"a{number}", "0.01 req/s") for number in range(40)]
    found = {
        name: planned(each, catalog={"files": [f"{name}.csv"], "providers": ["acme"]}, base_dir=tmp_path).plan
        for name in ("small", "large")
    }
    assert len(found["large"].adapters[0].placement) == 1
    # Half of 1 GiB holds 19 adapters of 27 MB: two slots of a replica hold no more.
    assert {host.slots for host in found["small"].adapters[0].hosts} == {16}
    assert math.ceil(40 / 16) == len(found["small"].adapters[0].placement)


SPOT = {
    "providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["A100-40GB"]}, "markets": ["spot"],
    "spot_recovery": "72h", "spot_interruptions": {"gcp": "100%"},
}  # fmt: skip


def test_what_only_spot_has_is_asked_of_others_as_long_as_that_is_away():
    problem = problem_of([0.5] * 5, [20 * MB] * 5, [], slots=3, ram_bytes=4e9)  # two replicas, each adapter on one
    (option,) = problem.options
    offer = replace(option.offer, market=Market.SPOT)
    problem = replace(problem, options=(replace(option, offer=offer),))
    plan = solve(problem, settings=SolverSettings(relative_gap=0.0), assignment=Assignment.fractional())

    def saved(availability):
        found = with_tiers(problem, plan, kinds={"s": [KIND]}, gpus=load_gpus(), availability={"one": availability})
        return found.adapters[0].preload.saved_s_per_s

    assert [replica.adapters for replica in plan.adapters[0].placement if len(replica.adapters) in {2, 3}]
    assert 0.75 * 5 * OUT_FRACTION * 0.5 * 0.68 < saved(1.0) <= 5 * OUT_FRACTION * 0.5 * 0.68
    assert saved(0.9) == pytest.approx(10 * saved(1.0))
    assert saved(0.999) == saved(1.0)  # what is lost for other reasons is so on spot, too


def test_adapters_that_only_spot_has_are_warned_of():
    each = [adapter(f"a{number}", "3 req/s") for number in range(6)] + [adapter("idle", "0 req/s")]
    found = planned(each, catalog=SPOT)
    (item,) = found.plan.adapters
    assert len(item.placement) > 1
    (warning,) = (warning for warning in found.plan.warnings if warning.code == "W416")
    assert warning.observed == 6
    # 72 h of 720 h each time: a replica runs 1 / 1.1 of the time.
    assert "up to 9.09% of the time" in warning.message
    calm = planned(each, catalog={key: value for key, value in SPOT.items() if not key.startswith("spot_")})
    (unknown,) = (warning for warning in calm.plan.warnings if warning.code == "W416")
    assert "for how long is not known" in unknown.message

    for text in (found.to_markdown(), found.to_html(), found._repr_html_()):
        assert "No replay takes spot capacity away" in text
    kept = planned(each, catalog=SPOT | {"markets": ["on-demand", "spot"]}, spot_share={"max": "0%"})
    assert not any(warning.code == "W416" for warning in kept.plan.warnings)
    assert "No replay takes spot" not in kept.to_markdown()


def test_a_process_waits_as_a_container_with_its_libraries():
    each = [adapter(f"a{number}", "0.01 req/s") for number in range(3)]
    each += [adapter(f"i{number}", "0 req/s") for number in range(40)]
    (item,) = planned([one | {"isolation": "shared-backbone"} for one in each]).plan.adapters
    (host,) = item.hosts
    assert host.container_bytes == 1.5e9
    assert host.engine_flags == ""
    assert host.host_wait_s < 1 < 4 < host.disk_wait_s
    for replica in item.placement:
        n_there = len(replica.adapters) + len(replica.tiers.gpu) + len(replica.tiers.host)
        assert replica.tiers.host_bytes == pytest.approx(n_there * 1.527e9, rel=0.01)
        # 85 GiB, half of it: 29 processes.
        assert n_there <= 29
    assert sum(len(replica.tiers.host) for replica in item.placement) > 20
    assert item.preload.on_disk


def test_memory_that_nobody_stated_is_assumed_and_said(tmp_path):
    lines = "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour\n"
    (tmp_path / "own.csv").write_text(f"{lines}acme,bare,here,on-demand,A100-40GB,1,3.5\n", encoding="utf-8")
    each = [adapter("a"), adapter("b")]
    plan = planned(each, catalog={"files": ["own.csv"], "providers": ["acme"]}, base_dir=tmp_path).plan
    assert plan.adapters[0].placement[0].tiers.host_room_bytes == 32e9
    assert any("64 GB per GPU where it is not known: acme/bare" in text for text in plan.assumptions)
