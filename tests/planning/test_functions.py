"""Four ways to serve adapters: what each decides, what it costs, and when it is the cheapest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.adapters import Adapter, Isolation
from planner.domain.distributions import Weibull
from planner.domain.pay_per_use import BillingRule, PayPerUse
from planner.errors import InputError
from planner.files.slo import parse_slo
from planner.optimize.keep_alive import HybridHistogram, KeepAlivePrices, best_keep_alive, cost_of
from planner.optimize.preload import Tier
from planner.planning.function_case import FunctionCase, Hosting, Sizes, function_case
from planner.planning.function_objectives import objectives_of, steering_bounds_s
from planner.planning.function_plans import most_sharing
from planner.planning.function_serverless import growing
from planner.planning.function_ways import Prices, Way
from planner.planning.functions import compare_ways, halves
from planner.planning.keep_alive_rules import gaps_of, rule_table, start_median_s
from planner.profilers.adapter_batching import BatchLatency
from planner.profilers.efficiency import default_params
from planner.profilers.first_token import published_load_times
from planner.profilers.startup import Quantiles
from planner.simulate.functions.pool import pool_size
from planner.simulate.functions.records import FunctionRecords
from planner.simulate.functions.setting import Functions, Setting, StartTimes
from planner.workload.adapter_traffic import traffic_at_rates

POISSON = Weibull.of_mean(1.0, shape=1.0)
QKVO = ("k_proj", "o_proj", "q_proj", "v_proj")


def adapters(rates, ranks=(), **changes):
    known = {"target_modules": QKVO}
    return [
        Adapter(**(known | {"name": f"a{i}", "rate_rps": rate, "rank": rank} | changes))
        for i, (rate, rank) in enumerate(zip(rates, ranks or [16] * len(rates), strict=True))
    ]


def case_of(rates, slos=("ttft p90 <= 2s",), ranks=(), modules=QKVO, **hosting):
    return function_case(
        load_model("llama-2-7b"),
        load_gpus().get("L40S"),
        adapters(rates, ranks, target_modules=modules),
        sizes=Sizes(input_tokens=512, output_tokens=128),
        slos=[parse_slo(text) for text in slos],
        hosting=Hosting(**({"storage_bytes_per_s": 2e9, "loader": "serverlessllm"} | hosting)),
        params=default_params(),
    )


def requests(rates, hours, gaps=None, seed=0):
    return traffic_at_rates(rates, np.random.default_rng(seed), duration_s=hours * 3600.0, gaps=gaps)


def test_sizes_and_times_of_a_model():
    case = case_of([0.1, 0.1])
    setting = case.setting
    assert setting.backbone_bytes == pytest.approx(13.5e9, rel=0.01)
    assert case.functions.adapter_bytes == pytest.approx([33.55e6] * 2, rel=0.01)
    assert setting.kv_bytes == case.most_batch * case.request_kv_bytes == pytest.approx(8 * 640 * 524_288)
    assert 38e9 < setting.gpu_bytes < 44e9
    # a prompt of 512 tokens is 7 TFLOP of an L40S's 362 at most; a token reads 13.5 GB at 864 GB/s at most
    assert 0.019 < setting.prefill.first_s < 0.2
    assert 13.5 / 864 < setting.decode.first_s / 127 < 0.05
    # adapters cost a pool time: their matrices are read, and their kernels launched
    assert case.pool_setting.decode.first_s > setting.decode.first_s
    assert case.target_fraction == 0.9
    assert setting.start.kernels_s.p50 < 1 < case_of([0.1], captures_graphs=True).setting.start.kernels_s.p50


def test_a_pool_computes_and_stores_every_adapter_at_the_rank_of_its_slots():
    """vLLM pads to --max-lora-rank: a rank of 12 beside one of 4 costs what two of 16 do, and one of 4 does not."""
    mixed, padded, small = (case_of([0.1, 0.1], ranks=ranks) for ranks in ((4, 12), (16, 16), (4, 4)))
    assert mixed.pool_setting == replace(padded.pool_setting, start=mixed.pool_setting.start)
    # A slot has room in every module of the model: of rank 16 those of Llama-2-7B take 80 MB, the adapters' four 34 MB.
    assert mixed.pool_setting.slot_bytes == pytest.approx(79.95e6, rel=1e-3)
    assert small.pool_setting.decode.first_s < mixed.pool_setting.decode.first_s
    assert mixed.functions.adapter_bytes.tolist() == pytest.approx([33.55e6 / 4, 33.55e6 * 3 / 4], rel=0.01)
    slots = [
        pool_size(case.pool_setting, case.functions, n_engines=1, request_kv_bytes=case.request_kv_bytes)
        for case in (mixed, padded)
    ]
    assert slots[0] == slots[1]


def test_modules_that_an_adapter_does_not_change_are_read_as_zeros():
    """vLLM's products are of every module of the model, so adapters of two modules take as long as those of seven."""
    two, seven = (case_of([0.1, 0.1], modules=modules) for modules in (("q_proj", "v_proj"), ("all-linear",)))
    assert two.pool_setting.decode == seven.pool_setting.decode
    assert two.pool_setting.slot_bytes == seven.pool_setting.slot_bytes
    assert two.functions.adapter_bytes.max() < seven.functions.adapter_bytes.max() / 4


def test_what_cannot_be_compared_is_refused():
    known = {
        "sizes": Sizes(input_tokens=512, output_tokens=128),
        "slos": [parse_slo("ttft p90 <= 2s")],
        "hosting": Hosting(storage_bytes_per_s=2e9),
        "params": default_params(),
    }
    model, gpu = load_model("llama-2-7b"), load_gpus().get("L40S")
    with pytest.raises(InputError, match="'a0' has no objective"):
        function_case(model, gpu, adapters([1.0]), **(known | {"slos": []}))
    with pytest.raises(InputError, match="cannot be served on one L4"):
        function_case(load_model("llama-2-70b"), load_gpus().get("L4"), adapters([1.0]), **known)


def test_an_adapter_in_its_weights_shares_nothing_and_weighs_nothing():
    beside = case_of([0.02, 0.02])
    merged = function_case(
        load_model("llama-2-7b"),
        load_gpus().get("L40S"),
        adapters([0.02, 0.02], is_merged=True, isolation=Isolation.DEDICATED),
        sizes=Sizes(input_tokens=512, output_tokens=128),
        slos=[parse_slo("ttft p90 <= 2s")],
        hosting=Hosting(storage_bytes_per_s=2e9, loader="serverlessllm"),
        params=default_params(),
    )
    assert merged.functions.adapter_bytes.tolist() == [0.0, 0.0]
    traffic, prices = requests([0.02, 0.02], 6.0), Prices(usd_per_gpu_hour=1.86)
    found, other = compare_ways(traffic, merged, prices), compare_ways(traffic, beside, prices)
    assert [way.way for way in found.ways] == [Way.DEDICATED, Way.SERVERLESS, Way.KEPT]
    assert [text for text in found.cautions if "asks for isolation dedicated" in text] == [*found.cautions[:2]]
    assert len(other.ways) == 5
    assert found.ways[1].cost_usd == pytest.approx(other.ways[2].cost_usd)


def records(ttft_s, e2e_s, function):
    n = len(ttft_s)
    return FunctionRecords(
        arrival_s=np.arange(n, dtype=np.float64), function=np.array(function), machine=np.zeros(n, dtype=np.int64),
        ttft_s=np.array(ttft_s), e2e_s=np.array(e2e_s), cold_s=np.zeros((n, 6)), inference_s=np.zeros(n),
    )  # fmt: skip


def test_what_requests_are_judged_by():
    two = adapters([1.0, 1.0])
    found = records([1.0, 3.0, 1.0], [5.0, 6.0, 2.0], [0, 0, 1])
    mean = objectives_of(two, [parse_slo("ttft mean <= 2s")])
    assert mean.is_attained(found, output_tokens=11).tolist() == [True, False, True]
    assert mean.attainment_of_each(found, output_tokens=11).tolist() == [0.5, 1.0]
    assert mean.shortfall(found, output_tokens=11) == 0.0  # 5/3 s
    tight = objectives_of(two, [parse_slo("ttft mean <= 1s")])
    assert tight.shortfall(found, output_tokens=11) == pytest.approx(5 / 3 - 1)
    ends = objectives_of(two, [parse_slo("e2e p90 <= 5s"), parse_slo("tpot mean <= 200ms")])
    assert ends.is_attained(found, output_tokens=11).tolist() == [True, False, True]
    assert ends.target_fraction == 0.9
    assert ends.shortfall(found, output_tokens=11) == pytest.approx(0.9 - 2 / 3 + (0.8 / 3 / 0.2 - 1))
    own = objectives_of(adapters([1.0], slos=(parse_slo("ttft mean <= 1s"),)) + two[1:], [parse_slo("ttft mean <= 4s")])
    assert own.shortfall(found, output_tokens=11) == pytest.approx((1.0 + 3.0 + 0.25) / 3 - 1)
    assert not tight.holds_safely(found, output_tokens=11)
    many = records([1.0, 1.2] * 50, [2.0] * 100, [0] * 100)
    assert objectives_of(two, [parse_slo("ttft mean <= 1.2s")]).holds_safely(many, output_tokens=11)
    assert not objectives_of(two, [parse_slo("ttft p50 <= 1s")]).holds_safely(many, output_tokens=11)  # just half
    assert objectives_of(two, [parse_slo("ttft p40 <= 1s")]).holds_safely(many, output_tokens=11)


def test_batches_are_sized_by_what_means_and_ends_leave():
    def steered(*slos):
        objectives = objectives_of(adapters([1.0]), [parse_slo(text) for text in slos])
        return [float(bound[0]) for bound in steering_bounds_s(objectives, first_s=0.1, later_s=3.0)]

    assert steered("ttft p90 <= 2s", "tpot p90 <= 50ms") == [2.0, 0.05]
    assert steered("ttft mean <= 2s", "ttft p99 <= 9s") == [2.0, math.inf]
    assert steered("e2e p90 <= 5s") == pytest.approx([2.0, math.inf])
    assert steered("e2e p90 <= 2s") == [0.1, math.inf]
    assert steered("tpot p90 <= 50ms") == [math.inf, 0.05]


def test_machines_of_adapters_are_billed_as_their_cloud_counts():
    rates = [0.01] * 4
    traffic, case = requests(rates, 6.0), case_of(rates)
    rule = BillingRule(provider="a", minimum_s=600.0, step_s=60.0)
    found = compare_ways(traffic, case, Prices(usd_per_gpu_hour=1.8, rule=rule), ways=[Way.SERVERLESS, Way.SHARED])
    for way in found.ways:
        rented_s = sum(max(600.0, math.ceil(hold / 60.0) * 60.0) for hold in way.replay.holds_s)
        paid_s = way.n_always_on * found.duration_s + rented_s
        assert way.cost_usd == pytest.approx(paid_s * 1.8 / 3600)
        assert way.cost_usd > way.gpu_s * 1.8 / 3600 or not len(way.replay.holds_s)
    assert len(found.of(Way.SERVERLESS).replay.holds_s) > 10


def test_ways_are_tried_where_they_are_learnt():
    """On the second quarter, whatever comes in the half that is judged."""
    rates = [0.01] * 4
    traffic, case = requests(rates, 12.0), case_of(rates)
    late = traffic.arrival_s >= traffic.duration_s / 2
    fewer = replace(traffic, arrival_s=traffic.arrival_s[~late | (np.arange(len(late)) % 3 == 0)],
                    adapter=traffic.adapter[~late | (np.arange(len(late)) % 3 == 0)])  # fmt: skip
    ways, prices = [Way.SERVERLESS, Way.KEPT, Way.SHARED], Prices(usd_per_gpu_hour=1.8)
    whole, other = (compare_ways(each, case, prices, ways=ways) for each in (traffic, fewer))
    assert [way.trial for way in whole.ways] == [way.trial for way in other.ways]
    assert all(way.trial.usd_per_hour > 0 for way in whole.ways)
    assert whole.n_requests > 2 * other.n_requests
    assert compare_ways(traffic, case, prices, ways=[Way.DEDICATED]).ways[0].trial is None


def test_halves_of_the_time():
    first, second = halves(requests([0.1], 1.0, POISSON))
    assert first.duration_s == second.duration_s == 1800.0
    assert 0 <= second.arrival_s.min() < second.arrival_s.max() < 1800.0
    with pytest.raises(InputError, match="nothing can be learnt"):
        halves(requests([0.001], 1.0, POISSON))


def test_turns_that_the_tightest_bound_leaves():
    case = case_of([0.1])
    tight = replace(case.functions, tpot_bound_s=np.array([2.5 * case.setting.decode.first_s / 127]))
    assert most_sharing(tight, case.setting, output_tokens=128) == 2
    impossible = replace(case.functions, ttft_bound_s=np.array([1e-3]))
    assert most_sharing(impossible, case.setting, output_tokens=128) == 1


def test_numbers_of_gpus_that_are_tried():
    assert growing(20) == [0, 1, 2, 3, 4, 6, 8, 12, 16]
    assert all(later <= 2 * max(1, earlier) for earlier, later in pairwise(growing(1000)))


def test_a_steady_stream_is_best_served_by_one_pool():
    """Twenty adapters that are asked for all day keep a GPU: no way can give it back for more than moments."""
    rates = [0.02] * 20
    found = compare_ways(requests(rates, 3.0), case_of(rates), Prices(usd_per_gpu_hour=2.0))
    assert found.of(Way.POOL).cost_usd <= 1.01 * found.cheapest.cost_usd
    assert found.of(Way.POOL).n_always_on == 1
    dedicated = found.of(Way.DEDICATED)
    assert dedicated.n_always_on == 10  # two copies of 13.5 GB and their caches on each
    assert dedicated.cost_usd == pytest.approx(10 * 1.5 * 2.0)
    assert dedicated.attainment == 1.0
    assert found.of(Way.SHARED).cost_usd < dedicated.cost_usd / 2
    for way in found.ways:
        assert (way.replay.peak_bytes <= case_of(rates).setting.gpu_bytes * (1 + 1e-8)).all()


def test_a_few_requests_a_day_are_best_not_waited_for():
    """Billed by use, and with weeks between sessions, an always-on pool is far the dearest of those that share."""
    rates = [0.0008] * 4
    traffic = requests(rates, 72.0)
    prices = Prices(usd_per_gpu_hour=2.0, usd_per_used_gpu_s=2.0 / 3600)
    case = case_of(rates, slos=("ttft p50 <= 8s",))
    found = compare_ways(traffic, case, prices)
    shared, pool = found.of(Way.SHARED), found.of(Way.POOL)
    assert found.meets(shared)
    assert shared.cost_usd < pool.cost_usd / 3
    assert shared.cost_usd == pytest.approx(shared.gpu_s * prices.usd_per_used_gpu_s)
    assert shared.gpu_s == shared.replay.gpu_share_s < shared.replay.gpu_s
    again = compare_ways(traffic, case, prices, ways=[Way.SHARED])
    assert again.ways[0].replay.records.ttft_s.tolist() == shared.replay.records.ttft_s.tolist()


def published_case(rates):
    """Four functions of Llama-2-7B as published: load times of the timeline, sizes of the re-implementation."""
    times = published_load_times()
    sure = {name: Quantiles(value, value) for name, value in (
        ("container", times.container_s), ("libraries", times.libraries_s), ("backbone", times.backbone_s),
        ("mapped", 0.1), ("adapter", times.adapter_s), ("kernels", times.kernels_s),
    )}  # fmt: skip
    setting = Setting(
        gpu_bytes=44.4e9,
        host_bytes=64e9,
        backbone_bytes=14e9,
        context_bytes=0.5e9,
        kv_bytes=4e9,
        container_bytes=1.5e9,
        prefill=BatchLatency(first_s=times.inference_s, per_request_s=0.05),
        decode=BatchLatency(first_s=3.0, per_request_s=0.05),
        start=StartTimes(
            container_s=sure["container"],
            libraries_s=sure["libraries"],
            backbone_s=dict.fromkeys((Tier.DISK, Tier.HOST), sure["backbone"]),
            backbone_shared_s=sure["mapped"],
            adapter_s=dict.fromkeys((Tier.DISK, Tier.HOST), sure["adapter"]),
            kernels_s=sure["kernels"],
        ),
    )
    n = len(rates)
    functions = Functions(
        adapter_bytes=np.full(n, 0.1e9),
        rate_rps=np.array(rates),
        ttft_bound_s=np.full(n, 4.0),
        tpot_bound_s=np.full(n, np.inf),
    )
    return FunctionCase(
        functions=functions,
        setting=setting,
        pool_setting=setting,
        request_kv_bytes=0.5e9,
        most_batch=8,
        output_tokens=128,
        target_fraction=0.9,
        assumptions=(),
    )


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.03])
def test_no_more_is_saved_than_was_published(rate):
    """T13: on four functions of Llama-2-7B, TTFT falls by 86% at most, and costs by 89%."""
    rates = [rate] * 4
    traffic = requests(rates, 24.0)
    found = compare_ways(
        traffic, published_case(rates), Prices(usd_per_gpu_hour=1.0), ways=[Way.SERVERLESS, Way.SHARED]
    )
    assert found.cautions == ()
    shared, plain = found.of(Way.SHARED), found.of(Way.SERVERLESS)
    assert shared.attainment > plain.attainment
    assert shared.replay.records.ttft_s.mean() < plain.replay.records.ttft_s.mean()


def test_savings_beyond_the_published_ones_are_explained():
    rates = [0.01] * 4
    case = published_case(rates)
    quick = replace(case, setting=replace(case.setting, prefill=BatchLatency(first_s=0.05, per_request_s=0.0)))
    found = compare_ways(
        requests(rates, 24.0, POISSON), quick, Prices(usd_per_gpu_hour=1.0), ways=[Way.SERVERLESS, Way.SHARED]
    )
    assert any("with theirs it would fall by" in text for text in found.cautions)


# --- the command -----------------------------------------------------------------------------------------------------

OPTIONS = (
    "--model", "llama-2-7b", "--gpu", "L40S", "--price", "1.86 USD/h", "--slo", "ttft p90 <= 2s", "--storage-gb-s", "2",
    "--input", "512", "--output", "128", "--hours", "4",
)  # fmt: skip


def test_the_command_compares_the_example(gpuplan, repo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    ran = gpuplan("adapters", "compare", repo / "examples/tenants.csv", *OPTIONS)
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:6]] == [way.value for way in Way]
    assert "A request that finds nothing ready waits" in ran.err  # longer starts than those published, and so said
    assert [line.split()[0] for line in ran.out.splitlines()[-7:]] == [
        "learnt",
        "never",
        "60",
        "10",
        "always",
        "hybrid",
        "best",
    ]
    assert "requests for 8 adapters in 2 h; 95.0% have to be within their SLOs." in ran.out  # support asks for a p95
    lines = ran.out.splitlines()
    said = lines[lines.index("Loaded before anybody asks:") + 1 :][: len(Way)]
    assert [line.split(":")[0].strip() for line in said] == [way.value for way in Way]
    assert said[0].endswith("and 5 more in GPU memory")
    assert said[2] == "  serverless: nothing; all on disk"
    assert "not measured here" in ran.err


def test_the_command_as_json(gpuplan, repo):
    arguments = ("adapters", "compare", repo / "examples/tenants.csv", *OPTIONS, "--json", "--used-price", "0.0006")
    ran = gpuplan(*arguments)
    assert ran.code == 0
    assert ran.json["kind"] == "AdapterWays"
    assert [way["way"] for way in ran.json["ways"]] == [way.value for way in Way]
    kept = next(way for way in ran.json["ways"] if way["way"] == "kept")["keep_alive_s"]
    assert list(kept) == [entry["adapter"] for entry in ran.json["keep_alive"]]
    for entry in ran.json["keep_alive"]:
        costs = {name: rule["cost_usd"] for name, rule in entry["rules"].items()}
        assert costs["best in hindsight"] <= min(
            costs[name] for name in ("learnt", "never", "60 s", "10 min", "always")
        )
    for way in ran.json["ways"]:
        _has_every_adapter_somewhere(way, list(kept))
    assert gpuplan(*arguments).out == ran.out
    assert gpuplan(*arguments, "--seed", "1").out != ran.out


def _has_every_adapter_somewhere(way, names):
    """Names stand where the numbers of what was learnt say, and each adapter is on a machine or on disk."""
    gpu = [name for part in way["preloaded"] for name in part["gpu"] * len(part["machines"])]
    host = [name for part in way["preloaded"] for name in part["host"]]
    assert {*gpu, *host, *way["on_disk_only"]} == set(names)
    assert not {*gpu, *host} & set(way["on_disk_only"])
    assert len({machine for part in way["preloaded"] for machine in part["machines"]}) == way["gpus_always_on"]
    expected = {
        "dedicated": lambda: len(gpu) == way["learnt"]["copies"],
        "pool": lambda: len(gpu) == way["learnt"]["slots"] * way["gpus_always_on"],
        "shared": lambda: (len(gpu), len(host)) == (way["learnt"]["loaded_ahead"], way["learnt"]["containers_ahead"]),
    }
    assert expected.get(way["way"], lambda: way["on_disk_only"] == names)()


@pytest.mark.parametrize(
    ("row", "extra", "code", "words"),
    [
        ("a,16,q v,1 req/s", ("--hours", "0"), 2, "--hours 0 is no time"),
        ("a,16,q v,1 req/s", ("--arrivals", "odd"), 2, "bursty or poisson"),
        ("a,16,q v,1 req/s", ("--storage-gb-s", "0"), 2, "is no rate"),
        ("a,16,q v,1 req/s", ("--price", "2"), 2, "2.49 USD/h"),
        ("a,16,q v,1 req/s", ("--model", "no-such-model"), 6, "no-such-model"),
        ("a,16,q v,1 req/s", ("--gpu", "no-such-gpu"), 6, "no-such-gpu"),
        ("a,16,q v,1 req/s", ("--host-gb", "1"), 2, "Give the machine more host memory"),
        ("a,16,q v,0.1 req/h", (), 2, "nothing can be learnt"),
        ("a,0,q v,1 req/s", (), 2, "adapters.csv:2, field rank"),
    ],
)
def test_wrong_input_of_the_command(row, extra, code, words, gpuplan, tmp_path):
    path = tmp_path / "adapters.csv"
    path.write_text(f"name,rank,target_modules,rate\n{row}\n", encoding="utf-8")
    ran = gpuplan("adapters", "compare", path, *OPTIONS, *extra, "--json")
    assert ran.code == code
    assert ran.out == ""
    error = json.loads(ran.err)["error"]
    assert words in json.dumps(error)


def test_the_command_bills_an_offer(gpuplan, repo, tmp_path):
    own = tmp_path / "own.csv"
    columns, values = "usd_per_gpu_s,usd_per_vcpu_s,vcpus,all_in,step_s,keep_alive_s", "0.0003,0.00005,4,no,60,300"
    own.write_text(f"provider,gpu,{columns}\nacme,L40S,{values}\n", encoding="utf-8")
    ran = gpuplan(
        "adapters", "compare", repo / "examples/tenants.csv", *OPTIONS, "--offer", "acme/l40s", "--offers", own,
        "--miss-price", "0.01 USD", "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert ran.json["offer"] == "acme/L40S"
    ways = {way["way"]: way for way in ran.json["ways"]}
    assert "kept" not in ways
    assert any("acme itself keeps idle containers 300 s" in text for text in ran.json["cautions"])
    assert ways["serverless"]["learnt"] == {"keep_alive_s": 300.0}
    assert ways["serverless"]["cost_usd"] % 0.03 == pytest.approx(0.0, abs=1e-9)  # whole minutes at 0.0005 USD/s
    assert any("acme/L40S: 0.0005 USD/s, and more that is not known" in text for text in ran.json["cautions"])
    missed = round(ran.json["requests"] * (1 - ways["serverless"]["attainment"]))
    assert ways["serverless"]["miss_usd"] == pytest.approx(0.01 * missed)
    assert missed > 0


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (("--offer", "modal/L4"), 2, "has a L4, and --gpu is a L40S"),
        (("--offer", "modal/L40X"), 6, "no pay-per-use offer 'modal/L40X'"),
        (("--offer", "modal/L40S", "--used-price", "0.001"), 2, "a cloud does one of the two"),
        (("--offer", "modal/L40S", "--miss-price", "1"), 2, "2.50 USD"),
        (("--offer", "modal/L40S", "--offers", "nowhere.csv"), 2, "nowhere.csv"),
        (("--provision", "-5s"), 2, "--provision is below 0"),
        (("--price", "-1 USD/h"), 2, "--price is below 0"),
        (("--miss-price", "-1 USD"), 2, "--miss-price is below 0"),
    ],
)
def test_wrong_offers_of_the_command(extra, code, words, gpuplan, repo):
    ran = gpuplan("adapters", "compare", repo / "examples/tenants.csv", *OPTIONS, *extra)
    assert ran.code == code
    assert words in " ".join(ran.err.split())


def test_adapters_with_traces_are_played_as_they_are(gpuplan, tmp_path):
    times = {"a": [0.0, 1.0, 2.0], "b": [0.5]}
    for name, first in times.items():
        rows = [f"{minute * 60 + second},512,128" for minute in range(60) for second in first]
        (tmp_path / f"{name}.csv").write_text(
            "arrival_s,input_tokens,output_tokens\n" + "\n".join(rows), encoding="utf-8"
        )
    path = tmp_path / "adapters.csv"
    path.write_text("name,rank,target_modules,trace\na,16,q v,a.csv\nb,16,q v,b.csv\n", encoding="utf-8")
    without_hours = [option for option in OPTIONS if option not in {"--hours", "4"}]
    ran = gpuplan("adapters", "compare", path, *without_hours, "--json")
    assert ran.code == 0
    assert ran.json["hours"] == pytest.approx((59 * 60 + 2) / 3600)
    assert ran.json["requests"] == pytest.approx(120, abs=4)
    by_name = {entry["adapter"]: entry for entry in ran.json["keep_alive"]}
    assert by_name["a"]["requests"] == pytest.approx(3 * by_name["b"]["requests"], abs=3)
    assert by_name["b"]["learnt_s"] == 0.0  # it idles some 57 s, longer than a start takes
    missed = gpuplan("adapters", "compare", path, *without_hours, "--miss-price", "1 USD", "--json")
    assert 50 < missed.json["keep_alive"][1]["learnt_s"] < 60
    short = gpuplan("adapters", "compare", path, *without_hours, "--hours", "0.5", "--json")
    assert short.json["hours"] == pytest.approx(0.5)


def test_a_trace_is_played_over_and_over_beside_rates(gpuplan, tmp_path):
    rows = "".join(f"{20 * number},512,128\n" for number in range(46))  # 15 minutes, and the time is 4 hours
    (tmp_path / "a.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    path = tmp_path / "adapters.csv"
    path.write_text("name,rank,target_modules,trace,rate\na,16,q v,a.csv,\nb,16,q v,,40 req/h\n", encoding="utf-8")
    ran = gpuplan("adapters", "compare", path, *OPTIONS, "--json")
    assert ran.code == 0
    assert ran.json["hours"] == pytest.approx(4.0)
    by_name = {entry["adapter"]: entry["requests"] for entry in ran.json["keep_alive"]}
    assert by_name["a"] == pytest.approx(46 / 900 * 7200, abs=2)  # in the second half
    assert 30 < by_name["b"] < 150


# --- what adapters may share -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isolation", "left_out"),
    [
        (Isolation.SHARED_PROCESS, set()),
        (Isolation.SHARED_BACKBONE, {Way.POOL}),
        (Isolation.DEDICATED, {Way.POOL, Way.SHARED}),
    ],
)
def test_ways_that_share_too_much_are_left_out(isolation, left_out):
    rates = [0.01] * 3
    listed = [*adapters(rates[:2]), *adapters(rates[2:], name="alone", isolation=isolation)]
    case = function_case(
        load_model("llama-2-7b"),
        load_gpus().get("L40S"),
        listed,
        sizes=Sizes(input_tokens=512, output_tokens=128),
        slos=[parse_slo("ttft p90 <= 2s")],
        hosting=Hosting(storage_bytes_per_s=2e9),
        params=default_params(),
    )
    found = compare_ways(requests(rates, 2.0, POISSON), case, Prices(usd_per_gpu_hour=1.0))
    assert {way.way for way in found.ways} == set(Way) - left_out
    said = [text for text in found.cautions if "is left out" in text]
    assert len(said) == len(left_out)
    assert all("'alone'" in text and isolation.value in text for text in said)


# --- what is billed, and how long to keep ----------------------------------------------------------------------------


def offer(**changes):
    return PayPerUse(**({"name": "a/L40S", "provider": "a", "gpu": "L40S", "usd_per_gpu_s": 5e-4} | changes))


def test_an_offer_bills_every_container_from_start_to_end():
    rates = [0.01] * 4
    traffic = requests(rates, 6.0)
    case = case_of(rates)
    found = compare_ways(
        traffic, case, Prices(usd_per_gpu_hour=1.8, offer=offer(step_s=10.0)), ways=[Way.SERVERLESS, Way.SHARED]
    )
    plain = found.of(Way.SERVERLESS)
    holds = plain.replay.holds_s
    assert len(holds) == plain.replay.n_starts > 10  # a container for each process
    assert plain.cost_usd == pytest.approx(sum(math.ceil(hold / 10.0) * 10.0 for hold in holds) * 5e-4)
    assert plain.replay.gpu_s == pytest.approx(holds.sum())
    one_process = case.setting.backbone_bytes + case.setting.context_bytes + case.setting.kv_bytes + 33.6e6
    assert plain.replay.peak_bytes.max() <= one_process * 1.001
    shared = found.of(Way.SHARED)
    always_on_usd = shared.n_always_on * found.duration_s * 1.8 / 3600
    rented_usd = sum(math.ceil(hold / 10.0) * 10.0 for hold in shared.replay.holds_s) * 5e-4
    assert shared.cost_usd == pytest.approx(always_on_usd + rented_usd)


def test_idle_time_that_is_not_billed_is_not_paid():
    rates = [0.01] * 4
    traffic, case = requests(rates, 6.0), case_of(rates)
    billed = compare_ways(
        traffic, case, Prices(usd_per_gpu_hour=1.8, offer=offer(keep_alive_s=60.0)), ways=[Way.SERVERLESS]
    )
    free = compare_ways(
        traffic, case, Prices(usd_per_gpu_hour=1.8, offer=offer(bills_idle=False, keep_alive_s=60.0)),
        ways=[Way.SERVERLESS],
    )  # fmt: skip
    same, less = billed.ways[0], free.ways[0]
    assert less.replay.records.ttft_s.tolist() == same.replay.records.ttft_s.tolist()
    assert less.cost_usd == pytest.approx(less.replay.rented_used_s * 5e-4)
    assert less.cost_usd < same.cost_usd - 60.0 * 5e-4 * (less.replay.n_starts - 4)


def test_dearer_misses_are_paid_to_be_avoided():
    """With a price on late answers plain processes are kept longer, and fewer requests are late."""
    rates = [0.003] * 4
    traffic, case = requests(rates, 24.0), case_of(rates, slos=("ttft p10 <= 2s",))
    cheap, dear = (
        compare_ways(traffic, case, Prices(usd_per_gpu_hour=1.0, usd_per_miss=usd), ways=[Way.KEPT]).ways[0]
        for usd in (0.0, 1.0)
    )
    assert cheap.miss_usd == 0.0 < dear.miss_usd
    assert dear.attainment > cheap.attainment
    assert dear.cost_usd > cheap.cost_usd
    assert dear.total_usd == dear.cost_usd + dear.miss_usd
    n_missed = round(len(dear.replay.records) * (1 - dear.attainment))
    assert dear.miss_usd == pytest.approx(n_missed)


def test_rules_are_learnt_before_they_are_told():
    """What is learnt does not see the second half; the histogram goes on from the first."""
    rates = [0.02, 0.002]
    traffic, case = requests(rates, 24.0), case_of(rates)
    first, second = halves(traffic)
    prices = Prices(usd_per_gpu_hour=1.0, usd_per_miss=0.02)
    table = rule_table(first, second, case, prices)
    later = replace(second, arrival_s=np.sort(second.arrival_s[::3]), function=second.function[::3])
    assert rule_table(first, later, case, prices).learnt_s.tolist() == table.learnt_s.tolist()
    for f in range(2):
        before, after = (gaps_of(half, case)[f] for half in (first, second))
        price = KeepAlivePrices(
            idle_usd_per_s=float(table.idle_usd_per_s[f]), cold_start_usd=float(table.cold_start_usd[f])
        )
        assert table.costs["learnt"][f] == cost_of(best_keep_alive(before, price), after, price)
        windows = HybridHistogram().windows(before)
        assert table.costs["hybrid histogram"][f].n_requests == after.n_requests
        assert windows[-1] == HybridHistogram().windows(
            replace(after, gaps_s=np.concatenate([before.gaps_s, after.gaps_s]))
        )[len(before.gaps_s)]  # fmt: skip
    assert table.idle_usd_per_s.tolist() == [1.0 / 3600] * 2
    start_s = start_median_s(case.setting)
    assert table.cold_start_usd == pytest.approx([start_s / 3600 + 0.02] * 2)


def test_what_an_offer_cannot_be_combined_with():
    with pytest.raises(ValueError, match="whole GPUs or parts"):
        Prices(usd_per_gpu_hour=1.0, usd_per_used_gpu_s=1e-4, offer=offer())
    with pytest.raises(ValueError, match="says itself how long"):
        offer(bills_idle=False)
