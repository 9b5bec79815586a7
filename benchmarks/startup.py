"""How long a command takes from the shell, and where the time goes; section `startup` of docs/benchmarks.md."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from _report import machine, write_section

REPO = Path(__file__).resolve().parents[1]
RUNS = 9
COMMANDS = {
    "an empty Python": ("-c", "pass", None),
    "`import planner`": ("-c", "import planner", 0.15),
    "`gpuplan --help`": ("-m", "planner.cli.main --help", 0.3),
    "`gpuplan plan` on Mélange's example": ("-m", "planner.cli.main plan examples/melange.json", 1.0),
}
PARTS = ("ortools", "numpy", "pydantic", "rich", "typer", "google.protobuf", "jinja2")


def seconds(arguments: list[str]) -> float:
    """Return the median wall time of `RUNS` runs."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=REPO, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def import_cost(arguments: list[str]) -> list[tuple[float, str]]:
    """Return (seconds, module) of the costliest top-level imports of one run."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    own: dict[str, float] = {}
    for line in done.stderr.splitlines():
        if not line.startswith("import time:") or "self [us]" in line:
            continue
        self_us, _, name = (part.strip() for part in line.removeprefix("import time:").split("|"))
        part = next((part for part in PARTS if name == part or name.startswith(part + ".")), name.split(".")[0])
        own[part] = own.get(part, 0.0) + float(self_us) / 1e6
    return sorted(((cost, name) for name, cost in own.items()), reverse=True)[:7]


def main() -> None:
    """Measure, print and write the table."""
    rows = ["| command | median of 9 (s) | target (s) |", "|---|---|---|"]
    for what, (flag, text, target) in COMMANDS.items():
        arguments = [flag, text] if flag == "-c" else [flag, *text.split()]
        rows.append(f"| {what} | {seconds(arguments):.3f} | {'' if target is None else target} |")
    costs = import_cost(["-m", "planner.cli.main", "plan", "examples/melange.json"])
    breakdown = ", ".join(f"{name} {cost:.2f} s" for cost, name in costs)
    text = "\n".join(
        [
            "## Start-up",
            "",
            f"Whole processes, warm disk, {machine()}. Reproduce: `python benchmarks/startup.py`.",
            "",
            *rows,
            "",
            f"Import time inside the last one (with Python's own import timer running): {breakdown}.",
        ]
    )
    print(text)
    write_section("startup", text)


if __name__ == "__main__":
    main()
