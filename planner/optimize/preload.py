"""What to load before anybody asks: libraries, weights, adapters and kernels, on GPUs, in host memory and on disks.

A knapsack with precedence. Artifact a held at place p saves its requests v_ap = rate_a x (seconds saved there), once,
however many copies there are (artifacts of one credit, as an adapter in host memory and in a slot, once together):

    maximise   sum v_ap z_ap
    subject to z_ap <= y_ap,   sum_p z_ap <= 1,   sum_a size_a y_ap <= capacity_p,   sum_a y_ap <= most_p,
               y in {0, 1},
               y_ap <= y_bp              if a needs b and b can be where a is: an adapter sits beside its backbone,
               y_ap <= sum_q y_bq        if a needs b and b can only be elsewhere: weights need libraries in a host,
                                         q over the places of p's machine.

Source: ServerlessLoRA (arXiv 2505.14468, section 4.1), which fills places by value per byte; section 4.3 for evictions.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from planner.optimize.milp import MilpBuilder
from planner.optimize.search import run
from planner.optimize.settings import SolverSettings
from planner.optimize.verify import verify

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from planner.optimize.milp import FloatArray, Milp

    Held = frozenset[tuple[str, str]]

SLACK = 1e-9
"""Relative; artifacts that fill a place exactly do fit."""
PRESSURE_FRACTION = 0.9
"""Use of a GPU's memory above which something is evicted (the same source, section 4.3)."""


class Tier(StrEnum):
    """Where artifacts can be held."""

    GPU = "gpu"
    HOST = "host"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One GPU, one container's memory or one disk."""

    name: str
    tier: Tier
    capacity_bytes: float
    machine: str = ""
    """What it is part of: what an artifact requires elsewhere has to be on the same machine."""
    most: float = math.inf
    """Artifacts that it holds at most, whatever their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Something that a function needs loaded."""

    name: str
    size_bytes: float
    rate_rps: float
    """Requests that need it: `artifact_rates`."""
    saved_s: Mapping[Tier, float]
    """What each of them waits less for it when it is held in that tier; tiers where it cannot be are left out."""
    requires: tuple[str, ...] = ()
    """Artifacts without which it is of no use."""
    places: frozenset[str] | None = None
    """Names of the places where it may be; None = all of its tiers."""
    saved_at_s: Mapping[str, float] = field(default_factory=dict)
    """What is saved at a place by its name, where that is not what its tier saves; never more than that."""
    credit: str = ""
    """Artifacts of the same credit save once together, where that is most; empty: by itself."""

    @property
    def credited(self) -> str:
        """What it counts for."""
        return self.credit or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Preload:
    """Artifacts to hold, and what that is worth."""

    held: Held
    """(artifact, place)."""
    saved_s_per_s: float
    """Seconds of waiting saved in each second."""
    bound_s_per_s: float | None = None
    """Nothing saves more; None = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Artifacts to give up, in order, each with those that are of no use without it."""

    evicted: tuple[tuple[str, str], ...]
    freed_bytes: float
    """At the place that needs room."""
    is_enough: bool
    lost_s_per_s: float


def _may_be(artifact: Artifact, place: Place) -> bool:
    return place.tier in artifact.saved_s and (artifact.places is None or place.name in artifact.places)


class Shelves:
    """Artifacts and places by name, checked, with the questions that both searches ask of them."""

    def __init__(self, artifacts: Sequence[Artifact], places: Sequence[Place]) -> None:
        """Check names and requirements.

        Raises
        ------
        ValueError: if a name is used twice, a size, rate or time is negative, or requirements are unknown or circular.
        """
        self.artifacts = {artifact.name: artifact for artifact in artifacts}
        self.places = {place.name: place for place in places}
        if len(self.artifacts) != len(artifacts) or len(self.places) != len(places):
            msg = "artifacts and places need names of their own"
            raise ValueError(msg)
        for artifact in artifacts:
            seconds = (*artifact.saved_s.values(), *artifact.saved_at_s.values())
            numbers = (artifact.size_bytes, artifact.rate_rps, *seconds)
            if not all(0 <= number < np.inf for number in numbers):
                msg = f"{artifact.name} has a size, rate or time that is negative or not finite"
                raise ValueError(msg)
            if unknown := [name for name in artifact.requires if name not in self.artifacts]:
                msg = f"{artifact.name} requires {unknown[0]!r}, which is not there"
                raise ValueError(msg)
        self.homes = {
            artifact.name: tuple(place.name for place in places if _may_be(artifact, place)) for artifact in artifacts
        }
        self._check_circles()
        self.dependents: dict[str, list[str]] = {name: [] for name in self.artifacts}
        for artifact in artifacts:
            for name in artifact.requires:
                self.dependents[name].append(artifact.name)

    def value(self, artifact: str, place: str) -> float:
        """Return the seconds saved in each second by an artifact at a place."""
        kept = self.artifacts[artifact]
        saved_s = kept.saved_at_s.get(place)
        return kept.rate_rps * (kept.saved_s[self.places[place].tier] if saved_s is None else saved_s)

    def worth(self, held: Iterable[tuple[str, str]]) -> float:
        """Return what is saved with `held`, each credit counted where it saves most."""
        best: dict[str, float] = {}
        for artifact, place in held:
            credit = self.artifacts[artifact].credited
            best[credit] = max(best.get(credit, 0.0), self.value(artifact, place))
        return math.fsum(best.values())  # the same whatever the order of a set

    def used_bytes(self, held: Iterable[tuple[str, str]]) -> dict[str, float]:
        """Return what each place holds."""
        used = dict.fromkeys(self.places, 0.0)
        for artifact, place in held:
            used[place] += self.artifacts[artifact].size_bytes
        return used

    def needed_at(self, artifact: str, place: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield what an artifact at a place requires, and the places of which any one will do."""
        for name in self.artifacts[artifact].requires:
            if place in self.homes[name]:
                yield name, (place,)
            else:
                machine = self.places[place].machine
                yield name, tuple(home for home in self.homes[name] if self.places[home].machine == machine)

    def is_allowed(self, held: Collection[tuple[str, str]]) -> bool:
        """Return whether everything fits, and has what it requires."""
        used, counts = self.used_bytes(held), Counter(place for _, place in held)
        return all(
            used[name] <= place.capacity_bytes * (1 + SLACK) and counts[name] <= place.most
            for name, place in self.places.items()
        ) and all(self.is_supported(pair, held) for pair in held)

    def is_supported(self, pair: tuple[str, str], held: Collection[tuple[str, str]]) -> bool:
        """Return whether all that `pair` requires is in `held`."""
        return all(any((name, place) in held for place in places) for name, places in self.needed_at(*pair))

    def _check_circles(self) -> None:
        done: set[str] = set()
        for start in self.artifacts:
            path: list[str] = []
            stack = [(start, False)]
            while stack:
                name, is_left = stack.pop()
                if is_left:
                    path.pop()
                    done.add(name)
                elif name in path:
                    msg = f"{name} requires itself, through {' and '.join(path[path.index(name) + 1 :]) or 'nothing'}"
                    raise ValueError(msg)
                elif name not in done:
                    path.append(name)
                    stack += [(name, True), *((other, False) for other in self.artifacts[name].requires)]


def artifact_rates(needs: Mapping[str, Sequence[str]], rates_rps: Mapping[str, float]) -> dict[str, float]:
    """Return the rate of each artifact: the sum over the functions that need it.

    Parameters
    ----------
    needs : function -> all artifacts that it needs.
    rates_rps : function -> its rate.

    Examples
    --------
    >>> artifact_rates({"legal": ["7b", "legal-lora"], "tax": ["7b", "tax-lora"]}, {"legal": 2.0, "tax": 0.5})
    {'7b': 2.5, 'legal-lora': 2.0, 'tax-lora': 0.5}
    """
    found: dict[str, float] = {}
    for function, artifacts in needs.items():
        for artifact in dict.fromkeys(artifacts):
            found[artifact] = found.get(artifact, 0.0) + rates_rps[function]
    return found


def greedy_preload(artifacts: Sequence[Artifact], places: Sequence[Place]) -> Preload:
    """Return what filling places by value per byte holds: each step loads an artifact with all that it still requires.

    The step with the largest gain per byte comes first, as long as it fits. It may be far off; `relaxed_bound` bounds
    by how much. About O(n p log(n p)) steps of the work of one artifact's requirements.

    Raises
    ------
    ValueError: as `Shelves`.
    """
    shelves = Shelves(artifacts, places)
    held: set[tuple[str, str]] = set()
    free = {name: (place.capacity_bytes * (1 + SLACK), place.most) for name, place in shelves.places.items()}
    best = {artifact.credited: 0.0 for artifact in shelves.artifacts.values()}
    queue: list[tuple[float, str, str]] = []

    def push(artifact: str) -> None:
        for place in shelves.homes[artifact]:
            step = _step(shelves, (artifact, place), held, free, best)
            if step is not None:
                heapq.heappush(queue, (-step.density, artifact, place))

    for name in shelves.artifacts:
        push(name)
    while queue:
        density, artifact, place = heapq.heappop(queue)
        step = _step(shelves, (artifact, place), held, free, best)
        if step is None:
            continue
        if step.density < -density * (1 - SLACK):  # what it gains has fallen since it was queued
            heapq.heappush(queue, (-step.density, artifact, place))
            continue
        for name, where in step.loads:
            held.add((name, where))
            free[where] = (free[where][0] - shelves.artifacts[name].size_bytes, free[where][1] - 1)
            credit = shelves.artifacts[name].credited
            best[credit] = max(best[credit], shelves.value(name, where))
        for name in _affected(shelves, [name for name, _ in step.loads]):
            push(name)
    worth = shelves.worth(held)
    return Preload(held=frozenset(held), saved_s_per_s=worth, bound_s_per_s=max(worth, relaxed_bound(shelves)))


def relaxed_bound(shelves: Shelves) -> float:
    """Return what no choice saves more than: every tier by itself as one place, filled with parts of artifacts.

    Of each tier the smaller of two relaxations of its knapsack: by value per byte as far as all its places' bytes go,
    and the most valuable artifacts as far as all their counts go; all tiers are added up, and at least everything once.
    Of an artifact that requires others of its credit counts what it may save beyond the best of these.
    """
    bound, most_of = 0.0, _increments(shelves)
    for tier in Tier:
        places = [place for place in shelves.places.values() if place.tier is tier]
        names = {place.name for place in places}
        able = [each for name, each in shelves.artifacts.items() if names.intersection(shelves.homes[name])]
        values = np.array([most_of[each.name, tier] for each in able])
        sizes = np.array([each.size_bytes for each in able])
        room = sum(place.capacity_bytes for place in places) * (1 + SLACK)
        count = sum(place.most for place in places)
        most = float(np.sort(values)[::-1][: int(min(count, len(values)))].sum())
        bound += min(_fractional(values, sizes, room), most)
    return min(bound, shelves.worth((name, home) for name, homes in shelves.homes.items() for home in homes))


def _increments(shelves: Shelves) -> dict[tuple[str, Tier], float]:
    """Return the most that artifacts save by tier beyond what those of their credit do that they cannot be without."""
    found = {}
    for artifact in shelves.artifacts.values():
        below = [shelves.artifacts[name] for name in artifact.requires]
        # Where it is held they are, and count for this much at least.
        before = [
            other.rate_rps * min(other.saved_s.values(), default=0.0)
            for other in below
            if other.credited == artifact.credited
        ]
        for tier, saved_s in artifact.saved_s.items():
            found[artifact.name, tier] = max(0.0, artifact.rate_rps * saved_s - max(before, default=0.0))
    return found


def _fractional(values: FloatArray, sizes: FloatArray, room: float) -> float:
    """Return the value of a knapsack of `room` bytes that may be filled with parts (Dantzig's bound)."""
    has_size = sizes > 0
    value, size = values[has_size], sizes[has_size]
    order = np.argsort(-value / size, kind="stable")
    before = np.cumsum(size[order]) - size[order]
    part = np.clip((room - before) / size[order], 0.0, 1.0)
    return float(values[~has_size].sum() + (value[order] * part).sum())


@dataclass(frozen=True, slots=True)
class _Step:
    loads: tuple[tuple[str, str], ...]
    density: float


def _step(
    shelves: Shelves,
    pair: tuple[str, str],
    held: set[tuple[str, str]],
    free: Mapping[str, tuple[float, float]],
    best: Mapping[str, float],
) -> _Step | None:
    """Return an artifact and what it still requires as one step; None if that gains nothing or does not fit."""
    loads: dict[tuple[str, str], None] = {}
    left = dict(free)
    stack = [pair]
    while stack:
        artifact, place = stack.pop()
        if (artifact, place) in held or (artifact, place) in loads:
            continue
        size = shelves.artifacts[artifact].size_bytes
        room, count = left[place]
        if size > room or count < 1:
            return None
        left[place] = (room - size, count - 1)
        loads[artifact, place] = None
        for name, choices in shelves.needed_at(artifact, place):
            if any((name, where) in held or (name, where) in loads for where in choices):
                continue
            if not choices:
                return None
            stack.append((name, max(choices, key=lambda where: left[where])))
    gains: dict[str, float] = {}
    for name, where in loads:
        credit = shelves.artifacts[name].credited
        gains[credit] = max(gains.get(credit, 0.0), shelves.value(name, where) - best[credit])
    gain = math.fsum(gains.values())
    size = sum(shelves.artifacts[name].size_bytes for name, _ in loads)
    if gain <= 0:
        return None
    return _Step(loads=tuple(loads), density=gain / size if size > 0 else np.inf)


def _affected(shelves: Shelves, loaded: Sequence[str]) -> list[str]:
    """Return the artifacts whose steps have changed: the loaded ones and all that require them."""
    found = dict.fromkeys(loaded)
    stack = list(found)
    while stack:
        for name in shelves.dependents[stack.pop()]:
            if name not in found:
                found[name] = None
                stack.append(name)
    return list(found)


def best_preload(
    artifacts: Sequence[Artifact], places: Sequence[Place], *, settings: SolverSettings | None = None
) -> Preload:
    """Return the artifacts whose loading ahead saves most, to the solver's gap, with the proven bound.

    If the solver's time runs out, what it has by then or what `greedy_preload` finds, whichever is better.

    Raises
    ------
    ValueError: as `Shelves`.
    SolverError: if the solver fails, or its answer breaks the programme.
    """
    shelves = Shelves(artifacts, places)
    greedy = greedy_preload(artifacts, places)
    pairs = [(name, place) for name, homes in shelves.homes.items() for place in homes]
    values = np.array([shelves.value(*pair) for pair in pairs])
    scale = float(values.max(initial=0.0))
    if scale == 0:
        return Preload(held=frozenset(), saved_s_per_s=0.0, bound_s_per_s=0.0)
    milp = _programme(shelves, pairs, values / scale)
    is_held = np.array([pair in greedy.held for pair in pairs], dtype=np.float64)
    raw = run(
        replace(milp, start=np.concatenate([is_held, _credit(shelves, pairs, values, is_held)])),
        settings or SolverSettings(),
    )
    most = relaxed_bound(shelves)
    bound = most if raw.bound is None else min(-raw.bound * scale, most)
    found = replace(greedy, bound_s_per_s=max(bound, greedy.saved_s_per_s))
    if raw.values is not None:
        values = verify(milp, raw.values, stated_objective=raw.objective, bound=raw.bound).values[: len(pairs)]
        held = _without_idle(shelves, {pair for pair, is_in in zip(pairs, values, strict=True) if is_in > 0.5})
        worth = shelves.worth(held)
        if worth >= greedy.saved_s_per_s:
            found = Preload(held=held, saved_s_per_s=worth, bound_s_per_s=max(bound, worth))
    return found


def _programme(shelves: Shelves, pairs: Sequence[tuple[str, str]], values: FloatArray) -> Milp:
    """Return the programme of the module's docstring; sizes are parts of each place's capacity."""
    builder = MilpBuilder()
    counted = {name: index for index, name in enumerate(_credits(shelves))}
    places = {name: index for index, name in enumerate(shelves.places)}
    y = builder.add_columns("held", len(pairs), upper=1.0, is_integer=True, label=lambda i: " at ".join(pairs[i]))
    z = builder.add_columns("credited", len(pairs), upper=1.0, cost=-values, label=lambda i: " at ".join(pairs[i]))
    each = np.arange(len(pairs))
    builder.add_rows(
        "held_before_credited",
        rows=np.concatenate([each, each]),
        columns=np.concatenate([z, y]),
        values=np.repeat([1.0, -1.0], len(pairs)),
        upper=np.zeros(len(pairs)),
    )
    of_credit = np.array([counted[shelves.artifacts[artifact].credited] for artifact, _ in pairs])
    builder.add_rows("credited_once", rows=of_credit, columns=z, values=1.0, upper=np.ones(len(counted)))
    at_place = np.array([places[place] for _, place in pairs])
    sizes = np.array([shelves.artifacts[artifact].size_bytes for artifact, _ in pairs])
    capacities = np.array([shelves.places[place].capacity_bytes for place in places])
    scale = np.where(capacities > 0, capacities, 1.0)
    builder.add_rows(
        "capacity", rows=at_place, columns=y, values=sizes / scale[at_place], upper=capacities / scale * (1 + SLACK)
    )
    mosts = np.array([min(shelves.places[place].most, len(shelves.artifacts)) for place in places])
    builder.add_rows("most", rows=at_place, columns=y, values=1.0, upper=mosts)
    column = dict(zip(pairs, y.tolist(), strict=True))
    rows: list[int] = []
    columns: list[int] = []
    signs: list[float] = []
    n_rows = 0
    for pair in pairs:
        for name, choices in shelves.needed_at(*pair):
            support = [column[name, where] for where in choices]
            rows += [n_rows] * (1 + len(support))
            columns += [column[pair], *support]
            signs += [1.0] + [-1.0] * len(support)
            n_rows += 1
    builder.add_rows("precedence", rows=rows, columns=columns, values=signs, upper=np.zeros(n_rows))
    return builder.freeze()


def _credits(shelves: Shelves) -> list[str]:
    return list(dict.fromkeys(artifact.credited for artifact in shelves.artifacts.values()))


def _credit(shelves: Shelves, pairs: Sequence[tuple[str, str]], values: FloatArray, is_held: FloatArray) -> FloatArray:
    """Return 1 where each credit's held artifacts save most, else 0, shape (pairs,)."""
    best: dict[str, int] = {}
    for i in np.flatnonzero(is_held).tolist():
        name = shelves.artifacts[pairs[i][0]].credited
        if name not in best or values[i] > values[best[name]]:
            best[name] = i
    credit = np.zeros(len(pairs))
    credit[list(best.values())] = 1.0
    return credit


def _without_idle(shelves: Shelves, held: set[tuple[str, str]]) -> Held:
    """Return `held` without copies that save nothing and that nothing requires."""
    pairs = sorted(held)
    values = np.array([shelves.value(*pair) for pair in pairs])
    credit = _credit(shelves, pairs, values, np.ones(len(pairs)))
    spare = [pair for pair, value, part in zip(pairs, values, credit, strict=True) if value == 0 or part == 0]
    kept, is_done = set(held), False
    while not is_done:
        is_done = True
        for pair in spare:
            kept.discard(pair)
            if any(
                not shelves.is_supported((name, place), kept)
                for name in shelves.dependents[pair[0]]
                for place in shelves.homes[name]
                if (name, place) in kept
            ):
                kept.add(pair)
            else:
                spare, is_done = [other for other in spare if other != pair], False
    return frozenset(kept)


def bytes_to_free(*, used_bytes: float, capacity_bytes: float, fraction: float = PRESSURE_FRACTION) -> float:
    """Return how much has to go for a place to be used to `fraction` of its capacity at most."""
    return max(0.0, used_bytes - fraction * capacity_bytes)


def evict(
    artifacts: Sequence[Artifact],
    places: Sequence[Place],
    held: Collection[tuple[str, str]],
    *,
    place: str,
    need_bytes: float,
    pinned: Collection[tuple[str, str]] = (),
) -> Eviction:
    """Return what to give up so that `place` has `need_bytes` more room: the least value per byte freed first.

    An artifact goes with all that is of no use without it (a backbone with its adapters), and their value counts.

    Parameters
    ----------
    held : what is there now, (artifact, place).
    pinned : what must stay, as a running batch uses it.

    Raises
    ------
    ValueError: as `Shelves`, and if `held` names an artifact where it cannot be.
    """
    shelves = Shelves(artifacts, places)
    if misplaced := [pair for pair in held if pair[1] not in shelves.homes.get(pair[0], ())]:
        msg = f"{' at '.join(misplaced[0])} cannot be"
        raise ValueError(msg)
    left, gone, freed = set(held), [], 0.0
    while freed < need_bytes:
        choices = []
        for pair in sorted(left):
            if pair[1] != place:
                continue
            falls = _falling(shelves, pair, left)
            room = sum(shelves.artifacts[name].size_bytes for name, where in falls if where == place)
            if room > 0 and not any(fallen in pinned for fallen in falls):
                lost = shelves.worth(left) - shelves.worth(left - set(falls))
                choices.append((lost / room, pair, falls, room))
        if not choices:
            break
        _, _, falls, room = min(choices)
        left -= set(falls)
        gone += falls
        freed += room
    return Eviction(
        evicted=tuple(gone),
        freed_bytes=freed,
        is_enough=freed >= need_bytes,
        lost_s_per_s=shelves.worth(held) - shelves.worth(left),
    )


def _falling(shelves: Shelves, pair: tuple[str, str], held: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return `pair` and all of `held` that is of no use without it, in the order in which they fall."""
    falls = [pair]
    rest = held - {pair}
    for fallen in falls:  # grows while it is walked through
        for other in sorted(rest):
            if fallen[0] in shelves.artifacts[other[0]].requires and not shelves.is_supported(other, rest):
                falls.append(other)
                rest = rest - {other}
    return falls
