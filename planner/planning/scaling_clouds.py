"""What is not known of a serverless cloud that a service could be given back to, and what follows from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.domain.provenance import Warning_
from planner.domain.scaling import Doubt, ScalingWay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from planner.domain.pay_per_use import PayPerUse
    from planner.domain.scaling import ScalingChoice
    from planner.files.request import PlanRequest
    from planner.files.request.scaling import ScaleToZero

PART_OF_PRICE = "W207"
"""A cloud may bill more than the price that it is compared by."""
UNKNOWN_REGION = "W208"
"""The request names regions, and the catalog does not know where a cloud's containers run."""
CODES = {Doubt.PRICE: PART_OF_PRICE, Doubt.REGION: UNKNOWN_REGION}
TEXTS = {
    Doubt.PRICE: "may bill CPU and memory on top of the price that it is compared by",
    Doubt.REGION: "runs in regions that the catalog does not know, and catalog.regions names those to keep to",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudDoubts:
    """What is asked of clouds: whoever names one in `scale_to_zero.clouds` vouches for it."""

    are_named: bool
    has_regions: bool

    @classmethod
    def of_request(cls, request: PlanRequest, choice: ScaleToZero) -> CloudDoubts:
        """Return it."""
        return cls(are_named=choice.clouds is not None, has_regions=request.catalog.regions is not None)

    def of(self, offer: PayPerUse) -> tuple[Doubt, ...]:
        """Return what is not known of an offer; its region is its user's matter where its cloud is named."""
        region = (Doubt.REGION,) if self.has_regions and not self.are_named else ()
        return (*region, *(() if offer.is_all_in else (Doubt.PRICE,)))

    def bars(self, offer: PayPerUse) -> bool:
        """Return whether an offer is compared and never chosen."""
        return bool(self.of(offer)) and not self.are_named


def cloud_warnings(choices: Iterable[ScalingChoice]) -> Iterator[Warning_]:
    """Yield a warning for each service with an offer of which too little is known, whether chosen or barred."""
    for choice in choices:
        for doubt, code in CODES.items():
            barred = {way.offer for way in choice.ways if way.is_barred and doubt in way.doubts}
            if barred:
                yield Warning_(
                    code=code,
                    message=f"{choice.service}: {', '.join(sorted(barred))} {TEXTS[doubt]}: compared, never chosen."
                    " Name the cloud in scale_to_zero.clouds to allow it.",
                    observed=len(barred),
                )
        best = choice.ways[choice.chosen]
        if best.way is not ScalingWay.ALWAYS_ON and Doubt.PRICE in best.doubts:
            yield Warning_(
                code=PART_OF_PRICE,
                message=f"{choice.service} would be given back for {best.offer}, which {TEXTS[Doubt.PRICE]}: look it up"
                " first.",
                observed=1,
            )
