"""Factories of small problems, and hypothesis set to find the same examples every time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from planner.domain.hardware import EngineConfig, Market, Offer
from planner.domain.problem import FleetProblem, Limit, Resource, Scope, ServingOption
from planner.domain.workload import Bucket, Demand

settings.register_profile(
    "optimize",
    derandomize=True,
    deadline=None,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("optimize")


def offer(name="A", price=1.0, **given):
    values = {
        "provider": "p",
        "instance_type": name,
        "region": "r",
        "market": Market.ON_DEMAND,
        "gpu": name,
        "gpus_per_instance": 1,
    } | given
    return Offer(name=name, price_usd_per_hour=price, **values)


def option(offered, throughput, *, service="default", gpus=1, **given):
    return ServingOption(
        service=service,
        offer=offered,
        gpus_per_replica=gpus,
        throughput_rps=np.asarray(throughput, dtype=float).ravel(),
        **given,
    )


def config(precision="bf16", tp=1, pp=1, **given):
    return EngineConfig(precision=precision, tensor_parallel=tp, pipeline_parallel=pp, **given)


def demand(rates, *, service="default", columns=1):
    return Demand(
        service=service,
        buckets=tuple(
            Bucket(row=index // columns, column=index % columns, rate_rps=float(rate))
            for index, rate in enumerate(rates)
        ),
    )


def problem(demands, options, **given):
    demands = demands if isinstance(demands, tuple) else (demands,)
    return FleetProblem(demands=demands, options=tuple(options), **given)


def limit(name, resource, bound, **scope):
    return Limit(name=name, resource=Resource(resource), bound=bound, scope=Scope(**scope))


def melange_example(**given):
    """Mélange's published example.json: 30 req/s over 2 x 2 buckets, A10G at 1.01 and A100-80GB at 3.67 $/h."""
    return problem(
        demand([6.0, 3.0, 15.0, 6.0], columns=2),
        [
            option(offer("A10G", 1.01), [[2, 1], [5, 2]]),
            option(offer("A100-80GB", 3.67), [[20, 20], [40, 20]]),
        ],
        **given,
    )


@pytest.fixture(scope="session")
def make():
    return SimpleNamespace(
        offer=offer,
        option=option,
        config=config,
        demand=demand,
        problem=problem,
        limit=limit,
        melange_example=melange_example,
    )
