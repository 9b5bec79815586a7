"""The limits of a request as the problem's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.problem import Limit, Resource, Scope
from planner.domain.provenance import Warning_
from planner.errors import InputError
from planner.files.documents import did_you_mean
from planner.files.request.constraints import WHOLE_FLEET, Constraints
from planner.planning.located import at, inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from planner.catalog.gpus import GpuCatalog
    from planner.domain.hardware import Offer

UNKNOWN_VCPUS = "W204"


def limits_of(constraints: Constraints, gpus: GpuCatalog, offers: Sequence[Offer]) -> Iterator[Limit]:
    """Yield the budget, the power limits, what is available and the quotas."""
    if constraints.budget is not None:
        yield Limit(name="budget", resource=Resource.USD_PER_HOUR, bound=constraints.budget)
    regions = {offer.region for offer in offers}
    for site, power in constraints.power.items():
        if site != WHOLE_FLEET and site not in regions:
            raise InputError(
                f"There is no region {site!r} to limit the power of.",
                hint=f"Regions with offers: {', '.join(sorted(regions)[:20])}.",
                where=at(f"constraints.power.{site}"),
            )
        scope = Scope() if site == WHOLE_FLEET else Scope(region=site)
        yield Limit(name=f"power {site}", resource=Resource.WATTS, bound=power.max, scope=scope, factor=power.factor)
    for name, count in constraints.available.items():
        with inside(f"constraints.available.{name}"):
            gpu = gpus.get(name).name
        yield Limit(name=f"available {gpu}", resource=Resource.GPUS, bound=count, scope=Scope(gpu=gpu))
    for index, quota in enumerate(constraints.quotas):
        with inside(f"constraints.quotas[{index}].gpu"):
            gpu_name = gpus.get(quota.gpu).name if quota.gpu else None
        scope = Scope(
            provider=quota.provider, region=quota.region, gpu=gpu_name, market=quota.market, offer=quota.offer
        )
        _check_scope(scope, offers, f"constraints.quotas[{index}]")
        parts = [part for part in (quota.provider, quota.region, gpu_name, quota.market, quota.offer) if part]
        for resource in (Resource.GPUS, Resource.VCPUS, Resource.INSTANCES):
            bound = getattr(quota, resource.value)
            if bound is not None:
                yield Limit(name=f"quota {' '.join([*parts, resource])}", resource=resource, bound=bound, scope=scope)


def _check_scope(scope: Scope, offers: Sequence[Offer], field: str) -> None:
    """Refuse a quota that covers no offer: it would look like a limit and be none."""
    if any(scope.covers(offer) for offer in offers):
        return
    for key in ("provider", "region", "gpu", "market"):
        wanted, known = getattr(scope, key), sorted({str(getattr(offer, key)) for offer in offers})
        if wanted is not None and str(wanted) not in known:
            hint = did_you_mean(str(wanted), known) or f"There are: {', '.join(known[:12])}."
            raise InputError(f"No offer that may be rented has the {key} {str(wanted)!r}.", hint=hint, where=at(field))
    raise InputError("No offer that may be rented is covered by this quota.", where=at(field))


def countable(offers: tuple[Offer, ...], limits: Sequence[Limit]) -> tuple[tuple[Offer, ...], tuple[Warning_, ...]]:
    """Return the offers without those that a vCPU quota covers but whose vCPUs are not known, and a warning."""
    quotas = [limit for limit in limits if limit.resource is Resource.VCPUS]
    known = tuple(
        offer for offer in offers if offer.vcpus is not None or not any(quota.scope.covers(offer) for quota in quotas)
    )
    n_unknown = len(offers) - len(known)
    if not n_unknown:
        return offers, ()
    message = f"{n_unknown} offers that a vCPU quota covers do not say how many vCPUs they have; they are left out."
    return known, (Warning_(code=UNKNOWN_VCPUS, message=message, observed=n_unknown),)
