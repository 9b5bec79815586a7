"""Thousands of small random fleets of every family in combination, against two solvers and an enumeration.

Run with `make bench-optimizer` or `python benchmarks/optimizer_cross_check.py --instances 1000 --seed 7`; it writes its
section of docs/benchmarks.md. The fleets are those of `tests/random_fleets.py`. Instance i of seed s is drawn from
`numpy.random.default_rng([s, i])`; whatever is wrong is printed with its number, and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from _report import machine, write_section
from cross_check import Finding, check_case
from random_fleets import FAMILIES, Case, adapter_case, random_case

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESSES = 2
CHUNK = 25
PLANNED = ("optimal", "feasible")


def one(seed: int, draw: Callable[[np.random.Generator], Case], index: int) -> tuple[int, tuple[str, ...], Finding]:
    case = draw(np.random.default_rng([seed, index]))
    return index, case.families, check_case(case)


class Tally:
    """What all instances come to."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.families: Counter[str] = Counter()
        self.planned: Counter[str] = Counter()
        self.compared: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.furthest: dict[str, float] = {}
        self.above: list[float] = []
        """Of fleets with adapters: by what part the plan costs more than the cheapest one, inf without a plan."""
        self.n_together = 0

    def add(self, families: tuple[str, ...], finding: Finding) -> None:
        self.statuses[finding.status or "crash"] += 1
        self.families.update(families)
        if finding.status in PLANNED:
            self.planned.update(families)
        self.n_together += len(families)
        self.compared.update(
            {"cbc": finding.cbc == "agrees", "refused by cbc": finding.cbc == "refused"}
            | {"caught": finding.cbc == "caught"}
            | {"enumeration": finding.is_enumerated}
        )
        for name, difference in finding.differences.items():
            self.furthest[name] = max(self.furthest.get(name, 0.0), difference)
        if finding.above is not None:
            self.above.append(finding.above)
        self.wrong.update(words.split(":")[0] for words in finding.problems)

    @property
    def n_planned(self) -> int:
        """Instances that have a plan."""
        return sum(self.statuses[status] for status in PLANNED)

    def adapters(self) -> str:
        """Return how near plans of whole adapters come to the cheapest fleets."""
        above = np.array(self.above)
        planned = above[np.isfinite(above)]
        most = f", at most {planned.max():.0%}" if len(planned) else ""
        return (
            f"{len(above)} fleets with adapters were enumerated and can be had: the bound must not be above the "
            f"cheapest one, nor the plan below it. {np.sum(planned <= 1e-9)} plans are the cheapest fleet, "
            f"{np.sum(planned > 1e-9)} cost more{most}, with a gap that says it, and for {np.sum(np.isinf(above))} no "
            "place for every adapter was found within the limits (W413). Of CBC's plans the bounds are compared."
        )

    def markdown(self, first: int, n: int, seed: int, seconds: float, *, has_adapters: bool) -> str:
        option = " --adapters" if has_adapters else ""
        lines = [
            "## Cross-check with adapters" if has_adapters else "## Cross-check",
            "",
            f"`python benchmarks/optimizer_cross_check.py --first {first} --instances {n} --seed {seed}{option}`, "
            f"{machine()}, "
            f"{PROCESSES} processes, {seconds:,.0f} s. Small random fleets (one or two services, two or three offers, "
            f"{self.n_together / n:.1f} families each) are planned by HiGHS with a gap of 0, checked by `verify_plan`, "
            "planned again by CBC, and compared with an enumeration of all fleets where there are few enough; cost, "
            "every objective and what is left unserved must agree. Differences are relative.",
            "",
            "| checked by | instances | disagree | largest difference |",
            "|---|---|---|---|",
            f"| `verify_plan` | {n:,} | {self.wrong['verify']} | |",
            f"| crashes, errors without an answer | {n:,} | {self.wrong['crash']} | |",
            f"| CBC | {self.compared['cbc']:,} | {self.wrong['cbc']} | {self.furthest.get('cbc', 0):.1g} |",
            f"| wrong answers of CBC that the check of its solution refused | {self.compared['caught']:,} | | |",
            f"| enumeration | {self.compared['enumeration']:,} | {self.wrong['enumeration']} "
            f"| {self.furthest.get('enumeration', 0):.1g} |",
            "",
            f"{self.n_planned:,} have a plan, {self.statuses['infeasible']:,} have none (all that judge an "
            "instance must agree on that too); "
            f"{n - self.n_planned - self.statuses['infeasible']} ended otherwise.",
            *(["", self.adapters()] if self.above else []),
            "",
            "| family | drawn | of those with a plan |",
            "|---|---|---|",
            *(
                f"| {name} | {self.families[name]:,} | {self.planned[name]:,} |"
                for name in FAMILIES
                if self.families[name] or not has_adapters
            ),
        ]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first instance, to go on from a stopped run"
    )
    parser.add_argument(
        "--adapters", action="store_true", help="draw adapters every time, and only what is planned together with them"
    )
    chosen = parser.parse_args()
    tally, started = Tally(), time.perf_counter()
    numbers = range(chosen.first, chosen.first + chosen.instances)
    with ProcessPoolExecutor(PROCESSES) as pool:
        for index, families, finding in pool.map(
            partial(one, chosen.seed, adapter_case if chosen.adapters else random_case), numbers, chunksize=CHUNK
        ):
            tally.add(families, finding)
            for words in finding.problems:
                print(f"instance {index} ({', '.join(families)}): {words}", flush=True)
    seconds = time.perf_counter() - started
    text = tally.markdown(chosen.first, chosen.instances, chosen.seed, seconds, has_adapters=chosen.adapters)
    print(text)
    write_section("optimizer_cross_check_adapters" if chosen.adapters else "optimizer_cross_check", text)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
