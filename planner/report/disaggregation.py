"""Prefill and decode pools in words: what passes between them, and how engines are started for their part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.domain.disaggregation import Role
from planner.report.wording import clean, plural
from planner.units import format_bytes

if TYPE_CHECKING:
    from planner.domain.plan import Plan


def disaggregation_text(plan: Plan) -> str:
    """Return each service's prefill and decode replicas, the KV caches between them and the engine's flags."""
    services = dict.fromkeys(row.service for row in plan.allocation if row.role is not Role.BOTH)
    return " ".join(_service_text(plan, service) for service in services)


def _service_text(plan: Plan, service: str) -> str:
    mine = [row for row in plan.allocation if row.service == service]
    pools = {role: [row for row in mine if row.role is role] for role in (Role.PREFILL, Role.DECODE)}
    counts = " and ".join(
        f"{role} on {plural(sum(row.replicas for row in rows), 'replica')}" for role, rows in pools.items() if rows
    )
    sent = sum(row.transfer_bytes_per_s or 0.0 for row in pools[Role.PREFILL])
    total = sum(route.rate_rps for route in plan.routing if route.service == service)
    apart = sum(row.rate_rps for row in pools[Role.PREFILL]) / total if total else 0.0
    started = [
        f"{role} with {flags}"
        for role, rows in pools.items()
        for flags in dict.fromkeys(clean(row.engine_flags) for row in rows if row.engine_flags)
    ]
    start = f" Start {', '.join(started)}." if started else ""
    return (
        f"{clean(service)} has {counts} for {100 * apart:.0f}% of its requests; {format_bytes(sent)}/s of KV caches "
        f"pass between them.{start}"
    )
