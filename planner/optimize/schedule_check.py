"""The independent check of a schedule: instances are followed one by one, from the plan's own counts.

Nothing here knows of the programme's rows. Instances stop oldest first; the horizon is gone round three times, and what
happens in the last round is checked, so that ages are those of a schedule that has always repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from planner.domain.plan import Allocation, Plan, Rental, Route, Unserved
from planner.domain.problem import Scenario
from planner.errors import SolverLiedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.hardware import Offer
    from planner.domain.plan import Period
    from planner.domain.problem import FleetProblem, Horizon, Rule

ROUNDS = 3
PAID_ALL_ALONG = ("reserved-1y", "reserved-3y")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Instances that serve, and those started for each period, by offer."""

    instances: tuple[Mapping[str, int], ...]
    starting: tuple[Mapping[str, int], ...]
    lead: int
    """Periods ahead of the one it serves in, in which an instance is rented."""

    @classmethod
    def of(cls, plan: Plan, horizon: Horizon) -> History:
        """Return what the schedule of `plan` says."""
        return cls(
            instances=tuple({item.offer: item.instances for item in period.rentals} for period in plan.schedule),
            starting=tuple({item.offer: item.starting for item in period.rentals} for period in plan.schedule),
            lead=ceil(horizon.start_up_s / horizon.step_s - 1e-9),
        )

    @property
    def names(self) -> list[str]:
        """Offers that any period has."""
        return sorted({name for period in self.instances for name in period})

    def held(self, period: int) -> dict[str, int]:
        """Return the instances that are rented at any time of a period, those starting up included."""
        found = dict(self.instances[period])
        for ahead in range(1, self.lead + 1):
            for name, count in self.starting[(period + ahead) % len(self.starting)].items():
                found[name] = found.get(name, 0) + count
        return {name: count for name, count in found.items() if count}

    def paid(self, period: int, horizon: Horizon) -> Iterator[tuple[str, float]]:
        """Yield each offer's instances, with the start-up time of those that were started for the period."""
        for name, count in self.instances[period].items():
            yield name, count + self.starting[period].get(name, 0) * horizon.start_up_s / horizon.step_s


def check_history(history: History, offers: Mapping[str, Offer], horizon: Horizon) -> None:
    """Return if every instance that appears was started, none stops before its lease ends, commitments stay.

    Raises
    ------
    SolverLiedError: naming the offer and the period.
    """
    n_periods = len(history.instances)
    matters = n_periods > 1 and (horizon.start_up_s > 0 or horizon.minimum_lease_s > horizon.step_s)
    for name in history.names:
        counts = [period.get(name, 0) for period in history.instances]
        started = [period.get(name, 0) for period in history.starting]
        if offers[name].market.value in PAID_ALL_ALONG:
            if len(set(counts)) != 1:
                _fail(f"{name} is reserved, and its instances change: {counts}")
        elif matters:
            _check_offer(name, counts, started, horizon)


def _check_offer(name: str, counts: list[int], started: list[int], horizon: Horizon) -> None:
    begun: list[int] = [-(10**9)] * counts[-1]
    n_periods = len(counts)
    for at in range(ROUNDS * n_periods):
        period = at % n_periods
        stops = len(begun) + started[period] - counts[period]
        if stops < 0:
            _fail(f"{-stops} instances of {name} serve in period {period} that were never started")
        for begin in begun[:stops]:
            kept_s = (at - begin) * horizon.step_s
            if at >= (ROUNDS - 1) * n_periods and kept_s < horizon.minimum_lease_s * (1 - 1e-9):
                _fail(f"an instance of {name} stops before period {period}, after {kept_s:g} s of its lease")
        begun = begun[stops:] + [at] * started[period]


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")


def period_problem(problem: FleetProblem, horizon: Horizon, period: int) -> FleetProblem:
    """Return the steady state that one period asks for; buckets of a service that asks for nothing have none."""
    demands, silent = [], set()
    for demand in problem.demands:
        factor = horizon.factors[demand.service][period]
        buckets = tuple(replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)
        if factor == 0:
            silent.add(demand.service)
        demands.append(replace(demand, buckets=buckets if factor else ()))
    options = tuple(option for option in problem.options if option.service not in silent)
    rules = tuple(_rule_in(rule, horizon, period) for rule in problem.rules)
    return replace(problem, demands=tuple(demands), options=options, rules=rules, horizon=None)


def _rule_in(rule: Rule, horizon: Horizon, period: int) -> Rule:
    """Return what a rule asks for in one period: a scenario's demand changes as the planned one does."""
    if not isinstance(rule, Scenario):
        return rule
    demands = []
    for demand in rule.demands:
        factor = horizon.factors[demand.service][period]
        rates = (replace(bucket, rate_rps=bucket.rate_rps * factor) for bucket in demand.buckets)
        demands.append(replace(demand, buckets=tuple(rates) if factor else ()))
    return replace(rule, demands=tuple(demands))


def period_plan(plan: Plan, period: Period, offers: Mapping[str, Offer]) -> Plan:
    """Return one period of `plan` as a plan of its own."""
    whole = {(item.service, item.option): item for item in plan.allocation}
    unknown = [item.option for item in period.allocation if (item.service, item.option) not in whole]
    if unknown:
        _fail(f"{unknown[0]} serves in a period and is not in the plan's allocation")
    return replace(
        plan,
        allocation=tuple(
            _allocation(whole[item.service, item.option], item.replicas, item.utilization) for item in period.allocation
        ),
        rentals=tuple(_rental(offers[item.offer], item.instances) for item in period.rentals),
        routing=tuple(
            Route(
                service=route.service,
                input_tokens=None,
                output_tokens=None,
                row=route.row,
                column=route.column,
                rate_rps=route.rate_rps,
                weights=route.weights,
                decode_weights=route.decode_weights,
            )
            for route in period.routing
        ),
        unserved=tuple(
            Unserved(
                service=item.service,
                input_tokens=None,
                output_tokens=None,
                row=item.row,
                column=item.column,
                rate_rps=item.rate_rps,
                fraction=1.0,
            )
            for item in period.unserved
        ),
        schedule=(),
        commitments=(),
    )


def _allocation(whole: Allocation, replicas: int, utilization: float) -> Allocation:
    return replace(whole, replicas=replicas, utilization=utilization)


def held_rentals(history: History, period: int, offers: Mapping[str, Offer]) -> tuple[Rental, ...]:
    """Return what is rented at any time of a period."""
    return tuple(_rental(offers[name], count) for name, count in sorted(history.held(period).items()))


def _rental(offer: Offer, instances: int) -> Rental:
    return Rental(
        offer=offer.name,
        provider=offer.provider,
        instance_type=offer.instance_type,
        region=offer.region,
        market=str(offer.market),
        gpu=offer.gpu,
        gpus_per_instance=offer.gpus_per_instance,
        instances=instances,
        cost_usd_per_hour=float(offer.price_usd_per_hour) * instances,
    )
