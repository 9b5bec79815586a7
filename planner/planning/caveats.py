"""What the user must know of the plan that was found: warnings about what it rents, not about what it might have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.hardware import Market
from planner.domain.provenance import Warning_

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planner.domain.plan import Plan

SPOT_CAPACITY = "W402"
UNCHECKED_GPUS = "W403"


def caveats(plan: Plan, unchecked_gpus: Mapping[str, str]) -> Iterator[Warning_]:
    """Yield the warnings that what `plan` rents calls for.

    Parameters
    ----------
    unchecked_gpus : GPU -> its architecture, where no measurement stands behind the throughput.
    """
    yield from _spot(plan)
    yield from _unchecked(plan, unchecked_gpus)


def _spot(plan: Plan) -> Iterator[Warning_]:
    spot = [rental for rental in plan.rentals if rental.market == Market.SPOT]
    n_instances = sum(rental.instances for rental in spot)
    if n_instances:
        total = sum(rental.instances for rental in plan.rentals)
        yield Warning_(
            code=SPOT_CAPACITY,
            message=f"{n_instances} of {total} instances are spot capacity: its price changes and it can be taken back "
            "at short notice. Nothing is set aside for that.",
            observed=n_instances,
        )


def _unchecked(plan: Plan, unchecked_gpus: Mapping[str, str]) -> Iterator[Warning_]:
    used = sorted({allocation.gpu for allocation in plan.allocation} & unchecked_gpus.keys())
    if used:
        architectures = " or ".join(sorted({unchecked_gpus[gpu] for gpu in used}))
        yield Warning_(
            code=UNCHECKED_GPUS,
            message=f"The throughput of {', '.join(used)} is an estimate that was not checked against any measurement "
            f"on {architectures}: try one replica before renting more.",
            observed=", ".join(used),
        )
