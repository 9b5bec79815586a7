"""Thousands of adapters as a few groups of like ones, so that a programme over them stays small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.domain.adapters import Adapter, Isolation
    from planner.domain.slo import Slo

BANDS_PER_DECADE = 4
"""Rates of one band differ by a factor of 10^(1/4) = 1.78 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGroup:
    """Adapters that differ in their names and, within a band, in their rates."""

    rank: int
    target_modules: tuple[str, ...]
    slos: tuple[Slo, ...]
    isolation: Isolation
    is_merged: bool
    names: tuple[str, ...]
    """In the order in which they were given."""
    total_rate_rps: float
    lowest_rate_rps: float
    highest_rate_rps: float

    @property
    def count(self) -> int:
        """Number of adapters."""
        return len(self.names)

    @property
    def mean_rate_rps(self) -> float:
        """Mean rate of one of them."""
        return self.total_rate_rps / self.count


def group_adapters(
    adapters: Sequence[Adapter], *, bands_per_decade: int = BANDS_PER_DECADE, n_alone: int = 0
) -> tuple[AdapterGroup, ...]:
    """Return the adapters in groups of the same rank, modules, objectives and isolation, and rates of one band.

    The `n_alone` busiest adapters (the first ones, among equals) are a group each: what matters of them is whole.

    Band b holds the rates from 10^(b / bands_per_decade) up to 10^((b + 1) / bands_per_decade); adapters without
    requests are a band of their own. Groups stand in the order of their first adapters.

    A programme over groups bounds the one over adapters from below. Let adapter a of group g have the rate r_a, send
    the share x_aj of its requests to place j, and be resident there if v_aj = 1, where

        sum_j x_aj = 1,   x_aj <= v_aj,   sum_a r_a L_gj x_aj <= capacity_j,   sum_a m_g v_aj <= memory_j,

    the load L_gj and the memory m_g being those of the group, since all of it that they depend on is equal within it.
    From any solution make, for each group of n_g adapters with the total rate R_g,

        X_gj = sum_{a in g} r_a x_aj / R_g   (the mean share, weighted by rates),    V_gj = sum_{a in g} v_aj.

    Then sum_j X_gj = 1, and the rows of capacity, R_g L_gj X_gj, and of memory, m_g V_gj, have the same value as
    before, as has every price on load, memory or places: only mean rates and counts enter them. Residence becomes

        R_g X_gj <= (highest rate of the group) x V_gj,    0 <= V_gj <= n_g,

    since r_a x_aj <= r_a v_aj <= highest x v_aj. Where requests come in sizes s, the part p_s of every adapter's, each
    with a share x_asj and a load L_gsj of its own, all of this holds for each size, and the load is summed over them.
    So every solution over adapters is one over groups of the same price, with V relaxed to fractions, and the least
    price over groups is no higher. It is still one where V is kept integer, since a sum of integers is one, and where a
    copy serves no more than a place's capacity, r_a L_gj x_aj <= v_aj and so R_g L_gj X_gj <= V_gj. The price over
    groups is lower by the spread within a band (none where all rates of a group are equal, and then the mean rate is
    the highest one) and by what integer residence costs. The highest rate in the last row matters: with the mean rate
    there the bound does not hold, since a place that holds the busiest adapters of a group serves more than its share
    of them.

    Raises
    ------
    ValueError: if an adapter's rate is not known yet (it has a trace that was not read), or for fewer bands than one.

    Examples
    --------
    >>> from planner.domain.adapters import Adapter
    >>> rates = {"a": 1.0, "b": 1.5, "c": 40.0}
    >>> made = [Adapter(name=name, rank=8, target_modules=("q_proj",), rate_rps=rate) for name, rate in rates.items()]
    >>> [(group.count, group.mean_rate_rps) for group in group_adapters(made)]
    [(2, 1.25), (1, 40.0)]
    """
    if bands_per_decade < 1:
        msg = f"bands_per_decade must be >= 1, not {bands_per_decade!r}"
        raise ValueError(msg)
    groups: dict[tuple[object, ...], list[Adapter]] = {}
    busiest = sorted(range(len(adapters)), key=lambda index: -(adapters[index].rate_rps or 0.0))[:n_alone]
    alone = {adapters[index].name for index in busiest}
    for adapter in adapters:
        if adapter.rate_rps is None:
            msg = f"the rate of adapter {adapter.name!r} is not known: its trace {adapter.trace!r} has to be read first"
            raise ValueError(msg)
        band = math.floor(bands_per_decade * math.log10(adapter.rate_rps)) if adapter.rate_rps > 0 else None
        likeness = (adapter.rank, adapter.target_modules, adapter.slos, adapter.isolation, adapter.is_merged, band)
        key = (*likeness, adapter.name if adapter.name in alone else None)
        groups.setdefault(key, []).append(adapter)
    return tuple(_group(members) for members in groups.values())


def _group(members: Sequence[Adapter]) -> AdapterGroup:
    rates = [float(adapter.rate_rps or 0.0) for adapter in members]
    first = members[0]
    return AdapterGroup(
        rank=first.rank,
        target_modules=first.target_modules,
        slos=first.slos,
        isolation=first.isolation,
        is_merged=first.is_merged,
        names=tuple(adapter.name for adapter in members),
        total_rate_rps=math.fsum(rates),
        lowest_rate_rps=min(rates),
        highest_rate_rps=max(rates),
    )
