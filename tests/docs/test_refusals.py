"""Every row of the table of refusals in docs/explanation/limits.md: refused with exit code 2, and for that reason."""

from __future__ import annotations

import json
import re
from copy import deepcopy

import pytest
from tests_support import REPO, copy_user_files

import planner

TABLE = re.compile(r"^\| Asked for .*?\n\|[-|]+\n((?:\|.*\n)+)", re.MULTILINE)
HOURS = {"periods": "3h", "step": "1h"}
SIZES = {"constant": {"input_tokens": 500, "output_tokens": 100}}
BUSY = {"workload": {**SIZES, "rate": "5 req/s"}}
JOB = {
    "name": "batch",
    "model": "meta-llama/Llama-3.1-8B",
    "parallelism": {"tp": [1]},
    "workload": SIZES,
    "requests": 1e4,
    "deadline": "8h",
}
TUNING = {"name": "tuning", "kind": "fine-tune", "model": JOB["model"], "tokens": 1e6, "deadline": "8h"}
ROBUST = {"throughput_error": "15%"}
CHANGES = {"change_cost": {"start": "2 USD", "horizon": "24h"}}
ENERGY_COUNTED = (
    {"constraints": {"energy": {"max": "3000 kWh/month"}}},
    {"constraints": {"carbon": {"max": "12 kg/h"}}},
    {"constraints": {"carbon": {"price": "80 USD/t"}}},
    {"catalog": {"sites": {"us-central1": {"carbon": "300 g/kWh", "energy_price": "0.1 USD/kWh"}}}},
    {"objective": {"minimise": "carbon"}},
    {"objective": {"minimise": "energy"}},
)
RARE = {"workload": {"trace": "examples/rare.csv"}, "scale_to_zero": {"storage": "2 GB/s"}}
ADAPTED = {
    "service": {
        "workload": SIZES,
        "adapters": {
            "each": [
                {"name": name, "rank": 16, "target_modules": "q v", "rate": "1 req/s"} for name in ("first", "second")
            ]
        },
    }
}
SLICED = ("--assignment", "sliced")
CP_SAT = ("--solver", "cp-sat")

# (asked for, with) of a row -> every way to ask for it: (changes to the request, arguments, what the message must say)
CASES = {
    ("`horizon`", "`current`, `change_cost`"): [
        ({"horizon": HOURS}, ("--current", "today.json"), "whatever runs today"),
        ({"horizon": HOURS, "constraints": CHANGES}, ("--current", "today.json"), "whatever runs today"),
    ],
    ("`robust`", "`shed: allowed`"): [
        ({"robust": ROBUST, "constraints": {"shed": "allowed"}}, (), "what is shed in which of them")
    ],
    ("`robust`", "`disaggregate`"): [
        ({"robust": ROBUST, "service": {"disaggregate": "allowed"}}, (), "prefill and decode replicas in a scenario")
    ],
    ("`robust`", "`deferrable`"): [({"robust": ROBUST, "deferrable": [JOB]}, (), "can wait in one is not modelled")],
    ("`robust`", "a scenario's `workload` with `by_hour`"): [
        (
            {
                "horizon": HOURS,
                "robust": {
                    "scenarios": [
                        {
                            "name": "busy",
                            "workload": {"chat": {**BUSY["workload"], "by_hour": "bundled:servegen_m_large"}},
                        }
                    ]
                },
            },
            (),
            "in the scenario 'busy' changes by the hour",
        )
    ],
    ("`deferrable`", "`shed: allowed`"): [
        ({"deferrable": [JOB], "constraints": {"shed": "allowed"}}, (), "which of them should give way")
    ],
    ("`deferrable`", "limits, prices or an objective of energy or carbon"): [
        *(({"deferrable": [JOB], **counted}, (), "counted of requests alone") for counted in ENERGY_COUNTED),
        ({"deferrable": [JOB]}, ("sweep", "--pareto", "cost,carbon"), "counted of requests alone"),
    ],
    ("`deferrable` of `method: full`", "`harvest: allowed`"): [
        ({"deferrable": [{**TUNING, "method": "full", "harvest": "allowed"}]}, (), "cannot share a service's")
    ],
    ("`shed: allowed`, where limits leave demand unserved", "`--assignment sliced`"): [
        (
            {"constraints": {"shed": "allowed", "budget": "1 USD/h"}},
            SLICED,
            "only be shed where buckets may be split freely",
        )
    ],
    ("`gpuplan sweep`", "`horizon`"): [({"horizon": HOURS}, ("sweep",), "A front is of steady states")],
    ("`gpuplan sweep`", "`change_cost`"): [
        ({"current": "today.json", "constraints": CHANGES}, ("sweep",), "with changes left aside")
    ],
    ("`scale_to_zero`", "`horizon`"): [({"service": RARE, "horizon": HOURS}, (), "the plan has a horizon")],
    (
        "`scale_to_zero` of `mode: decide`",
        "another objective than cost, `shed: allowed`, `robust`, `survive`, `spare_replicas`, `egress`, limits or "
        "prices of energy or emissions, `gpuplan sweep` of a request",
    ): [
        ({"service": RARE}, ("sweep",), "fleets that are always on"),
        *(
            ({"service": RARE, **more}, (), "what is given back is not judged by that")
            for more in (
                {"objective": "power"},
                {"objective": {"minimise": ["cost", "gpus"]}},
                {"constraints": {"shed": "allowed"}},
                {"robust": ROBUST},
                {"constraints": {"survive": ["zone"]}, "catalog": {"zones_per_region": {"gcp": 3}}},
                {"constraints": {"spare_replicas": 1}},
                {"service": {**RARE, "spare_replicas": 1}},
                {"service": {**RARE, "users": "us-central1"}, "catalog": {"egress": "0.02 USD/GB"}},
                *ENERGY_COUNTED,
            )
        ),
    ],
    ("`--solver cp-sat`", "shares (`--assignment fractional`)"): [
        ({}, CP_SAT, "integer variables only"),
        ({}, ("sweep", *CP_SAT), "integer variables only"),
    ],
    (
        "`--solver cp-sat`",
        "`start_up`, `minimum_lease`, `survive`, `robust`, `deferrable` or `change_cost`, sliced as well",
    ): [
        (changed, (*CP_SAT, *SLICED, *more), "nor plan for start-up, leases, losses, scenarios, jobs or priced changes")
        for changed, more in (
            ({"horizon": {**HOURS, "start_up": "5min"}}, ()),
            ({"horizon": {**HOURS, "minimum_lease": "2h"}}, ()),
            ({"constraints": {"survive": ["largest 1 instance"]}}, ()),
            ({"robust": ROBUST}, ()),
            ({"deferrable": [JOB]}, ()),
            ({"constraints": CHANGES}, ("--current", "today.json")),
        )
    ],
    ("`--solver cbc` or `highs`", "`--threads` above 1"): [
        ({}, ("--threads", "2", "--solver", solver), "runs on one thread here") for solver in ("cbc", "highs")
    ],
    ("`disaggregate`", "an engine that is not known to do it"): [
        ({"service": {"disaggregate": "only", "engine": {"name": "tgi"}}}, (), "prefill apart from decode")
    ],
    ("`peak`", "`histogram` or `constant`"): [
        ({"service": {"workload": {**BUSY["workload"], "peak": "5min"}}}, (), "needs a trace with arrival times")
    ],
    ("`by_hour` of a workload, times of the day in `deferrable`, `carbon_by_hour`", "no `horizon`"): [
        (
            {"service": {"workload": {**BUSY["workload"], "by_hour": "bundled:servegen_m_large"}}},
            (),
            "there is no horizon to plan over",
        ),
        ({"deferrable": [{**JOB, "deadline": "06:00"}]}, (), "without a horizon there is no day"),
        (
            {"catalog": {"carbon_by_hour": "examples/carbon/synthetic_day.csv"}, **ENERGY_COUNTED[4]},
            (),
            "there is no horizon to plan over",
        ),
    ],
    ("`change_cost`", "no `current`"): [({"constraints": CHANGES}, (), "nothing says what runs today")],
    ("`commitments`", "`markets` without on-demand"): [
        (
            {"catalog": {"markets": ["spot"], "commitments": [{"gpu": "L4", "discount": "30%"}]}},
            (),
            "no on-demand offer of 'L4' to reserve",
        )
    ],
    ("`spot_interruptions`", "`markets` without spot"): [
        ({"catalog": {"spot_interruptions": {"gcp": "20%"}}}, (), "Nothing is offered on spot as 'gcp'")
    ],
    ("`users`", "no `egress`"): [({"service": {"users": "us-central1"}}, (), "not what it costs to serve them")],
    ("`egress`", "no `users`"): [({"catalog": {"egress": "0.02 USD/GB"}}, (), "no service says where its users are")],
    ("`--slice-factor`", "shares (`--assignment fractional`)"): [
        ({}, ("--slice-factor", "4"), "means nothing without slices")
    ],
    ("`adapters`", "`horizon`"): [({**ADAPTED, "horizon": HOURS}, (), "by the hour")],
    ("`adapters`", "`robust`"): [({**ADAPTED, "robust": ROBUST}, (), "asked of each adapter in one is not known")],
    ("`adapters`", "`survive`, `spare_replicas`"): [
        ({**ADAPTED, "constraints": lost}, (), "could hold the only copy of an adapter")
        for lost in ({"survive": ["zone"]}, {"survive": ["largest 1 instance"]}, {"spare_replicas": 1})
    ],
    ("`adapters`", "`shed: allowed`"): [
        ({**ADAPTED, "constraints": {"shed": "allowed"}}, (), "which adapter would be left unserved")
    ],
    ("`adapters`", "`deferrable`"): [({**ADAPTED, "deferrable": [JOB]}, (), "has left is not modelled")],
    ("`adapters`", "`disaggregate`"): [
        ({"service": {**ADAPTED["service"], "disaggregate": "allowed"}}, (), "cost a prefill replica is not modelled")
    ],
    ("`adapters`", "`--assignment sliced`"): [(ADAPTED, SLICED, "whole already")],
    ("`--current`", "Mélange's form of request"): [
        ("examples/melange.json", ("--current", "today.json"), "cannot be planned from a current plan")
    ],
}


def request(changes):
    """Return a small request with `changes` to its parts, and to its service as "service"."""
    whole = {
        "schema_version": "1",
        "kind": "PlanRequest",
        "services": [
            {
                "name": "chat",
                "model": "meta-llama/Llama-3.1-8B",
                "parallelism": {"tp": [1]},
                "slo": ["ttft p99 <= 2s"],
                **BUSY,
            }
        ],
        "catalog": {"providers": ["gcp"], "regions": ["us-central1"], "gpus": {"include": ["L4", "A100-80GB"]}},
    }
    given = deepcopy(changes)
    whole["services"][0] |= given.pop("service", {})
    whole["catalog"] |= given.pop("catalog", {})
    return whole | given


def rows():
    """Yield what is asked for and what goes not with it, row by row."""
    (body,) = TABLE.findall((REPO / "docs/explanation/limits.md").read_text(encoding="utf-8"))
    for line in body.splitlines():
        asked, beside, why, instead = (cell.strip() for cell in line.strip("|").split("|"))
        assert why
        assert instead
        yield asked, beside


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """A plan that runs today."""
    path = tmp_path_factory.mktemp("today") / "today.json"
    planner.plan(request({})).save(path)
    return path


def test_every_row_has_its_cases():
    listed = list(rows())
    assert len(set(listed)) == len(listed)
    assert set(listed) == set(CASES)


@pytest.mark.parametrize(
    ("asked", "arguments", "message"),
    [
        pytest.param(*case, id=f"{asked} with {beside} {index}".replace("`", ""))
        for (asked, beside), cases in CASES.items()
        for index, case in enumerate(cases)
    ],
)
def test_a_row_is_refused(asked, arguments, message, today, gpuplan, tmp_path, monkeypatch):
    copy_user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "today.json").write_bytes(today.read_bytes())
    path = asked
    if not isinstance(asked, str):
        path = "request.json"
        (tmp_path / path).write_text(json.dumps(request(asked)), encoding="utf-8")
    command, *more = arguments if arguments[:1] == ("sweep",) else ("plan", *arguments)
    ran = gpuplan(command, path, *more)
    assert ran.code == 2, ran.out + ran.err
    assert message in " ".join(ran.err.split()), ran.err
