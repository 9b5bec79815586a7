"""What a request may ask of replicas that are given back, and what is taken for granted of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.problem import Measure
from planner.errors import InputError
from planner.planning.located import at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.files.request import PlanRequest
    from planner.files.request.services import Service
    from planner.planning.services import PreparedService


def check_scaling_request(request: PlanRequest) -> None:
    """Refuse what cannot be compared.

    Raises
    ------
    InputError: naming the part of the request.
    """
    for index, service in enumerate(request.services):
        if service.scale_to_zero is None:
            continue
        if request.horizon is not None:
            raise InputError(
                f"{service.name} is to be compared with replicas that are given back, and the plan has a horizon: a"
                " schedule is not compared with them.",
                hint="Leave scale_to_zero or the horizon out.",
                where=at(f"services[{index}].scale_to_zero"),
            )
        if service.scale_to_zero.mode == "decide":
            _check_decision(request, service, at_field=f"services[{index}].scale_to_zero.mode")
        if service.adapters is None and service.workload.trace is None:
            raise InputError(
                f"{service.name} has no trace, so nothing says how long nobody asks for it.",
                hint="Give workload.trace with arrival times, or leave scale_to_zero out.",
                where=at(f"services[{index}].scale_to_zero"),
            )


def _check_decision(request: PlanRequest, service: Service, *, at_field: str) -> None:
    """Refuse to give a service back where not the price of a fleet alone decides."""
    constraints = request.constraints
    reasons = {
        "the plan is to have least of more than its cost": any(
            set(stage) != {Measure.COST} for stage in request.objective.minimise
        ),
        "requests may stay unserved (constraints.shed)": constraints.shed != "never",
        "the plan is to survive scenarios (robust)": request.robust is not None,
        "the fleet is to survive losses (survive, spare_replicas)": bool(
            constraints.survive or constraints.spare_replicas or service.spare_replicas
        ),
        "traffic between regions has a price (catalog.egress)": request.catalog.egress is not None,
        "energy or emissions are limited or have a price": bool(constraints.carbon or constraints.energy)
        or any(site.energy_price for site in request.catalog.sites.values()),
    }
    for reason, applies in reasons.items():
        if applies:
            raise InputError(
                f"{service.name} would be given back where that costs less, and {reason}: what is given back is not"
                " judged by that.",
                hint="Write mode: compare in scale_to_zero, or leave the other out.",
                where=at(at_field),
            )


def scaling_assumptions(services: Sequence[PreparedService]) -> Iterator[str]:
    """Yield what is taken for granted where replicas are given back."""
    for service in services:
        choice = service.request.scale_to_zero
        if choice is None:
            continue
        graphs = "with" if choice.graphs else "without"
        yield (
            f"{service.request.name}, given back: starts as in profiles/startup.csv, {graphs} CUDA graphs, all weights"
            f" at {choice.storage / 1e9:g} GB/s with {choice.loader} however many start; a container has whole GPUs,"
            " with the vCPUs and the memory that catalogs/pay_per_use.csv states, without disks; how starts and"
            " machines are billed is as it and billing.csv say, and by the second where they do not. How long to keep"
            " an idle replica, and which way is best, is learnt on the first half of the time; the second half is told,"
            " and can only speak against it."
        )
