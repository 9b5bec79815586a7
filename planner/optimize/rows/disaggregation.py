"""Prefill apart from decode: what is prefilled in a place is decoded there, and networks carry its KV caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import always

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.optimize.arrays import FleetArrays
    from planner.optimize.milp import FloatArray, IntArray, MilpBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class Handovers:
    """Every bucket at every meeting point: the pairs that hand over and those that take over."""

    pairs: IntArray
    """Pairs of prefill and decode options."""
    row: IntArray
    """Which handover each of `pairs` is part of, 0 and up."""
    sign: FloatArray
    """1 = prefill, -1 = decode."""
    n_rows: int


def handovers(fleet: FleetArrays, among: NDArray[np.bool_] | None = None) -> Handovers:
    """Return the handovers between all pairs of prefill and decode options, or `among` some, shape (pairs,)."""
    link = fleet.option_link[fleet.pair_option]
    apart = link != 0 if among is None else (link != 0) & among
    pairs = np.flatnonzero(apart)
    keys = np.stack([fleet.pair_bucket[pairs], np.abs(link[pairs])], axis=1)
    found, row = np.unique(keys, axis=0, return_inverse=True)
    return Handovers(pairs=pairs, row=row.reshape(-1), sign=np.sign(link[pairs]).astype(np.float64), n_rows=len(found))


def define_handovers(
    builder: MilpBuilder, fleet: FleetArrays, x: IntArray, *, among: NDArray[np.bool_] | None = None
) -> None:
    """For every bucket b and meeting point q:  sum_{prefill j at q} x[b, j] = sum_{decode j at q} x[b, j].

    A meeting point is a region of a provider, and there the options whose KV caches are alike. Coverage counts prefill
    options beside those that serve requests whole, and leaves decode options out, so that all of a bucket is decoded.

    x : columns of the eligible pairs, shape (pairs,).
    among : the pairs that have a column, shape (pairs,); None = all of them.
    """
    if not fleet.is_disaggregated:
        return
    found = handovers(fleet, among)
    builder.add_rows(
        "handover",
        rows=found.row,
        columns=x[found.pairs],
        values=found.sign,
        lower=np.zeros(found.n_rows),
        upper=np.zeros(found.n_rows),
        label=always("handover"),
    )


def define_transfers(builder: MilpBuilder, fleet: FleetArrays, x: IntArray, n: IntArray) -> None:
    """For every prefill or decode option j:  sum_b lam[b] (1 + rho) S[b] / (U W[j]) x[b, j] <= n[j].

    S[b] are the bytes of the KV cache that one request of bucket b hands over, W[j] is the network rate of one replica.

    x : columns of the eligible pairs, shape (pairs,).
    n : columns of replicas, shape (options,).
    """
    load = fleet.pair_load * fleet.pair_transfer
    pairs = np.flatnonzero(load)
    if not len(pairs):
        return
    options, row = np.unique(fleet.pair_option[pairs], return_inverse=True)
    builder.add_rows(
        "transfer",
        rows=np.concatenate([row.reshape(-1), np.arange(len(options))]),
        columns=np.concatenate([x[pairs], n[options]]),
        values=np.concatenate([load[pairs] / fleet.units_per_bucket, -np.ones(len(options))]),
        upper=np.zeros(len(options)),
        label=lambda i: f"KV caches of {fleet.options[options[i]].service} on {fleet.options[options[i]].offer.name}",
    )


def transfer_load(fleet: FleetArrays, shares: FloatArray) -> FloatArray:
    """Return the replicas whose network the KV caches of `shares` (shape (pairs,)) keep busy, shape (options,)."""
    weights = fleet.pair_load * fleet.pair_transfer * shares
    return np.bincount(fleet.pair_option, weights=weights, minlength=len(fleet.options)).astype(np.float64)


def evened_out(fleet: FleetArrays, shares: FloatArray) -> FloatArray:
    """Return `shares` (shape (pairs,)) with those of decode options scaled to what is handed over to them."""
    if not fleet.is_disaggregated:
        return shares
    found = handovers(fleet)
    mine, is_decode = shares[found.pairs], found.sign < 0
    prefilled = np.bincount(found.row, weights=np.where(is_decode, 0.0, mine), minlength=found.n_rows)
    decoded = np.bincount(found.row, weights=np.where(is_decode, mine, 0.0), minlength=found.n_rows)
    factor = np.divide(prefilled, decoded, out=np.ones(found.n_rows), where=decoded > 0)
    even = shares.copy()
    even[found.pairs[is_decode]] = (mine * factor[found.row])[is_decode]
    return even


def handed_over(fleet: FleetArrays, shares: FloatArray, tolerance: float) -> bool:
    """Return whether all that is prefilled anywhere is decoded there, as a share of each bucket."""
    if not fleet.is_disaggregated:
        return True
    found = handovers(fleet)
    missing = np.bincount(found.row, weights=found.sign * shares[found.pairs], minlength=found.n_rows)
    return bool(np.all(np.abs(missing) <= tolerance))
