"""The second, independent check: a finished plan against the problem, without the matrix, the solver or its arrays.

Loads are added up request by request, replicas are really packed into instances, limits and cost are summed from the
plan's own rentals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from planner.domain.problem import Measure, Minimum, Resource
from planner.errors import SolverLiedError
from planner.optimize.adapter_check import check_adapters
from planner.optimize.egress_check import check_egress_of
from planner.optimize.energy_check import check_energy
from planner.optimize.handover_check import check_handovers
from planner.optimize.job_check import check_jobs
from planner.optimize.naming import bucket_name, option_keys
from planner.optimize.packing_check import instances_needed
from planner.optimize.redundancy_check import check_redundancy_prices
from planner.optimize.robust_check import check_robustness
from planner.optimize.rule_check import check_period_rules, check_rules
from planner.optimize.scaling_check import check_given_back
from planner.optimize.schedule_check import History, check_history, held_rentals, period_plan, period_problem
from planner.optimize.tier_check import check_tiers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import Offer
    from planner.domain.plan import Allocation, Plan, Route
    from planner.domain.problem import FleetProblem, Horizon, Limit, ServingOption

TOLERANCE = 1e-9
"""Relative, for loads, weights, limits and cost."""
LIMIT_TOLERANCE = 1e-6
"""Relative, for limits: what solvers accept; a budget may be exceeded by a millionth of itself."""


def verify_plan(problem: FleetProblem, plan: Plan) -> None:
    """Return if `plan` serves `problem` as it claims.

    Raises
    ------
    SolverLiedError: naming what does not hold. A plan without an allocation claims nothing and passes, unless it has a
        cost.
    """
    if plan.cost_usd_per_hour is None:
        return
    by_key = {
        (option.service, key): option for option, key in zip(problem.options, option_keys(problem.options), strict=True)
    }
    used = {(item.service, item.option): item for item in plan.allocation}
    if len(used) != len(plan.allocation) or not set(used) <= set(by_key):
        _fail("the plan allocates options twice or options that the problem does not have")
    check_energy(problem, plan, by_key)
    check_egress_of(problem, plan, by_key)
    check_rules(problem, plan, by_key)
    check_robustness(problem, plan, by_key)
    check_redundancy_prices(problem, plan)
    check_given_back(problem, plan)
    if problem.horizon is not None:
        _check_schedule(problem, problem.horizon, plan, by_key)
        check_jobs(problem, plan, by_key)
        _check_objectives(problem, plan, by_key)
        _check_rates(plan)
        return
    _check_loads(problem, plan, by_key, used)
    check_handovers(problem, plan, by_key)
    _check_instances(plan, by_key)
    _check_limits(problem, plan, by_key)
    check_jobs(problem, plan, by_key)
    check_adapters(problem, plan, by_key)
    check_tiers(problem, plan, by_key)
    _check_cost(problem, plan)
    _check_objectives(problem, plan, by_key)
    _check_rates(plan)


def _check_objectives(problem: FleetProblem, plan: Plan, by_key: dict[tuple[str, str], ServingOption]) -> None:
    """Every objective comes to what the plan's own rentals and replicas add up to, and not below its bound."""
    goal = problem.goal
    if goal is None:
        if plan.objectives:
            _fail("it states objectives that the request does not have")
        return
    watts, gpus = _watts_and_gpus(problem, plan, by_key)
    paid = (plan.cost_usd_per_hour, plan.energy_usd_per_hour, plan.egress_usd_per_hour, plan.change_usd_per_hour)
    totals = {
        Measure.COST: sum(part or 0.0 for part in paid),
        Measure.POWER: watts / 1000,
        Measure.GPUS: gpus,
        Measure.ENERGY: (plan.mean_power_w or 0.0) / 1000,  # these two were just counted by `check_energy`
        Measure.CARBON: plan.carbon_kg_per_hour or 0.0,
    }
    for stage, stated in zip(goal.stages, plan.objectives, strict=False):
        value = sum(weight * totals[measure] for measure, weight in stage.items())
        if abs(value - stated.value) > LIMIT_TOLERANCE * max(value, 1.0):
            _fail(f"it comes to {value!r} in {stated.minimise}, and says {stated.value!r}")
        if stated.bound is not None and stated.bound > stated.value + LIMIT_TOLERANCE * max(value, 1.0):
            _fail(f"it claims that nothing comes to less than {stated.bound!r} in {stated.minimise}")


def _watts_and_gpus(
    problem: FleetProblem, plan: Plan, by_key: dict[tuple[str, str], ServingOption]
) -> tuple[float, float]:
    """Return the peak watts of all replicas and the rented GPUs, over a schedule the means of its periods."""
    gpus = {option.offer.name: option.offer.gpus_per_instance for option in problem.options}
    if problem.horizon is None:
        running = [(item.service, item.option, item.replicas) for item in plan.allocation]
        rented: list[tuple[str, float]] = [(rental.offer, rental.instances) for rental in plan.rentals]
    else:
        running = [(item.service, item.option, item.replicas) for now in plan.schedule for item in now.allocation]
        history = History.of(plan, problem.horizon)
        rented = [pair for index in range(len(plan.schedule)) for pair in history.paid(index, problem.horizon)]
    n_periods = max(len(plan.schedule), 1)
    watts = sum(float(by_key[service, option].power_w or 0.0) * count for service, option, count in running)
    return watts / n_periods, sum(gpus[name] * count for name, count in rented) / n_periods


def _check_schedule(
    problem: FleetProblem, horizon: Horizon, plan: Plan, by_key: dict[tuple[str, str], ServingOption]
) -> None:
    """Every period is a plan that holds, and one follows from the other; the whole is their most and their mean."""
    if len(plan.schedule) != horizon.n_periods:
        _fail(f"its schedule has {len(plan.schedule)} periods, and the horizon {horizon.n_periods}")
    offers = {option.offer.name: option.offer for option in problem.options}
    history = History.of(plan, horizon)
    check_history(history, offers, horizon)
    costs = []
    for index, period in enumerate(plan.schedule):
        try:
            alone = period_plan(plan, period, offers)
            now = period_problem(problem, horizon, index)
            _check_loads(now, alone, by_key, {(item.service, item.option): item for item in alone.allocation})
            check_handovers(problem, alone, by_key)
            _check_instances(alone, by_key)
            _check_limits(problem, replace(alone, rentals=held_rentals(history, index, offers)), by_key)
            check_period_rules(now, alone, by_key)
        except SolverLiedError as error:
            _fail(f"period {index}: {error.message}")
        cost = sum(float(offers[name].price_usd_per_hour) * count for name, count in history.paid(index, horizon))
        if abs(cost - period.cost_usd_per_hour) > LIMIT_TOLERANCE * max(cost, 1.0):
            _fail(f"period {index} costs {cost!r} USD/h, and it says {period.cost_usd_per_hour!r}")
        costs.append(cost)
    mean = sum(costs) / len(costs)
    most = {name: max(count.get(name, 0) for count in history.instances) for name in history.names}
    rented = {rental.offer: rental.instances for rental in plan.rentals}
    if rented != {name: count for name, count in most.items() if count}:
        _fail(f"it rents {rented}, and its periods at most {most}")
    _check_totals(problem, plan, mean)
    _check_mean_unserved(plan)
    for commitment in plan.commitments:
        if {count.get(commitment.offer, 0) for count in history.instances} != {commitment.instances}:
            _fail(f"{commitment.offer} is committed to, and not the same in all periods")


def _check_rates(plan: Plan) -> None:
    """The served requests are those of the routes; of periods their mean."""
    for index, period in enumerate(plan.schedule):
        now = sum(route.rate_rps for route in period.routing)
        if abs(now - period.rate_rps) > LIMIT_TOLERANCE * max(now, 1.0):
            _fail(f"period {index} serves {now!r} req/s, and it says {period.rate_rps!r}")
    routing = [route for part in plan.schedule or (plan,) for route in part.routing]
    rate = sum(route.rate_rps for route in routing) / max(len(plan.schedule), 1)
    if abs(rate - plan.rate_rps) > LIMIT_TOLERANCE * max(rate, 1.0):
        _fail(f"it serves {rate!r} req/s, and says {plan.rate_rps!r}")


def _check_mean_unserved(plan: Plan) -> None:
    """What a schedule leaves unserved is the mean of what its periods do."""
    left: dict[tuple[str, int, int], float] = defaultdict(float)
    for period in plan.schedule:
        for item in period.unserved:
            left[item.service, item.row, item.column] += item.rate_rps / len(plan.schedule)
    stated = {(item.service, item.row, item.column): item.rate_rps for item in plan.unserved}
    if set(stated) != set(left) or any(abs(left[key] - rate) > LIMIT_TOLERANCE * rate for key, rate in stated.items()):
        _fail(f"its periods leave {dict(left)} unserved, and it says {stated}")


def _fail(what: str) -> None:
    raise SolverLiedError(f"The plan does not hold: {what}.", hint="Try another solver with --solver.")


def _check_loads(
    problem: FleetProblem,
    plan: Plan,
    by_key: dict[tuple[str, str], ServingOption],
    used: dict[tuple[str, str], Allocation],
) -> None:
    """Every bucket is served, but for what may be shed, by options that can, and none is above the utilisation cap."""
    unserved = _unserved_rates(problem, plan)
    routes = {(route.service, route.row, route.column): route for route in plan.routing}
    loads: dict[tuple[str, str], float] = defaultdict(float)
    for demand in problem.demands:
        for index, bucket in enumerate(demand.buckets):
            at = (demand.service, bucket.row, bucket.column)
            served_rps = bucket.rate_rps - unserved.pop(at, 0.0)
            if problem.shed is not None and at not in routes and served_rps <= TOLERANCE * bucket.rate_rps:
                continue
            name = bucket_name(demand.service, bucket)
            route = routes.get(at)
            weights = list(_checked_weights(route, name, served_rps, bucket.rate_rps).items())
            for key, weight in [*weights, *(route.decode_weights.items() if route else ())]:
                place = (demand.service, key)
                if place not in used or not by_key[place].throughput_rps[index] > 0:
                    _fail(f"{name} is sent to {key}, which is not in the plan or cannot serve it")
                loads[place] += served_rps * weight / float(by_key[place].throughput_rps[index])
    if unserved:
        _fail(f"requests are unserved of buckets that the problem does not have: {sorted(unserved)[:3]}")
    for place, load in loads.items():
        replicas = used[place].replicas
        cap = problem.utilization_cap * by_key[place].utilization_cap
        limit = cap * replicas / (1 + problem.headroom_fraction)
        if load > limit * (1 + 2 * TOLERANCE):
            _fail(f"{place[0]} on {place[1]} has a load of {load!r} replicas, and {limit!r} may be used")
        if abs(used[place].utilization * replicas - load) > max(TOLERANCE * load, TOLERANCE) * 10:
            _fail(f"{place[0]} on {place[1]} is not utilised by {used[place].utilization!r}")


def _checked_weights(route: Route | None, name: str, served_rps: float, demand_rps: float) -> Mapping[str, float]:
    """Return the weights of a bucket's route, which must serve just what the plan does not call unserved."""
    if route is None or abs(sum(route.weights.values()) - 1) > TOLERANCE or min(route.weights.values()) < 0:
        _fail(f"the routing weights of {name} are missing or do not sum to 1")
        return {}
    if abs(route.rate_rps - served_rps) > TOLERANCE * demand_rps:
        _fail(f"what is served ({route.rate_rps!r} req/s) and unserved of {name} is not its demand")
    return route.weights


def _unserved_rates(problem: FleetProblem, plan: Plan) -> dict[tuple[str, int, int], float]:
    """Return the unserved req/s of each bucket that the plan lists."""
    if plan.unserved and problem.shed is None:
        _fail("it leaves requests unserved, which the request does not allow")
    rates: dict[tuple[str, int, int], float] = {}
    for item in plan.unserved:
        place = (item.service, item.row, item.column)
        if place in rates or not item.rate_rps > 0:
            _fail(f"what is unserved of {place} is listed twice or is not more than nothing")
        rates[place] = item.rate_rps
    return rates


def _check_instances(plan: Plan, by_key: dict[tuple[str, str], ServingOption]) -> None:
    """The replicas on each offer really pack into the instances rented."""
    rented = {rental.offer: rental.instances for rental in plan.rentals}
    replicas: dict[str, list[int]] = defaultdict(list)
    gpus: dict[str, int] = {}
    for item in plan.allocation:
        offer = by_key[item.service, item.option].offer
        if item.replicas < 1:
            _fail(f"{item.option} has {item.replicas!r} replicas")
        replicas[offer.name] += [by_key[item.service, item.option].gpus_per_replica] * item.replicas
        gpus[offer.name] = round(offer.gpus_per_instance)
    for name, sizes in replicas.items():
        needed = instances_needed(sizes, gpus[name])
        if needed > rented.get(name, 0):
            _fail(f"the replicas on {name} need {needed} instances, and {rented.get(name, 0)} are rented")


def _check_limits(problem: FleetProblem, plan: Plan, by_key: dict[tuple[str, str], ServingOption]) -> None:
    offers = {option.offer.name: option.offer for option in problem.options}
    rented: Counter[str] = Counter()
    for rental in plan.rentals:
        rented[offers[rental.offer].listing] += rental.instances
    for offer in offers.values():
        if offer.available is not None and rented[offer.listing] > offer.available:
            _fail(f"{rented[offer.listing]} instances of {offer.listing} are rented, {offer.available} are available")
    for limit in problem.limits:
        total = _usage(limit, plan, offers, by_key)
        if total > limit.bound + LIMIT_TOLERANCE * max(limit.bound, 1.0):
            _fail(f"the limit {limit.name} is {limit.bound:g}, and the plan uses {total!r}")


def _usage(limit: Limit, plan: Plan, offers: dict[str, Offer], by_key: dict[tuple[str, str], ServingOption]) -> float:
    """Return how much of a limit the plan uses."""
    if limit.resource is Resource.WATTS:
        running = [(by_key[item.service, item.option], item.replicas) for item in plan.allocation]
        return limit.factor * sum(
            float(option.power_w or 0.0) * count for option, count in running if limit.scope.covers(option.offer)
        )
    total = 0.0
    for rental in plan.rentals:
        offer = offers[rental.offer]
        if not limit.scope.covers(offer):
            continue
        each = {
            Resource.INSTANCES: 1.0,
            Resource.GPUS: offer.gpus_per_instance,
            Resource.VCPUS: offer.vcpus or 0.0,
            Resource.USD_PER_HOUR: float(offer.price_usd_per_hour),
        }[limit.resource]
        total += each * rental.instances
    return total


def _check_cost(problem: FleetProblem, plan: Plan) -> None:
    prices = {option.offer.name: option.offer.price_usd_per_hour for option in problem.options}
    cost = float(sum((Decimal(str(prices[item.offer])) * item.instances for item in plan.rentals), Decimal()))
    _check_totals(problem, plan, cost)


def _check_totals(problem: FleetProblem, plan: Plan, cost: float) -> None:
    """The stated cost is `cost`, its allocations bear it, and the stated bound is not above it."""
    reclaims = {option.offer.name: option.offer.reclaims_per_month for option in problem.options}
    for rental in plan.rentals:
        a_month, a_day = reclaims[rental.offer], rental.interruptions_per_day
        if (a_month is None) != (a_day is None) or abs((a_month or 0) * rental.instances - 30 * (a_day or 0)) > 1e-6:
            _fail(f"{rental.instances} instances of {rental.offer} are not interrupted {a_day!r} times a day")
    stated = plan.cost_usd_per_hour or 0.0
    if abs(cost - stated) > TOLERANCE * max(cost, 1.0):
        _fail(f"its rentals cost {cost!r} USD/h, and it says {stated!r}")
    allocated = sum(item.cost_usd_per_hour for item in plan.allocation)
    offers = {item.offer for item in plan.allocation}
    in_use = sum(item.cost_usd_per_hour for item in plan.rentals if item.offer in offers)
    if abs(allocated - in_use) > 1e-6 * max(cost, 1.0):
        _fail(f"its allocations cost {allocated!r} USD/h, and what they run on {in_use!r}")
    idle = [item.offer for item in plan.rentals if item.offer not in offers]
    if idle and not any(isinstance(rule, Minimum) for rule in problem.rules):
        _fail(f"it rents {', '.join(idle)}, on which nothing runs")
    bound = plan.bound_usd_per_hour
    if bound is not None and bound > stated + TOLERANCE * max(stated, 1.0):
        _fail(f"it claims that nothing costs less than {bound!r} USD/h, and costs {stated!r} itself")
