"""What a `FleetProblem` must be to be planned at all, checked before its numbers are looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from planner.domain.disaggregation import Role
from planner.domain.problem import (
    InstanceLoss,
    Minimum,
    Redundancy,
    ReplicaLoss,
    Resource,
    Scenario,
    ShareCap,
    VarietyLimit,
)
from planner.errors import InputError
from planner.optimize.egress import check_egress
from planner.optimize.energy import check_energy_data, counts_energy
from planner.optimize.jobs import check_jobs
from planner.optimize.scenarios import in_scenario
from planner.optimize.tenancy_check import check_tenancies

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from planner.domain.hardware import Offer
    from planner.domain.problem import ChangeCost, FleetProblem, Horizon, Limit, Rule, ServingOption


_ROUNDING = 1e-9
"""Relative forgiveness of floating-point sums."""


def offer_gpus(offer: Offer) -> int:
    """Return the number of GPUs of one instance of `offer`.

    Raises
    ------
    InputError: if the offer is a share of a GPU; such offers can be listed but not planned on.
    """
    gpus = round(offer.gpus_per_instance)
    if gpus < 1 or abs(gpus - offer.gpus_per_instance) > _ROUNDING:
        raise InputError(
            f"The offer {offer.name} has {offer.gpus_per_instance:g} GPUs, and only whole GPUs can be planned on.",
            hint="Leave offers of parts of a GPU out.",
        )
    return gpus


def check_problem(problem: FleetProblem) -> None:
    """Raise an `InputError` that names the first thing that is wrong with `problem`, if anything is."""
    if not 0 < problem.utilization_cap <= 1:
        raise InputError(
            f"The utilisation cap is {problem.utilization_cap!r}.", hint="It must be above 0 and at most 1."
        )
    if not problem.headroom_fraction >= 0:
        raise InputError(f"The headroom is {problem.headroom_fraction!r}.", hint="It must not be negative.")
    sizes = _check_demands(problem)
    if problem.horizon is not None:
        _check_horizon(problem.horizon, sizes)
    check_jobs(problem, tuple(sizes))
    known: dict[str, Offer] = {}
    for option in problem.options:
        _check_option(option, sizes | _own_sizes(problem))
        if known.setdefault(option.offer.name, option.offer) != option.offer:
            raise InputError(f"Two different offers are called {option.offer.name}.", hint="Offer names are unique.")
    _check_combinations(problem)
    for limit in problem.limits:
        _check_limit(limit, problem)
    for rule in problem.rules:
        _check_rule(rule, sizes)
        if isinstance(rule, Scenario):
            _check_scenario(rule, problem, sizes)
    _check_change(problem.change)
    check_energy_data(problem)
    check_egress(problem)
    check_tenancies(problem)


def _check_combinations(problem: FleetProblem) -> None:
    """Refuse what cannot be planned for together."""
    if problem.horizon is not None and problem.change is not None:
        raise InputError(
            "A schedule is planned whatever runs today.",
            hint="Leave the horizon out, or the plan that runs today.",
        )
    survives = any(isinstance(rule, Scenario) for rule in problem.rules)
    if survives and problem.shed is not None:
        raise InputError(
            "Demand cannot be shed by a fleet that must survive scenarios (what is shed in which of them?).",
            hint="Set constraints.shed to never, or leave robust out; robust.served says how much must be served.",
        )
    if survives and any(option.handover is not None for option in problem.options):
        raise InputError(
            "Scenarios are survived by replicas that serve whole requests: what passes between prefill and decode"
            " replicas in a scenario is not modelled.",
            hint="Set disaggregate to never, or leave robust out.",
        )
    if problem.shed is not None and problem.jobs:
        raise InputError(
            "Demand cannot be shed while there is work with a deadline: which of them should give way?",
            hint="Set constraints.shed to never, or plan the deferrable work apart.",
        )
    if problem.jobs and counts_energy(problem):
        raise InputError(
            "Energy and carbon are counted of requests alone, and there is work with a deadline.",
            hint="Leave budgets, prices and objectives of energy and carbon out, or plan the deferrable work apart.",
        )


def _own_sizes(problem: FleetProblem) -> dict[str, int]:
    """Return the number of rates that an option of each job has: one."""
    return dict.fromkeys((job.name for job in problem.jobs), 1)


def _check_scenario(rule: Scenario, problem: FleetProblem, planned: Container[str]) -> None:
    """Refuse a scenario that says too little of what happens, or too much."""
    if problem.jobs:
        raise InputError(
            "Scenarios are survived by a fleet for requests alone: whether work with a deadline can wait in one is not"
            " modelled.",
            hint="Plan the deferrable work apart, or leave robust out.",
        )
    if sum(isinstance(other, Scenario) and other.name == rule.name for other in problem.rules) > 1:
        raise InputError(f"Two scenarios are called {rule.name!r}.", hint="Give each its own name.")
    if not rule.headroom_fraction >= 0:
        raise InputError(f"The headroom in {rule.name} is {rule.headroom_fraction!r}.", hint="It must not be negative.")
    then = in_scenario(problem, replace(rule, bound=1.0))
    try:
        sizes = _check_demands(then)
        for option in then.options:
            _check_option(option, sizes | _own_sizes(problem))
    except InputError as error:
        raise InputError(f"In the scenario {rule.name}: {error.message}", hint=error.hint) from error
    if any(service not in planned for service in sizes):
        raise InputError(f"The scenario {rule.name} has services for which there is no demand.")


def _check_demands(problem: FleetProblem) -> dict[str, int]:
    """Return the number of buckets of every service."""
    sizes = {demand.service: len(demand.buckets) for demand in problem.demands}
    if len(sizes) != len(problem.demands):
        raise InputError("Two demands are for the same service.", hint="Give every service a name of its own.")
    for demand in problem.demands:
        for bucket in demand.buckets:
            if not (np.isfinite(bucket.rate_rps) and bucket.rate_rps > 0):
                raise InputError(
                    f"A bucket of {demand.service} has the rate {bucket.rate_rps!r} req/s.",
                    hint="Leave buckets without requests out; rates must be finite.",
                )
    return sizes


def _check_change(change: ChangeCost | None) -> None:
    if change is not None and not (change.start_usd >= 0 and change.stop_usd >= 0 and change.horizon_hours > 0):
        raise InputError(
            f"Changes cost {change.start_usd!r} and {change.stop_usd!r} USD over {change.horizon_hours!r} hours.",
            hint="Prices must not be negative, and the horizon must be more than zero.",
        )


def _check_horizon(horizon: Horizon, services: Iterable[str]) -> None:
    lengths = {len(horizon.factors.get(service, ())) for service in services}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"The services' demands have {sorted(lengths)} periods.", hint="All need the same number, at least one."
        )
    if not horizon.step_s > 0:
        raise InputError(f"A period of {horizon.step_s!r} s has no length.")
    for service, factors in horizon.factors.items():
        if not np.all(np.isfinite(factors)) or min(factors) < 0 or max(factors) <= 0:
            raise InputError(
                f"The demand of {service} over the periods is negative, not finite, or nothing at all.",
                hint="Give rates of at least 0, and some above.",
            )
    whole_s = horizon.step_s * horizon.n_periods
    for name, value in (("start-up", horizon.start_up_s), ("minimum lease", horizon.minimum_lease_s)):
        if not 0 <= value <= whole_s * (1 + _ROUNDING):
            raise InputError(
                f"The {name} of {value:g} s does not fit into a horizon of {whole_s:g} s.",
                hint="Make the horizon longer, or this shorter.",
            )


def _check_option(option: ServingOption, sizes: dict[str, int]) -> None:
    name = option.offer.name
    if option.service not in sizes:
        raise InputError(f"An option on {name} serves {option.service!r}, for which there is no demand.")
    if option.throughput_rps.shape != (sizes[option.service],):
        raise InputError(
            f"The throughput of {option.service} on {name} has the shape {option.throughput_rps.shape}, "
            f"and the service has {sizes[option.service]} buckets."
        )
    if not np.all(np.isfinite(option.throughput_rps)) or np.any(option.throughput_rps < 0):
        raise InputError(f"A throughput of {option.service} on {name} is negative or not finite.")
    loose = option.loose_rps
    if loose is not None and (
        loose.shape != option.throughput_rps.shape or np.any(loose < option.throughput_rps * (1 - 1e-9))
    ):
        raise InputError(
            f"What {option.service} on {name} serves of its cheapest requests is less than its throughput."
        )
    if not (np.isfinite(option.utilization_cap) and option.utilization_cap > 0):
        raise InputError(
            f"The utilisation cap of {option.service} on {name} is {option.utilization_cap!r}.",
            hint="It must be above 0; 1 is the throughput itself.",
        )
    _check_handover(option)
    if not (np.isfinite(option.offer.price_usd_per_hour) and option.offer.price_usd_per_hour >= 0):
        raise InputError(f"The price of {name} is {option.offer.price_usd_per_hour!r} USD/h.")
    if not 1 <= option.gpus_per_replica <= offer_gpus(option.offer):
        raise InputError(
            f"A replica of {option.gpus_per_replica} GPUs does not fit {name}, "
            f"which has {option.offer.gpus_per_instance:g}.",
            hint="Leave such options out.",
        )


def _check_handover(option: ServingOption) -> None:
    name = f"{option.service} on {option.offer.name}"
    if (option.role is Role.BOTH) != (option.handover is None):
        raise InputError(
            f"The option of {name} has the role {option.role}, and "
            f"{'nothing' if option.handover is None else 'something'} to hand over.",
            hint="Prefill and decode options have a handover, others have none.",
        )
    if option.handover is None:
        return
    sizes, rate = option.handover.kv_bytes, option.handover.bytes_per_s
    if sizes.shape != option.throughput_rps.shape or not np.all(np.isfinite(sizes)) or np.any(sizes < 0):
        raise InputError(f"The KV caches of {name} are not one size of at least 0 per bucket.")
    if not rate > 0:
        raise InputError(f"The network rate of {name} is {rate!r} bytes/s.", hint="It must be more than zero.")


def _check_rule(rule: Rule, services: Container[str]) -> None:
    if isinstance(rule, VarietyLimit) and not rule.bound >= 1:
        raise InputError(f"The most {rule.name} is {rule.bound!r}.", hint="It must be at least 1.")
    if isinstance(rule, Minimum):
        if rule.resource not in {Resource.INSTANCES, Resource.GPUS}:
            raise InputError(f"{rule.name} counts {rule.resource}.", hint="A minimum counts instances or GPUs.")
        if not (np.isfinite(rule.bound) and rule.bound >= 0):
            raise InputError(f"{rule.name} is {rule.bound!r}.", hint="It must not be negative.")
    if isinstance(rule, ShareCap | Redundancy | Scenario) and not 0 <= rule.bound <= 1:
        raise InputError(f"The {rule.name} is {rule.bound!r}.", hint="A share lies between 0 and 1.")
    if isinstance(rule, InstanceLoss | ReplicaLoss) and not rule.count >= 1:
        raise InputError(f"The {rule.name} counts {rule.count!r}.", hint="Leave the rule out, or lose at least one.")
    if isinstance(rule, ShareCap | ReplicaLoss) and rule.service is not None and rule.service not in services:
        raise InputError(f"The {rule.name} is for {rule.service!r}, for which there is no demand.")


def _check_limit(limit: Limit, problem: FleetProblem) -> None:
    if not (limit.bound >= 0 and limit.factor > 0):
        raise InputError(
            f"The limit {limit.name} is {limit.bound!r}, with the factor {limit.factor!r}.",
            hint="A limit must not be negative, and a factor must be above zero.",
        )
    for option in problem.options:
        if not limit.scope.covers(option.offer):
            continue
        if limit.resource is Resource.WATTS and option.power_w is None:
            raise InputError(
                f"The limit {limit.name} counts watts, and the power of {option.service} on {option.offer.name} is "
                "not known.",
                hint="Give power_w, or leave this GPU or the limit out.",
            )
        if limit.resource is Resource.VCPUS and option.offer.vcpus is None:
            raise InputError(
                f"The limit {limit.name} counts vCPUs, and {option.offer.name} does not say how many it has.",
                hint="Leave this offer or the limit out.",
            )
