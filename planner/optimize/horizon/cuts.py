"""The cuts of one service that were found so far, and in which periods each of them is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planner.optimize.horizon.needs import Need
    from planner.optimize.milp import FloatArray, IntArray

SAME_PRICES = 1e-7
"""Cuts whose prices differ by no more are the same."""
VIOLATED = 1e-6
"""Relative to its side: what a cut is missed by counts from here."""
BINDING = 1e-4
"""Relative to its side: what has more room does not bind."""


class Cuts:
    """Prices v and sides R(v) of every cut, and the periods it is active in."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self.prices: FloatArray = np.zeros((0, len(need.options)))
        self.required: FloatArray = np.zeros(0)
        self.active: np.ndarray = np.zeros((0, len(need.scale)), dtype=np.bool_)

    def add(self, prices: FloatArray) -> bool:
        """Take a cut in, active nowhere; return whether it is new."""
        if len(self.prices) and float(np.abs(self.prices - prices).max(axis=1).min()) < SAME_PRICES:
            return False
        self.prices = np.vstack([self.prices, prices])
        self.required = np.append(self.required, self.need.required(prices[None]))
        self.active = np.vstack([self.active, np.zeros((1, self.active.shape[1]), dtype=np.bool_)])
        return True

    def copy(self) -> Cuts:
        """Return cuts that can change without these."""
        found = Cuts(self.need)
        found.prices, found.required, found.active = self.prices, self.required, self.active.copy()
        return found

    def take_over(self, other: Cuts, *, known: int, periods: IntArray) -> None:
        """Take in what a copy has found since it had `known` cuts, and what it has activated in `periods`."""
        for prices in other.prices[known:]:
            self.add(prices)
        self.active[:known, periods] |= other.active[:known, periods]

    def room(self, replicas: FloatArray, periods: IntArray) -> FloatArray:
        """Return by how much of its side every cut is exceeded, below 0 where it is missed, shape (cuts, periods).

        replicas : shape (periods, options of the service). Where nothing is asked there is room without end.
        """
        side = self.required[:, None] * self.need.scale[periods]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self.prices @ replicas.T) / side - 1.0
        return np.where(side > 0, found, np.inf)

    def activate(self, replicas: FloatArray, periods: IntArray, *, most: int) -> int:
        """Activate, in every period, up to `most` cuts that it misses by most; return how many were missed."""
        if not len(self.prices):
            return 0
        room = self.room(replicas, periods)
        worst = np.argsort(room, axis=0, kind="stable")[:most]
        at = np.broadcast_to(np.arange(len(periods)), worst.shape)
        missed = room[worst, at] < -VIOLATED
        self.active[worst[missed], periods[at[missed]]] = True
        return int((room < -VIOLATED).sum())

    def rest(self, replicas: FloatArray, periods: IntArray) -> None:
        """Let cuts that do not bind rest; they are kept for later."""
        if len(self.prices):
            self.active[:, periods] &= self.room(replicas, periods) <= BINDING

    def spread(self, sample: IntArray, like: IntArray) -> None:
        """Make the cuts of every period those of the sampled period that it is like.

        like : shape (all periods,), the position in `sample`.
        """
        self.active = self.active[:, sample][:, like] & (self.need.scale > 0)
