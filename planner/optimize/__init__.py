"""One mixed-integer programme: arrays in, a verified `Plan` out. Solvers live in `backends` alone."""

from planner.optimize.adapter_ways import OtherWay, other_ways, with_alternatives
from planner.optimize.backends.registry import BACK_ENDS
from planner.optimize.baselines import savings_vs_best_single, single_gpu_baselines
from planner.optimize.conflicts import find_conflicts, format_amount
from planner.optimize.explain import GpuPrice, assignment_of, price_of_gpu, price_of_jobs, price_of_limits
from planner.optimize.plan_check import verify_plan
from planner.optimize.redundancy_check import check_redundancy_prices
from planner.optimize.redundancy_price import redundancy_prices
from planner.optimize.robustness import robustness, unsurvived
from planner.optimize.settings import Assignment, SolverSettings
from planner.optimize.shed import UNSERVED
from planner.optimize.solving import solve
from planner.optimize.termination import Termination

SOLVERS = tuple(BACK_ENDS)
"""Names that `SolverSettings.solver` takes."""

__all__ = [
    "SOLVERS",
    "UNSERVED",
    "Assignment",
    "GpuPrice",
    "OtherWay",
    "SolverSettings",
    "Termination",
    "assignment_of",
    "check_redundancy_prices",
    "find_conflicts",
    "format_amount",
    "other_ways",
    "price_of_gpu",
    "price_of_jobs",
    "price_of_limits",
    "redundancy_prices",
    "robustness",
    "savings_vs_best_single",
    "single_gpu_baselines",
    "solve",
    "unsurvived",
    "verify_plan",
    "with_alternatives",
]
