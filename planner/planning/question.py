"""A request, read and ready to be solved: the meeting point of all request forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from planner.domain.plan import Plan
    from planner.domain.problem import FleetProblem, ServingOption
    from planner.domain.provenance import Warning_
    from planner.domain.scaling import ScaledService, ScalingChoice
    from planner.domain.slo import Slo
    from planner.domain.workload import Demand, Trace
    from planner.optimize import OtherWay
    from planner.planning.traffic import TrafficSource
    from planner.simulate.steps import EngineKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """A service-level objective that could be given up a little, and the problem that results."""

    service: str
    slo: Slo
    problem_with_bound: Callable[[float], FleetProblem]
    """Bound in seconds -> the same problem with this one objective loosened or tightened to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregationWaysOut:
    """What could be given up of serving prefill apart from decode, and the problems that result."""

    only: tuple[str, ...]
    """Services that must be disaggregated."""
    problem_with_whole: Callable[[], FleetProblem] | None
    """The same problem with requests of these also served whole; None if there are none."""
    problem_with_network: Callable[[float], FleetProblem]
    """Factor -> the same problem with networks that are so many times as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """What a simulation of a service's adapters needs beside who they are and what is asked of them."""

    sizes: Demand
    """What sizes of requests are drawn from where there is no trace."""
    traces: Mapping[str, Trace]
    """By adapter, where it has one of its own."""
    slos: Mapping[str, tuple[Slo, ...]]
    """By adapter, where it has objectives of its own in place of the service's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySource:
    """What a simulation of the plan needs beside the problem."""

    engine: Callable[[ServingOption, Mapping[int, float]], EngineKind]
    """One replica of an option that serves so many req/s of each bucket, by its number."""
    traffic: Mapping[str, TrafficSource]
    slos: Mapping[str, tuple[Slo, ...]]
    adapters: Mapping[str, AdapterSource] = field(default_factory=dict)
    """By service, of those that have adapters."""
    start_up_s: float | None = None
    """Until a replica that is started serves; None = the request does not say."""
    spot_recovery_s: float | None = None
    """Until a replacement of a reclaimed spot instance serves; None = the request does not say."""


class ScalingAsk(Protocol):
    """A service that may be given back while nobody asks for it."""

    @property
    def name(self) -> str:
        """The service's."""

    @property
    def decides(self) -> bool:
        """Whether the plan is to give it back where that is cheaper; otherwise it is only compared."""

    @property
    def follows_load(self) -> bool:
        """Whether it can be played at other loads than the planned one."""

    @property
    def at_stake_usd_per_hour(self) -> float:
        """What all its requests would be worth if they missed an objective."""

    def __call__(self, plan: Plan) -> ScalingChoice:
        """Return the ways to keep it, the plan's own first."""

    def replayed(self, way: ScaledService, *, seed: int, load: float) -> ScaledService:
        """Return how one of these ways fares on what judged it, with other starts and at so many times the rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A problem, and what the answer must say about where it came from."""

    problem: FleetProblem
    name: str = ""
    warnings: tuple[Warning_, ...] = ()
    assumptions: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    relaxations: tuple[Relaxation, ...] = ()
    problem_with_all_bounds: Callable[[float], FleetProblem] | None = None
    """Factor -> the same problem with every bound of every objective multiplied by it; None if there are none."""
    disaggregation: DisaggregationWaysOut | None = None
    """None where every request is served whole."""
    unchecked_gpus: Mapping[str, str] = field(default_factory=dict)
    """GPU -> its architecture, where no measurement of that architecture stands behind the throughput."""
    replay: ReplaySource | None = None
    """None where only throughputs are known (Mélange's form)."""
    scaling: tuple[ScalingAsk, ...] = ()
    """Of each service that is to be compared with replicas that are given back."""
    scaling_warnings: Callable[[Iterable[ScalingChoice]], Iterable[Warning_]] | None = None
    """Of the prices that these decide by; None where nothing is compared."""
    preloaded: Callable[[FleetProblem, Plan], Plan] | None = None
    """A plan of the problem -> the same with what its replicas have ready of adapters; None where there are none."""
    compared: Callable[[Question, Plan, Sequence[OtherWay]], Plan] | None = None
    """This question, a plan, and other ways -> the plan with all ways to serve its adapters side by side."""
    slice_factor: int = 1
    """Slices per bucket that the request itself asks for, should the assignment be sliced."""
