"""Two replays of always-on engines with slots for adapters: `simulate.functions.pool` and the event loop of plans.

The pool advances whole batches by two straight lines, the event loop every step of an engine with chunked prefill.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulate.stations import one_row, traffic

from planner.catalog.gpus import load_gpus
from planner.catalog.models import load_model
from planner.domain.adapters import Adapter, Isolation
from planner.files.slo import parse_slo
from planner.planning.function_case import ENGINE, Hosting, Sizes, function_case
from planner.profilers.adapters import AdapterRoom
from planner.profilers.efficiency import default_params
from planner.simulate.functions.pool import pool_size, replay_pool
from planner.simulate.run import Pools, simulate
from planner.simulate.steps import EngineKind, engine_table

MODEL, GPU = load_model("llama-2-7b"), load_gpus().get("L40S")
SIZES = Sizes(input_tokens=512, output_tokens=128)
N_ADAPTERS, N_REQUESTS = 8, 5000


@pytest.fixture(scope="module")
def case():
    adapters = [
        Adapter(name=f"a{i}", rank=16, target_modules=("k_proj", "o_proj", "q_proj", "v_proj"), rate_rps=0.1)
        for i in range(N_ADAPTERS)
    ]
    slos, hosting = [parse_slo("ttft p90 <= 2s")], Hosting(storage_bytes_per_s=2e9)
    return function_case(MODEL, GPU, adapters, sizes=SIZES, slos=slos, hosting=hosting, params=default_params())


@pytest.fixture(scope="module")
def kind(case):
    room = AdapterRoom(
        count=N_ADAPTERS,
        bytes_each=case.pool_setting.slot_bytes,
        isolation=Isolation.SHARED_PROCESS,
        context_bytes=case.pool_setting.context_bytes,
    )
    config = replace(ENGINE, precision="fp16")
    return engine_table([EngineKind(MODEL, GPU, config, default_params(), room=room)])


def size_of(case):
    return pool_size(case.pool_setting, case.functions, n_engines=1, request_kv_bytes=case.request_kv_bytes)


def test_both_have_room_for_as_many_requests(case, kind):
    """The pool takes a context from what engines may use, 1.5 requests' cache of 84."""
    assert size_of(case).n_slots == N_ADAPTERS
    in_loop = float(kind["kv_room"][0]) / case.request_kv_bytes
    assert in_loop - 2.5 < size_of(case).most_running <= in_loop


@pytest.mark.parametrize("rate_rps", [1.0, 3.0])
def test_both_say_the_same_of_one_engine_with_all_adapters(case, kind, rate_rps):
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, N_REQUESTS))
    adapter = rng.integers(0, N_ADAPTERS, N_REQUESTS)
    pooled = replay_pool(
        arrivals,
        adapter,
        functions=case.functions,
        setting=case.pool_setting,
        size=size_of(case),
        rng=rng,
        end_s=float(arrivals[-1]),
    ).records
    asked = replace(traffic(arrivals, np.full(N_REQUESTS, 128)), input_tokens=np.full(N_REQUESTS, 512), adapter=adapter)
    looped = simulate(Pools(kinds=kind, replicas=(1,)), asked, one_row()).records
    after = slice(N_REQUESTS // 10, None)
    for name in ("ttft_s", "e2e_s"):
        mine, theirs = getattr(pooled, name), getattr(looped, name)
        for level in (0.5, 0.99):
            assert np.quantile(mine[after], level) == pytest.approx(np.quantile(theirs[after], level), rel=0.1)
        assert mine[after].mean() == pytest.approx(theirs[after].mean(), rel=0.1)
    ends = [float(np.max(arrivals + each.e2e_s)) for each in (pooled, looped)]
    assert ends[0] == pytest.approx(ends[1], rel=0.01)
