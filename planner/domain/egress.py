"""Traffic between the region of a service's users and the region that serves them, and what a gigabyte of it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.domain.hardware import Offer
    from planner.domain.workload import Bucket

BYTES_PER_GB = 1e9
"""Clouds bill a gigabyte of traffic as 10^9 bytes or more; the smaller one is the dearer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Where users are, and the price of serving them from elsewhere."""

    users: Mapping[str, Mapping[str, float]]
    """Service -> region -> the part of its users there; a service that is not named has its users anywhere."""
    usd_per_gb: float
    bytes_per_token: float
    """Of prompts and answers alike, as they are sent."""

    def away(self, service: str, offer: Offer) -> float:
        """Return the part of the service's users whose region is not that of `offer`."""
        users = self.users.get(service)
        return 0.0 if users is None else max(0.0, 1.0 - users.get(offer.region, 0.0))

    def gb_per_hour(self, bucket: Bucket) -> float:
        """Return what all requests of a bucket and their answers come to: lam (tokens in + out) bytes, in GB/h."""
        tokens = (bucket.input_tokens or 0.0) + (bucket.output_tokens or 0.0)
        return bucket.rate_rps * SECONDS_PER_HOUR * tokens * self.bytes_per_token / BYTES_PER_GB


SECONDS_PER_HOUR = 3600.0
