"""Solvers at arm's length: arrays in, arrays and a `Termination` out. The only place that imports a solver."""

from planner.optimize.backends.base import Capability, RawSolution
from planner.optimize.backends.registry import BACK_ENDS, abandon, solve_linear, solve_milp

__all__ = ["BACK_ENDS", "Capability", "RawSolution", "abandon", "solve_linear", "solve_milp"]
