"""Many periods: shares as cuts that all periods have in common, a few periods at a time solved whole.

A service's requests are mixed alike in every period, so that the replicas that serve a period are the same polyhedron,
scaled. See `planner.optimize.horizon.driver` for the steps and docs/explanation/formulation.md for the algebra.
"""

from planner.optimize.horizon.driver import horizon_fleet
from planner.optimize.horizon.master import can_be_projected

__all__ = ["can_be_projected", "horizon_fleet"]
