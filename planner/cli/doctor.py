"""`gpuplan doctor`: is everything that gpuplan stands on in order?"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from planner.cli import console
from planner.cli.options import AsOfOption, JsonOption, parse_date
from planner.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

PACKAGES = ("pulp", "ortools", "pandas", "numpy", "typer", "rich", "pydantic", "ruamel.yaml", "jinja2")
OUR_DISTRIBUTION = "gpuplan"
OUR_PACKAGE = "planner"


def command(as_json: JsonOption = False, as_of: AsOfOption = None) -> int:
    """Check versions, solvers, the age of the data, and packages that get in gpuplan's way; exit 5 if one is broken."""
    from datetime import date

    today = parse_date(as_of) or date.today()
    checks = [*_versions(), *_solvers(), *_data(today), *_rivals()]
    if as_json:
        console.print_json({"ok": all(check["ok"] for check in checks), "checks": checks})
    else:
        from rich.table import Table

        table = Table("", "check", "found", box=None, pad_edge=False)
        for check in checks:
            table.add_row("ok" if check["ok"] else "NO", str(check["name"]), str(check["found"]))
        console.print_result(table)
    return int(ExitCode.OK if all(check["ok"] for check in checks) else ExitCode.CHECK_FAILED)


Check = dict[str, str | bool]


def _check(name: str, found: str, *, ok: bool) -> Check:
    return {"name": name, "found": found, "ok": ok}


def _versions() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    yield _check("python", platform.python_version(), ok=True)
    for package in (OUR_DISTRIBUTION, *PACKAGES):
        try:
            yield _check(package, version(package), ok=True)
        except PackageNotFoundError:
            yield _check(package, f"not installed; run: pip install {package}", ok=False)


def _solvers() -> Iterator[Check]:
    """Solve a problem with a known answer with every solver, in every way that buckets can be assigned."""
    from planner.errors import SolverError
    from planner.optimize import SOLVERS, SolverSettings
    from planner.planning.answer import plan

    for name in SOLVERS:
        for assignment, right in KNOWN_COST_USD_PER_HOUR.items():
            try:
                cost = plan(
                    KNOWN_REQUEST, settings=SolverSettings(solver=name), assignment=assignment
                ).plan.cost_usd_per_hour
            except SolverError as error:
                yield _check(f"solver {name}, {assignment}", f"not available: {error}", ok=name not in NEEDED_SOLVERS)
                continue
            is_right = cost is not None and abs(cost - right) < 1e-6
            found = f"{cost} USD/h as known" if is_right else f"{cost} USD/h, but {right} is right"
            yield _check(f"solver {name}, {assignment}", found, ok=is_right)


NEEDED_SOLVERS = ("highs", "cbc")
KNOWN_REQUEST = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[2.0, 1.0], [5.0, 2.0]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20.0, 20.0], [40.0, 20.0]]},
    },
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30.0,
}
"""Mélange's published example."""
KNOWN_COST_USD_PER_HOUR = {"fractional": 4.68, "sliced": 6.70}
"""With one slice per bucket, as Mélange publishes it: {A10G: 3, A100-80GB: 1}; with shares: {A10G: 1, A100-80GB: 1}."""


def _data(today: date) -> Iterator[Check]:
    from planner.catalog.gpus import load_gpus
    from planner.catalog.models import list_models
    from planner.catalog.offers import load_offers
    from planner.profilers.measured import load_measured

    offers = load_offers()
    dates = [offer.as_of for offer in offers if offer.as_of is not None]
    age_days = (today - max(dates)).days
    ages = f"{len(offers):,}, newest price {max(dates)} ({age_days} days old), oldest {min(dates)}"
    yield _check("offers", ages, ok=bool(offers))
    yield _check("GPUs", str(len(load_gpus().specs)), ok=True)
    yield _check("models", str(len(list_models())), ok=True)
    yield _check("measured points", f"{load_measured().n_rows:,}", ok=True)


def _rivals() -> Iterator[Check]:
    """Another distribution with a package `planner` would shadow ours, or be shadowed by it."""
    from importlib.metadata import packages_distributions

    rivals = sorted(set(packages_distributions().get(OUR_PACKAGE, [])) - {OUR_DISTRIBUTION})
    found = f"also installed by {', '.join(rivals)}; use separate environments" if rivals else "only by gpuplan"
    yield _check(f"package {OUR_PACKAGE!r}", found, ok=not rivals)
