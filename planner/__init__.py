"""gpuplan plans GPU fleets for LLM serving.

>>> import planner
>>> result = planner.plan({
...     "gpu_info": {"L4": {"cost": 0.7, "tputs": [[2.0]]}},
...     "workload_distribution": [[1.0]],
...     "total_request_rate": 5.0,
... })
>>> result.plan.status, [(a.offer, a.replicas) for a in result.plan.allocation]
(<PlanStatus.OPTIMAL: 'optimal'>, [('L4', 3)])

Everything in `__all__` is imported when it is first used, so that importing `planner` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.domain.plan import Plan
    from planner.errors import DataMissingError, InputError, PlannerError, SolverError
    from planner.files.plan_schema import read_plan
    from planner.optimize import SolverSettings
    from planner.planning.answer import plan
    from planner.planning.explain import explain
    from planner.report.result import PlanResult

__all__ = [
    "DataMissingError",
    "InputError",
    "Plan",
    "PlanResult",
    "PlannerError",
    "SolverError",
    "SolverSettings",
    "explain",
    "plan",
    "read_plan",
]

_HOMES = {
    "DataMissingError": "planner.errors",
    "InputError": "planner.errors",
    "Plan": "planner.domain.plan",
    "PlanResult": "planner.report.result",
    "PlannerError": "planner.errors",
    "SolverError": "planner.errors",
    "SolverSettings": "planner.optimize",
    "explain": "planner.planning.explain",
    "plan": "planner.planning.answer",
    "read_plan": "planner.files.plan_schema",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        msg = f"module 'planner' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
