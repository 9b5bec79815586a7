"""The electricity of clouds: power usage effectiveness and carbon intensity by region (catalogs/carbon.csv)."""

from __future__ import annotations

import csv
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.domain.energy import Site
from planner.files.bundled import bundled

if TYPE_CHECKING:
    from collections.abc import Mapping


@cache
def load_sites() -> Mapping[tuple[str, str], Site]:
    """Return the bundled sites by provider and region; an empty region stands for all others, so does a provider."""
    rows = csv.DictReader(bundled("catalogs", "carbon.csv").read_text(encoding="utf-8").splitlines())
    return MappingProxyType({(row["provider"], row["region"]): _site(row) for row in rows})


def _site(row: Mapping[str, str]) -> Site:
    carbon = row["carbon_g_per_kwh"]
    return Site(pue=float(row["pue"]), carbon_g_per_kwh=(float(carbon),) if carbon else ())


def known_site(provider: str, region: str) -> Site:
    """Return what is known of the electricity in a region; where nothing is, the average PUE and no intensity.

    Examples
    --------
    >>> known_site("gcp", "europe-north1")
    Site(pue=1.1, carbon_g_per_kwh=(39.32,), usd_per_kwh=0.0)
    >>> known_site("lambda", "global").carbon_g_per_kwh
    ()
    """
    sites = load_sites()
    return sites.get((provider, region)) or sites.get((provider, "")) or sites["", ""]
