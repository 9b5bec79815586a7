"""A fleet's model cut into what belongs to one service and what services share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.alike import Merged
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, Milp
    from planner.optimize.model import FleetModel

OWN_ROWS = frozenset({"coverage", "capacity", "presence"})
"""Presence says that a share needs a replica however small its load: what is left out of the small programmes, and
checked in the end."""
SHARED_ROWS = frozenset({"packing", "limit"})
COLUMNS = frozenset({"x", "n", "m"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One service: its options, their classes, its buckets and the pairs of bucket and class."""

    options: IntArray
    """Positions in the whole fleet's options."""
    buckets: IntArray
    pairs: IntArray
    """Positions in the pairs of buckets and classes."""
    option_class: IntArray
    """Shape (options,): position in `classes.options`."""
    classes: FleetArrays
    """The service alone, counted from 0, with one option for all that serve alike."""

    def class_price(self, price: FloatArray) -> FloatArray:
        """Return what a replica of each class costs at least, from the prices of the service's options."""
        return least_by(self.option_class, price, len(self.classes.options))

    def by_class(self, replicas: FloatArray) -> FloatArray:
        """Return the replicas of each class, from those of the service's options."""
        return np.bincount(self.option_class, weights=replicas, minlength=len(self.classes.options)).astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRows:
    """The rows  sum_j a[r, j] n[j] + sum_p d[r, p] m[p] <= upper[r]  of packing and limits, entry by entry."""

    upper: FloatArray
    is_limit: np.ndarray
    n_row: IntArray
    n_option: IntArray
    n_value: FloatArray
    m_row: IntArray
    m_pool: IntArray
    m_value: FloatArray

    def activity(self, replicas: FloatArray, instances: FloatArray) -> FloatArray:
        """Return the left sides, shape (rows,)."""
        size = len(self.upper)
        by_n = np.bincount(self.n_row, weights=self.n_value * replicas[self.n_option], minlength=size)
        by_m = np.bincount(self.m_row, weights=self.m_value * instances[self.m_pool], minlength=size)
        return np.asarray(by_n + by_m, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The model in parts, its shares those of classes of options that serve alike."""

    fleet: FleetArrays
    """Its options are those of the model."""
    merged: Merged
    milp: Milp
    """The programme by classes."""
    parts: tuple[Part, ...]
    shared: SharedRows
    instance_cost: FloatArray
    """Objective of m, shape (pools,)."""


def can_be_cut(model: FleetModel, milp: Milp) -> bool:
    """Return whether the model has only rows and columns that this package knows, and splits its buckets."""
    fleet = model.fleet
    rows = {block.name for block in milp.row_blocks if block.size}
    columns = {block.name for block in milp.col_blocks if block.size}
    if fleet.horizon is not None:
        return False
    is_plain = bool(np.all(milp.cost[model.n] == 0) and np.all(milp.cost[model.x] == 0))
    is_plain &= bool(np.all(milp.col_lower == 0))
    return rows <= OWN_ROWS | SHARED_ROWS and columns <= COLUMNS and is_plain and not fleet.is_sliced


def cut(merged: Merged) -> Cut:
    """Return the parts of a model for which `can_be_cut` holds."""
    return Cut(
        fleet=merged.model.fleet,
        merged=merged,
        milp=merged.milp,
        parts=_parts(merged),
        shared=_shared_rows(merged),
        instance_cost=merged.milp.cost[merged.m],
    )


def least_by(group: IntArray, values: FloatArray, size: int) -> FloatArray:
    """Return the least value of every group, inf for empty ones.

    Examples
    --------
    >>> least_by(np.array([0, 1, 0]), np.array([3.0, 2.0, 1.0]), 2).tolist()
    [1.0, 2.0]
    """
    least = np.full(size, np.inf)
    np.minimum.at(least, group, values)
    return least


def rows_of(milp: Milp, name: str) -> IntArray:
    """Return the rows that the family called `name` added."""
    found = [np.arange(block.start, block.start + block.size) for block in milp.row_blocks if block.name == name]
    return np.concatenate([*found, np.zeros(0, dtype=np.int64)])


def _parts(merged: Merged) -> tuple[Part, ...]:
    fleet, classes = merged.model.fleet, merged.classes
    services = sorted({service for service, _ in fleet.buckets})
    number = {service: index for index, service in enumerate(services)}
    of_bucket = np.array([number[service] for service, _ in fleet.buckets], dtype=np.int64)
    of_option = np.array([number[option.service] for option in fleet.options], dtype=np.int64)
    of_pair = of_bucket[classes.pair_bucket]
    by_service = np.argsort(of_pair, kind="stable")
    ends = np.searchsorted(of_pair[by_service], np.arange(len(services) + 1))
    return tuple(
        _part(merged, np.flatnonzero(of_option == s), np.flatnonzero(of_bucket == s), by_service[ends[s] : ends[s + 1]])
        for s in range(len(services))
    )


def _part(merged: Merged, options: IntArray, buckets: IntArray, pairs: IntArray) -> Part:
    whole = merged.classes
    mine, option_class = np.unique(merged.option_class[options], return_inverse=True)
    alone = replace(
        whole,
        options=tuple(whole.options[index] for index in mine.tolist()),
        buckets=tuple(whole.buckets[index] for index in buckets.tolist()),
        pair_bucket=np.searchsorted(buckets, whole.pair_bucket[pairs]),
        pair_option=np.searchsorted(mine, whole.pair_option[pairs]),
        pair_load=whole.pair_load[pairs],
        pair_transfer=whole.pair_transfer[pairs],
        option_offer=whole.option_offer[mine],
        option_link=whole.option_link[mine],
        option_gpus=whole.option_gpus[mine],
        option_pool=whole.option_pool[mine],
        replicas_upper=whole.replicas_upper[mine],
        running=whole.running[mine],
    )
    return Part(options=options, buckets=buckets, pairs=pairs, option_class=option_class, classes=alone)


def _shared_rows(merged: Merged) -> SharedRows:
    milp = merged.milp
    rows = np.concatenate([rows_of(milp, "packing"), rows_of(milp, "limit")])
    is_limit = np.arange(len(rows)) >= len(rows_of(milp, "packing"))
    position = np.full(milp.n_rows, -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    entry_row = position[milp.row_of_entry]
    # Shared rows have entries in n and m alone, and each family's columns are consecutive.
    n_start, m_start = int(merged.n[0]), int(merged.m[0])
    of_n = np.flatnonzero((entry_row >= 0) & (milp.columns >= n_start) & (milp.columns < n_start + len(merged.n)))
    of_m = np.flatnonzero((entry_row >= 0) & (milp.columns >= m_start) & (milp.columns < m_start + len(merged.m)))
    return SharedRows(
        upper=milp.row_upper[rows],
        is_limit=is_limit,
        n_row=entry_row[of_n],
        n_option=milp.columns[of_n] - n_start,
        n_value=milp.values[of_n],
        m_row=entry_row[of_m],
        m_pool=milp.columns[of_m] - m_start,
        m_value=milp.values[of_m],
    )
