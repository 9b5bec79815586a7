"""Options that serve alike, taken together: offers of one GPU differ in price and stock, not in how fast they serve.

For options k of one service (and one period) with equal throughputs, only the sum of their replicas says what they can
serve. So the shares of such a class stand for those of its members,

    x[b, k] = sum_{j in k} x[b, j],      sum_b load[b, k] x[b, k] <= sum_{j in k} n[j],

and any solution is spread over the members by x[b, j] = x[b, k] n[j] / sum_{i in k} n[i]. Exact, with as many shares as
there are classes; replicas and instances stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.domain.problem import ServingOption
    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import Block, FloatArray, IntArray, Label, Milp
    from planner.optimize.model import FleetModel

SERVING_ROWS = frozenset({"coverage", "capacity", "presence"})
"""Rows whose coefficients of x are the same for all members of a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A fleet's programme with one x per bucket and class."""

    milp: Milp
    whole: Milp
    """The programme with one x per bucket and option."""
    model: FleetModel
    """Of the whole programme."""
    classes: FleetArrays
    """The fleet with the first member of every class for its options; pairs are those of buckets and classes."""
    option_class: IntArray
    """Shape (options,)."""
    pair_class: IntArray
    """Shape (pairs,): the pair of bucket and class that a pair of bucket and option belongs to."""
    x: IntArray
    """Columns of shares by class, shape (pairs of bucket and class,)."""
    n: IntArray
    m: IntArray
    others: IntArray
    """Columns of the whole programme that are not shares; here they are in the same order."""

    @property
    def is_as_large(self) -> bool:
        """Whether no two options serve alike."""
        return len(self.classes.options) == len(self.option_class)

    def spread(self, by_class: FloatArray, replicas: FloatArray) -> FloatArray:
        """Return the members' shares, shape (pairs,): in proportion to their replicas, the first one's if all are 0."""
        in_class = np.bincount(self.option_class, weights=replicas, minlength=len(self.classes.options))
        total = in_class[self.option_class]
        part = np.divide(replicas, total, out=np.zeros(len(replicas)), where=total > 0)
        first = np.unique(self.option_class, return_index=True)[1]
        part[first[in_class <= 0]] = 1.0
        return np.asarray(by_class[self.pair_class] * part[self.model.fleet.pair_option], dtype=np.float64)

    def expand(self, values: FloatArray) -> FloatArray:
        """Return a solution of the whole programme from one of this."""
        whole = np.zeros(self.whole.n_columns)
        is_other = np.ones(len(values), dtype=np.bool_)
        is_other[self.x] = False
        whole[self.others] = values[is_other]
        whole[self.model.x] = self.spread(values[self.x], whole[self.model.n])
        return whole


def merged(model: FleetModel, milp: Milp) -> Merged | None:
    """Return the programme by classes; None where a row tells the members of a class apart, or shares are sliced."""
    fleet = model.fleet
    pair_of_column = np.full(milp.n_columns, -1, dtype=np.int64)
    pair_of_column[model.x] = np.arange(len(model.x))
    row, pair = milp.row_of_entry, pair_of_column[milp.columns]
    serving = np.zeros(milp.n_rows, dtype=np.bool_)
    for block in milp.row_blocks:
        serving[block.start : block.start + block.size] = block.name in SERVING_ROWS
    if fleet.is_sliced or np.any(milp.cost[model.x] != 0) or not np.all(serving[row[pair >= 0]]):
        return None
    option_class = option_classes(fleet)
    first_option = np.unique(option_class, return_index=True)[1]
    keys = fleet.pair_bucket * max(len(first_option), 1) + option_class[fleet.pair_option]
    _, first_pair, pair_class = np.unique(keys, return_index=True, return_inverse=True)
    n_pairs = np.bincount(fleet.pair_option, minlength=len(fleet.options))
    are_alike = np.array_equal(fleet.pair_load, fleet.pair_load[first_pair][pair_class])
    if not are_alike or not np.array_equal(n_pairs, n_pairs[first_option][option_class]):
        return None  # something beside the throughput tells the members apart
    stands_for = np.arange(milp.n_rows)
    for block in milp.row_blocks:
        inside = slice(block.start, block.start + block.size)
        if block.name == "capacity":
            stands_for[inside] = block.start + first_option[option_class]
        elif block.name == "presence":
            entry = np.flatnonzero((pair >= 0) & (row >= inside.start) & (row < inside.stop))
            row_of_pair = np.zeros(len(model.x), dtype=np.int64)
            row_of_pair[pair[entry]] = row[entry]
            stands_for[row[entry]] = row_of_pair[first_pair[pair_class[pair[entry]]]]
    keeps_column = pair_of_column < 0
    keeps_column[model.x[first_pair]] = True
    new_column = np.cumsum(keeps_column) - 1
    return Merged(
        milp=_smaller(milp, keeps_column=keeps_column, stands_for=stands_for),
        whole=milp,
        model=model,
        classes=replace(
            fleet,
            options=tuple(fleet.options[index] for index in first_option.tolist()),
            pair_bucket=fleet.pair_bucket[first_pair],
            pair_option=option_class[fleet.pair_option[first_pair]],
            pair_load=fleet.pair_load[first_pair],
            pair_transfer=fleet.pair_transfer[first_pair],
            option_offer=fleet.option_offer[first_option],
            option_link=fleet.option_link[first_option],
            option_gpus=fleet.option_gpus[first_option],
            option_pool=fleet.option_pool[first_option],
            replicas_upper=fleet.replicas_upper[first_option],
            running=fleet.running[first_option],
        ),
        option_class=option_class,
        pair_class=pair_class,
        x=new_column[model.x[first_pair]],
        n=new_column[model.n],
        m=new_column[model.m],
        others=np.flatnonzero(pair_of_column < 0),
    )


def _smaller(milp: Milp, *, keeps_column: NDArray[np.bool_], stands_for: IntArray) -> Milp:
    """Return the programme without the other columns, and with every row in the one that stands for it.

    Rows that are put together have their kept entries in different columns, or none but the first one's.
    """
    keeps_row = stands_for == np.arange(milp.n_rows)
    new_row = (np.cumsum(keeps_row) - 1)[stands_for]
    new_column = np.cumsum(keeps_column) - 1
    kept = np.flatnonzero(keeps_column[milp.columns])
    rows = new_row[milp.row_of_entry[kept]]
    order = np.lexsort((milp.columns[kept], rows))
    starts = np.zeros(int(keeps_row.sum()) + 1, dtype=np.int64)
    starts[1:] = np.cumsum(np.bincount(rows, minlength=len(starts) - 1))
    return replace(
        milp,
        cost=milp.cost[keeps_column],
        row_starts=starts,
        columns=new_column[milp.columns[kept]][order],
        values=milp.values[kept][order],
        row_lower=milp.row_lower[keeps_row],
        row_upper=milp.row_upper[keeps_row],
        col_lower=milp.col_lower[keeps_column],
        col_upper=milp.col_upper[keeps_column],
        is_integer=milp.is_integer[keeps_column],
        row_blocks=_blocks(milp.row_blocks, keeps_row),
        col_blocks=_blocks(milp.col_blocks, keeps_column),
        start=None if milp.start is None else milp.start[keeps_column],
    )


def _blocks(blocks: tuple[Block, ...], is_kept: NDArray[np.bool_]) -> tuple[Block, ...]:
    """Return the blocks of what is kept; their labels are those of the members that stay."""
    found: list[Block] = []
    start = 0
    for block in blocks:
        members = np.flatnonzero(is_kept[block.start : block.start + block.size])
        found.append(replace(block, start=start, size=len(members), label=_label(block, members)))
        start += len(members)
    return tuple(found)


def _label(block: Block, members: IntArray) -> Label | None:
    label = block.label
    return None if label is None else lambda index: label(int(members[index]))


def option_classes(fleet: FleetArrays) -> IntArray:
    """Return every option's class, shape (options,); those of two periods are in two classes.

    Where prefill and decode are apart, a class is of one role, meeting point and network load. Classes are numbered in
    the order of their first members.
    """
    seen: dict[tuple[object, ...], int] = {}
    keys = (
        (period, option.service, option.usable_rps.tobytes(), *_handover_key(option))
        for period, option in zip(fleet.option_period.tolist(), fleet.options, strict=True)
    )
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _handover_key(option: ServingOption) -> tuple[object, ...]:
    if option.handover is None:
        return ()
    return (option.role, option.meeting_point, (option.handover.kv_bytes / option.handover.bytes_per_s).tobytes())
