"""What the user must know of the plan that was found: warnings about what it rents, not about what it might have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.domain.hardware import Market
from planner.domain.provenance import Warning_

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.plan import Plan, Rental

SPOT_CAPACITY = "W402"
UNCHECKED_GPUS = "W403"
DISAGGREGATED = "W406"
WORK_AROUND_THE_CLOCK = "W407"


def caveats(plan: Plan, unchecked_gpus: Mapping[str, str]) -> Iterator[Warning_]:
    """Yield the warnings that what `plan` rents calls for.

    Parameters
    ----------
    unchecked_gpus : GPU -> its architecture, where no measurement stands behind the throughput.
    """
    yield from _spot(plan)
    yield from _unchecked(plan, unchecked_gpus)
    yield from _disaggregated(plan)
    yield from _around_the_clock(plan)


def _disaggregated(plan: Plan) -> Iterator[Warning_]:
    apart = [row for row in plan.allocation if row.role is not Role.BOTH]
    if apart:
        services = ", ".join(sorted({row.service for row in apart}))
        n_replicas = sum(row.replicas for row in apart)
        yield Warning_(
            code=DISAGGREGATED,
            message=f"{n_replicas} replicas of {services} serve prefill or decode alone: an estimate that no bundled "
            "measurement of disaggregated serving stands behind. Measure one pair before renting more.",
            observed=n_replicas,
        )


def _around_the_clock(plan: Plan) -> Iterator[Warning_]:
    """Without a horizon, what work needs is paid by the hour for ever, as if the work came again at its deadline."""
    paid = [job for job in plan.jobs if not plan.schedule and job.own_usd_per_hour > 0]
    if paid:
        names = ", ".join(job.job for job in paid)
        yield Warning_(
            code=WORK_AROUND_THE_CLOCK,
            message=f"Without a horizon, {names} is planned as work that begins anew at its deadline: costs by the "
            "hour and by the month are those of work around the clock.",
            observed=names,
        )


def _spot(plan: Plan) -> Iterator[Warning_]:
    spot = [rental for rental in plan.rentals if rental.market == Market.SPOT]
    n_instances = sum(rental.instances for rental in spot)
    if n_instances:
        total = sum(rental.instances for rental in plan.rentals)
        yield Warning_(
            code=SPOT_CAPACITY,
            message=f"{n_instances} of {total} instances are spot capacity: its price changes and it can be taken back "
            f"at short notice. {_reclaims(spot)}",
            observed=n_instances,
        )


def _reclaims(spot: list[Rental]) -> str:
    """Return how often the spot instances of a plan are taken back, as far as that is known."""
    known = [rental.interruptions_per_day for rental in spot if rental.interruptions_per_day is not None]
    if not known:
        return "How often is not known."
    n_unknown = sum(rental.instances for rental in spot if rental.interruptions_per_day is None)
    of_others = f"; of {n_unknown} of them it is not known" if n_unknown else ""
    return f"Expect up to {sum(known):.2g} interruptions a day{of_others}."


def _unchecked(plan: Plan, unchecked_gpus: Mapping[str, str]) -> Iterator[Warning_]:
    rented = {allocation.gpu for allocation in plan.allocation} | {choice.way.gpu for choice in plan.given_back}
    used = sorted(rented & unchecked_gpus.keys())
    if used:
        architectures = " or ".join(sorted({unchecked_gpus[gpu] for gpu in used}))
        yield Warning_(
            code=UNCHECKED_GPUS,
            message=f"The throughput of {', '.join(used)} is an estimate that was not checked against any measurement "
            f"on {architectures}: try one replica before renting more.",
            observed=", ".join(used),
        )
