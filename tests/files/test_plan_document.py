"""plan.json: stable bytes out, everything checked in."""

import dataclasses
import json
import math
from datetime import date
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.domain.adapters import Isolation
from planner.domain.disaggregation import Role
from planner.domain.plan import (
    AdapterAlternative,
    AdapterHost,
    AdapterPlan,
    AdapterPreload,
    AdapterReplica,
    AdapterShare,
    AdapterWay,
    Allocation,
    Baseline,
    Commitment,
    Conflict,
    HostedAdapter,
    JobPlan,
    JobRun,
    ObjectiveValue,
    Period,
    PeriodAllocation,
    PeriodRental,
    PeriodRoute,
    PeriodUnserved,
    Plan,
    PlanStatus,
    PreloadMethod,
    RedundancyPrice,
    Rental,
    ReplicaTiers,
    RolloutAction,
    RolloutStep,
    Route,
    SolverInfo,
    Unserved,
)
from planner.domain.proof import (
    AdapterProof,
    LateAdapter,
    PeriodMiss,
    Proof,
    ProofEnd,
    ProofRound,
    ProofStep,
    RoundService,
    ServiceProof,
    SimulatedSlo,
    UtilizationCap,
)
from planner.domain.provenance import ProvenanceKind, Warning_
from planner.domain.robustness import FleetOutcomes, FleetReplicas, Outcome, Robustness, ScenarioCase
from planner.domain.scaling import Doubt, FleetWithout, ScaledService, ScalingChoice, ScalingWay
from planner.errors import InputError, PlannerError, UnsupportedFormatError
from planner.files import adapter_plan_schema, plan_schema, proof_schema, robustness_schema, scaling_schema
from planner.files.documents import parse_document
from planner.files.plan_document import DERIVED, DERIVED_OF_GIVEN_BACK, plan_to_document
from planner.files.plan_schema import plan_from_document, plan_json_schema, read_plan

SOLVER = SolverInfo(name="highs", version="1.12.0", seconds=0.12, termination="optimal")


def small_plan(**changes):
    base = Plan(
        status=PlanStatus.OPTIMAL,
        cost_usd_per_hour=6.7,
        bound_usd_per_hour=6.7,
        gap=0.0,
        solver=SOLVER,
        allocation=(
            Allocation(
                service="default",
                offer="A10G",
                option="A10G",
                gpu="A10G",
                gpus_per_replica=1,
                replicas=3,
                cost_usd_per_hour=3.03,
                power_w=None,
                utilization=0.97,
            ),
        ),
        routing=(
            Route(
                service="default",
                input_tokens=None,
                output_tokens=None,
                row=0,
                column=0,
                rate_rps=3.0,
                weights={"A10G": 1.0},
            ),
        ),
        baselines=(Baseline(offer="A100-80GB", replicas=2, cost_usd_per_hour=7.34, feasible=True),),
        savings_vs_best_single=0.087,
        inputs={"request_sha256": "ab"},
        output_tokens_per_s=1000.0,
    )
    return dataclasses.replace(base, **changes)


def read_back(document, name="plan.json"):
    return plan_from_document(parse_document(json.dumps(document, allow_nan=False).encode(), name=name))


def changed(path, value):
    """Return small_plan's document with the field at `path` replaced."""
    document = json.loads(json.dumps(plan_to_document(small_plan())))
    node = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return document


# --- the contract -----------------------------------------------------------------------------------------------


def test_the_promised_fields_are_there_under_their_names():
    document = plan_to_document(small_plan(warnings=(Warning_(code="W101", message="m", observed=1, threshold=2),)))
    assert list(document)[:4] == ["schema_version", "kind", "name", "status"]
    assert document["schema_version"] == "1"
    assert document["kind"] == "Plan"
    promised = {"status", "cost_usd_per_hour", "bound_usd_per_hour", "gap", "solver", "allocation", "routing"}
    promised |= {"baselines", "savings_vs_best_single", "binding", "conflicts", "warnings", "assumptions", "inputs"}
    extra = {"rentals", "power_w", "rate_rps", "output_tokens_per_s"} | set(DERIVED)
    assert promised | extra <= set(document)
    assert {"name", "version", "seconds", "termination"} <= set(document["solver"])
    allocation = {"service", "offer", "gpu", "gpus_per_replica", "replicas", "cost_usd_per_hour", "power_w"}
    assert allocation | {"utilization"} <= set(document["allocation"][0])
    routing = {"service", "input_tokens", "output_tokens", "row", "column", "rate_rps", "weights"}
    assert routing <= set(document["routing"][0])
    assert {"offer", "replicas", "cost_usd_per_hour", "feasible"} <= set(document["baselines"][0])
    assert document["warnings"] == [{"code": "W101", "message": "m", "observed": 1, "threshold": 2}]


def test_derived_figures():
    document = plan_to_document(small_plan())
    assert document["cost_usd_per_month"] == pytest.approx(6.7 * 730)
    assert document["usd_per_million_output_tokens"] == pytest.approx(6.7 / 3.6)
    unknown = plan_to_document(small_plan(output_tokens_per_s=None))
    assert unknown["usd_per_million_output_tokens"] is None


def test_only_the_solver_time_differs_between_runs():
    documents = [
        plan_to_document(small_plan(solver=dataclasses.replace(SOLVER, seconds=seconds))) for seconds in (0.1, 2.0)
    ]
    for document in documents:
        del document["solver"]["seconds"]
    assert json.dumps(documents[0]) == json.dumps(documents[1])


def test_noise_of_floating_point_does_not_reach_the_file():
    noisy = plan_to_document(small_plan(cost_usd_per_hour=3.03 + 3.67 + 1e-15, gap=-0.0, power_w=300))
    assert json.dumps(noisy["cost_usd_per_hour"]) == "6.7"
    assert json.dumps(noisy["gap"]) == "0.0"
    assert json.dumps(noisy["power_w"]) == "300.0"


def test_weights_are_sorted_and_the_request_keeps_its_order():
    route = dataclasses.replace(small_plan().routing[0], weights={"b": 0.5, "a": 0.5})
    document = plan_to_document(small_plan(routing=(route,), inputs={"z": {"y": 1, "x": 2}, "a": 1}))
    assert list(document["routing"][0]["weights"]) == ["a", "b"]
    assert list(document["inputs"]) == ["z", "a"]
    assert list(document["inputs"]["z"]) == ["y", "x"]


def test_what_numpy_and_the_calendar_return_is_written_as_json():
    inputs = {"n": np.int64(3), "x": np.float64(0.1), "day": date(2026, 11, 21), "path": Path("a/b")}
    document = plan_to_document(small_plan(inputs=inputs, rate_rps=np.float64(2.0)))
    assert document["inputs"] == {"n": 3, "x": 0.1, "day": "2026-11-21", "path": "a/b"}
    json.dumps(document)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused_by_name(value):
    row = dataclasses.replace(small_plan().allocation[0], utilization=value)
    plan = small_plan(allocation=(row,))
    with pytest.raises(PlannerError, match=r"plan\.allocation\[0\]\.utilization"):
        plan_to_document(plan)


def test_what_json_cannot_say_is_refused_by_name():
    with pytest.raises(PlannerError, match=r"plan\.inputs\.request"):
        plan_to_document(small_plan(inputs={"request": object()}))


# --- reading ----------------------------------------------------------------------------------------------------


def test_round_trip_of_a_small_plan():
    plan = small_plan()
    assert read_back(plan_to_document(plan)) == plan


@pytest.mark.parametrize(
    ("path", "value", "message", "field"),
    [
        (("cost_usd_per_hour",), "cheap", "valid number", "cost_usd_per_hour"),
        (("cost_usd_per_hour",), -1.0, "greater than or equal to 0", "cost_usd_per_hour"),
        (("status",), "fine", "optimal", "status"),
        (("allocation", 0, "replicas"), 2.5, "integer", "allocation[0].replicas"),
        (("allocation", 0, "gpus_per_replica"), 0, "greater than or equal to 1", "allocation[0].gpus_per_replica"),
        (("allocation", 0, "replica"), 3, "Unknown key 'replica'", "allocation[0].replica"),
        (("routing", 0, "weights"), {"A10G": 0.5}, "sum to 0.5", "routing[0]"),
        (("routing", 0, "weights"), {"H100": 1.0}, "routed to 'H100'", None),
        (("warnings",), [{"code": "oops", "message": "m"}], "pattern", "warnings[0].code"),
    ],
)
def test_a_broken_plan_is_refused_with_its_field(path, value, message, field):
    with pytest.raises(InputError) as caught:
        read_back(changed(path, value), name="my/plan.json")
    assert message in str(caught.value)
    assert caught.value.where.path == "my/plan.json"
    assert caught.value.where.field == field


def test_a_missing_field_is_named():
    document = plan_to_document(small_plan())
    del document["solver"]
    with pytest.raises(InputError, match="'solver' is missing"):
        read_back(document)


@pytest.mark.parametrize("version", ["2", "1.1", 1, None])
def test_another_version_is_refused_and_the_supported_ones_named(version):
    with pytest.raises(UnsupportedFormatError, match='Supported: "1"') as caught:
        read_back(changed(("schema_version",), version))
    assert repr(version) in str(caught.value)


@pytest.mark.parametrize("document", [{"schema_version": "1", "kind": "PlanRequest"}, {"gpu_info": {}}, [1, 2]])
def test_what_is_no_plan_is_told_how_to_become_one(document):
    with pytest.raises(InputError, match=r"not a plan.*gpuplan plan"):
        read_back(document)


def test_reads_files(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_document(small_plan())))
    assert read_plan(path) == read_plan(str(path)) == small_plan()
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "nowhere.json")


# --- any plan ---------------------------------------------------------------------------------------------------

figures = st.floats(min_value=0, max_value=1e9).map(lambda value: float(f"{value:.12g}"))
counts = st.integers(min_value=0, max_value=10**6)
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


def built(kind, **given_fields):
    """A strategy for dataclass `kind`: `given_fields`, and something of its type for every other field."""
    by_type = {
        "str": names,
        "int": counts.map(lambda count: count + 1),
        "float": figures,
        "float | None": st.none() | figures,
        "int | None": st.none() | counts,
        "str | None": st.none() | names,
        "float | str | None": st.none() | names | figures | counts,
        "bool": st.booleans(),
        "bool | None": st.none() | st.booleans(),
        "Role": st.sampled_from(Role),
        "Isolation": st.sampled_from(Isolation),
        "AdapterWay": st.sampled_from(AdapterWay),
        "PreloadMethod": st.sampled_from(PreloadMethod),
        "ProvenanceKind": st.sampled_from(ProvenanceKind),
        "tuple[int, int] | None": st.none() | st.tuples(counts, counts),
        "tuple[float, ...]": st.lists(figures, max_size=3).map(tuple),
        "tuple[str, ...]": st.lists(names, max_size=3).map(tuple),
        "tuple[str, ...] | None": st.none() | st.lists(names, max_size=3).map(tuple),
        "tuple[Doubt, ...]": st.lists(st.sampled_from(Doubt), max_size=2).map(tuple),
    }
    others = {field.name: by_type[field.type] for field in dataclasses.fields(kind) if field.name not in given_fields}
    return st.builds(kind, **others, **given_fields)


@st.composite
def plans(draw):
    def several(strategy):
        return st.lists(strategy, max_size=3).map(tuple)

    allocation = draw(several(built(Allocation)))
    routes = []
    for row in allocation:
        share = draw(st.floats(0, 1).map(lambda value: float(f"{value:.9g}")))
        peers = [other.option for other in allocation if other.service == row.service and other.option != row.option]
        weights = {row.option: share, peers[0]: float(f"{1 - share:.9g}")} if peers else {row.option: 1.0}
        routes.append(
            draw(
                built(
                    Route,
                    service=st.just(row.service),
                    weights=st.just(weights),
                    provenance=st.dictionaries(names, st.sampled_from(ProvenanceKind), max_size=2),
                    decode_weights=st.sampled_from([{}, {row.option: 0.25}]),
                )
            )
        )
    plain = st.recursive(st.none() | st.booleans() | counts | figures | names, st.lists, max_leaves=4)
    parts = {
        "status": st.sampled_from(PlanStatus),
        "solver": built(SolverInfo),
        "allocation": st.just(allocation),
        "rentals": several(built(Rental, gpus_per_instance=st.sampled_from([0.125, 1.0, 8.0]))),
        "routing": st.just(tuple(routes)),
        "baselines": several(built(Baseline)),
        "conflicts": several(built(Conflict)),
        "rollout": several(built(RolloutStep, action=st.sampled_from(RolloutAction))),
        "warnings": several(built(Warning_, code=st.from_regex(r"W[0-9]{3}", fullmatch=True))),
        "inputs": st.dictionaries(names, plain, max_size=3),
        "objectives": several(built(ObjectiveValue)),
        "unserved": several(built(Unserved, fraction=st.sampled_from([0.25, 0.5, 1.0]))),
        "commitments": several(built(Commitment)),
        "redundancy": several(built(RedundancyPrice)),
        "jobs": several(built(JobPlan, runs=several(built(JobRun)))),
        "adapters": several(
            built(
                AdapterPlan,
                hosts=several(built(AdapterHost)),
                placement=several(
                    built(
                        AdapterReplica,
                        adapters=several(built(HostedAdapter)),
                        tiers=st.none() | built(ReplicaTiers),
                    )
                ),
                shares=several(built(AdapterShare)),
                alternatives=several(
                    built(
                        AdapterAlternative,
                        is_met=st.none() | st.booleans(),
                        attainment=st.none() | st.floats(0, 1).map(lambda value: float(f"{value:.9g}")),
                    )
                ),
                preload=st.none() | built(AdapterPreload),
            )
        ),
        "scale_to_zero": several(
            built(
                ScalingChoice,
                chosen=st.just(0),
                vetoed=st.sampled_from([(), (0,)]),
                ways=st.tuples(
                    built(
                        ScaledService,
                        way=st.sampled_from([way for way in ScalingWay if way is not ScalingWay.ALWAYS_ON]),
                        attainment=st.sampled_from([None, 0.5]),
                        cold_fraction=st.sampled_from([None, 0.25]),
                        keep_alive_by_adapter_s=st.sampled_from([{}, {"a": 0.0, "b": 12.5}]),
                    )
                ),
            )
        ),
        "fleets_without": several(built(FleetWithout, given_back=several(names))),
        "schedule": several(
            built(
                Period,
                duration_s=st.sampled_from([900.0, 3600.0]),
                allocation=several(built(PeriodAllocation)),
                rentals=several(built(PeriodRental)),
                routing=several(
                    built(PeriodRoute, weights=st.just({"a": 0.25, "b": 0.75}), decode_weights=st.just({"a": 0.5}))
                ),
                unserved=several(built(PeriodUnserved)),
            )
        ),
    }
    parts["robustness"] = st.none() | built(
        Robustness,
        scenarios=several(built(ScenarioCase)),
        fleets=several(built(FleetOutcomes, replicas=several(built(FleetReplicas)), outcomes=several(built(Outcome)))),
    )
    part, positive = st.sampled_from([0.0, 0.25, 0.99, 1.0]), st.sampled_from([0.06, 0.5, 1.1])
    shares = {"attainment": part, "bound_s": positive}
    parts["proof"] = st.none() | built(
        Proof,
        ended=st.sampled_from(ProofEnd),
        load=positive,
        slos=several(built(SimulatedSlo, attainment_low=part, **shares)),
        services=several(built(ServiceProof, other_cap=positive)),
        missed_periods=several(built(PeriodMiss)),
        adapters=several(built(AdapterProof, late=several(built(LateAdapter, attainment=part)))),
        caps=several(built(UtilizationCap, utilization_cap=positive)),
        rounds=several(
            built(
                ProofRound,
                step=st.sampled_from(ProofStep),
                services=several(built(RoundService, factor=positive, **shares)),
            )
        ),
    )
    return draw(built(Plan, **parts))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_any_plan_survives_the_round_trip(plan):
    document = plan_to_document(plan)
    text = json.dumps(document, allow_nan=False)
    again = read_back(document)
    assert again == plan
    assert json.dumps(plan_to_document(again), allow_nan=False) == text
    jsonschema.Draft202012Validator(plan_json_schema()).validate(json.loads(text))


@settings(max_examples=30, deadline=None)
@given(st.floats(min_value=0, max_value=1e12), st.floats(min_value=1e-6, max_value=1e9))
def test_writing_a_plan_that_was_read_gives_the_same_bytes(cost, tokens):
    text = json.dumps(plan_to_document(small_plan(cost_usd_per_hour=cost, output_tokens_per_s=tokens)))
    assert json.dumps(plan_to_document(read_back(json.loads(text)))) == text


# --- schema and dataclasses agree ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        Plan,
        SolverInfo,
        Allocation,
        Rental,
        Route,
        Unserved,
        ObjectiveValue,
        Baseline,
        Conflict,
        RolloutStep,
        Warning_,
        Period,
        PeriodAllocation,
        PeriodRental,
        PeriodRoute,
        PeriodUnserved,
        Commitment,
        RedundancyPrice,
        JobPlan,
        JobRun,
        Robustness,
        ScenarioCase,
        FleetOutcomes,
        FleetReplicas,
        Outcome,
        ScalingChoice,
        ScaledService,
        FleetWithout,
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_schema_has_exactly_the_fields_of_the_dataclass(kind):
    name = {"SolverInfo": "SolverDocument"}.get(kind.__name__, kind.__name__.rstrip("_") + "Document")
    homes = (plan_schema, robustness_schema, scaling_schema)
    model = next(getattr(home, name) for home in homes if hasattr(home, name))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    extra = {"schema_version", "kind", *DERIVED, *DERIVED_OF_GIVEN_BACK} if kind is Plan else set()
    assert set(model.model_fields) - extra == set(fields)
    for name, field in model.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no description"
        if name in extra or field.is_required():
            continue
        default = fields[name].default
        if default is not dataclasses.MISSING and not isinstance(default, tuple):
            assert field.default == default


def test_every_status_and_origin_is_in_the_json_schema():
    schema = plan_json_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]["PlanStatus"]["enum"]) == {status.value for status in PlanStatus}
    assert set(schema["$defs"]["ProvenanceKind"]["enum"]) == {kind.value for kind in ProvenanceKind}


def test_the_json_schema_refuses_what_the_reader_refuses():
    validator = jsonschema.Draft202012Validator(plan_json_schema())
    assert validator.is_valid(plan_to_document(small_plan()))
    for path, value in [(("allocation", 0, "replica"), 3), (("gap",), "0"), (("schema_version",), "2")]:
        assert not validator.is_valid(changed(path, value))


MODELS = [
    plan_schema.PlanDocument,
    plan_schema.SolverDocument,
    plan_schema.AllocationDocument,
    plan_schema.RentalDocument,
    plan_schema.RouteDocument,
    plan_schema.UnservedDocument,
    plan_schema.ObjectiveValueDocument,
    plan_schema.BaselineDocument,
    plan_schema.ConflictDocument,
    plan_schema.RolloutStepDocument,
    plan_schema.WarningDocument,
    plan_schema.PeriodDocument,
    plan_schema.PeriodAllocationDocument,
    plan_schema.PeriodRentalDocument,
    plan_schema.PeriodRouteDocument,
    plan_schema.PeriodUnservedDocument,
    plan_schema.CommitmentDocument,
    plan_schema.RedundancyPriceDocument,
    plan_schema.JobPlanDocument,
    plan_schema.JobRunDocument,
    adapter_plan_schema.AdapterPlanDocument,
    adapter_plan_schema.AdapterHostDocument,
    adapter_plan_schema.AdapterReplicaDocument,
    adapter_plan_schema.ReplicaTiersDocument,
    adapter_plan_schema.AdapterPreloadDocument,
    adapter_plan_schema.HostedAdapterDocument,
    adapter_plan_schema.AdapterShareDocument,
    adapter_plan_schema.AdapterAlternativeDocument,
    scaling_schema.ScalingChoiceDocument,
    scaling_schema.ScaledServiceDocument,
    scaling_schema.FleetWithoutDocument,
    proof_schema.ProofDocument,
    proof_schema.SimulatedSloDocument,
    proof_schema.RoundServiceDocument,
    proof_schema.ProofRoundDocument,
    proof_schema.UtilizationCapDocument,
    proof_schema.ServiceProofDocument,
    proof_schema.PeriodMissDocument,
    proof_schema.AdapterProofDocument,
    proof_schema.LateAdapterDocument,
    robustness_schema.RobustnessDocument,
    robustness_schema.ScenarioCaseDocument,
    robustness_schema.FleetOutcomesDocument,
    robustness_schema.OutcomeDocument,
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_on_the_reference_page_as_described(model):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "plan.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines() if line.startswith("|")]
    described = {(row[0], row[2]) for row in rows if len(row) == 3}
    for name, field in model.model_fields.items():
        assert (f"`{name}`", field.description) in described
