"""The PlanRequest: what the user asks. Field descriptions here are the single source for docs and JSON Schema."""

from planner.files.request.plan_request import PlanRequest

__all__ = ["PlanRequest"]
