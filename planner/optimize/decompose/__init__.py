"""Large fleets: a linear programme for bound and prices, one small programme per service, shared limits, improvement.

A fleet's rows are of two kinds. Coverage and capacity belong to one service; packing and limits, the shared rows, join
them. With a price on every unit of the shared rows the services are on their own, and small. See
`planner.optimize.decompose.driver` for the steps and docs/explanation/formulation.md for the algebra.
"""

from planner.optimize.decompose.driver import decomposed_fleet
from planner.optimize.decompose.parts import can_be_cut

__all__ = ["can_be_cut", "decomposed_fleet"]
