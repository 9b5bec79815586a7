"""What `planner.plan(...)` returns: the plan, and every form that it can be had in."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, Where
from planner.files.output import write_text
from planner.files.plan_document import plan_to_document

if TYPE_CHECKING:
    from datetime import date

    import pandas as pd

    from planner.domain.plan import Plan

SUFFIXES = (".json", ".yaml", ".yml", ".csv", ".md", ".html")


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan and the day that its prices' age is counted to.

    The figures are in `plan`; the methods say the same in other forms, which need no network and name no time.
    """

    plan: Plan
    today: date

    def to_document(self) -> dict[str, Any]:
        """Return plan.json's content (docs/reference/plan.md) as dicts, lists, text and numbers."""
        return plan_to_document(self.plan)

    def to_json(self) -> str:
        """Return plan.json as text."""
        return json.dumps(self.to_document(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_yaml(self) -> str:
        """Return plan.json's content as YAML 1.2."""
        from ruamel.yaml import YAML  # noqa: PLC0415 - only YAML pays for it

        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.allow_unicode = True
        yaml.width = 4096
        yaml.dump(self.to_document(), stream)
        return stream.getvalue()

    def to_frame(self) -> pd.DataFrame:
        """Return the allocation as a pandas data frame, one row per service and option; columns as plan.csv."""
        from planner.report.tables import plan_frame  # noqa: PLC0415

        return plan_frame(self.plan)

    def to_csv(self) -> str:
        """Return plan.csv: the allocation, one row per service and option."""
        from planner.report.tables import plan_csv  # noqa: PLC0415

        return plan_csv(self.plan)

    def to_routing_csv(self) -> str:
        """Return routing.csv: one row per bucket and option."""
        from planner.report.tables import routing_csv  # noqa: PLC0415

        return routing_csv(self.plan)

    def to_regret_csv(self) -> str:
        """Return regret.csv: one row per fleet and scenario that the request wants to survive."""
        from planner.report.tables import regret_csv  # noqa: PLC0415

        return regret_csv(self.plan)

    def to_adapters_csv(self) -> str:
        """Return adapters.csv: which adapters each replica has in slots and in host memory, and which are on disk."""
        from planner.report.tables import adapters_csv  # noqa: PLC0415

        return adapters_csv(self.plan)

    def to_markdown(self) -> str:
        """Return a report for a pull request."""
        from planner.report.tables import plan_markdown  # noqa: PLC0415

        return plan_markdown(self.plan, today=self.today)

    def to_html(self) -> str:
        """Return a report as one HTML page that loads nothing from anywhere."""
        from planner.report.page import report_html  # noqa: PLC0415

        return report_html(self.plan, today=self.today)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from planner.report.page import plan_html  # noqa: PLC0415

        return plan_html(self.plan, today=self.today)

    def to_text(self, suffix: str) -> str:
        """Return the form that belongs to a file suffix: .json, .yaml, .csv, .md or .html.

        Raises
        ------
        InputError: if the suffix is none of these.
        """
        forms = {
            ".json": self.to_json,
            ".yaml": self.to_yaml,
            ".yml": self.to_yaml,
            ".csv": self.to_csv,
            ".md": self.to_markdown,
            ".html": self.to_html,
        }
        if suffix.lower() not in forms:
            raise InputError(
                f"{suffix!r} is not a form that a plan can be written in.", hint=f"Suffixes: {', '.join(SUFFIXES)}."
            )
        return forms[suffix.lower()]()

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the plan to `path` in the form that its suffix names; never over an existing file without `force`.

        Raises
        ------
        InputError: if the suffix is unknown or the file cannot be written.
        OutputExistsError: if the file exists and `force` is false.
        """
        target = Path(path)
        try:
            text = self.to_text(target.suffix)
        except InputError as error:
            raise InputError(error.message, hint=error.hint, where=Where(path=str(target))) from error
        write_text(target, text, force=force)
