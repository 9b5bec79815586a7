"""Plans to report on: Mélange's published example, a fleet from a catalog, one that cannot be, and one oddly named."""

from datetime import date

import pytest

from planner.domain.plan import (
    Allocation,
    Baseline,
    Conflict,
    Plan,
    PlanStatus,
    Rental,
    Route,
    SolverInfo,
)
from planner.domain.provenance import ProvenanceKind, Warning_

SOLVER = SolverInfo(name="highs", version="1.12.0", seconds=0.12, termination="optimal")


@pytest.fixture
def today():
    return date(2026, 11, 21)


@pytest.fixture
def melange():
    """The example of arXiv 2404.14527's code: 3 A10G and 1 A100 at 6.70 USD/h."""

    def bucket(row, column, rate, weights):
        return Route(
            service="default",
            input_tokens=None,
            output_tokens=None,
            row=row,
            column=column,
            rate_rps=rate,
            weights=weights,
            provenance=dict.fromkeys(weights, ProvenanceKind.GIVEN),
        )

    def allocation(gpu, replicas, usd_per_hour, utilization, rate):
        return Allocation(
            service="default",
            offer=gpu,
            option=gpu,
            gpu=gpu,
            gpus_per_replica=1,
            replicas=replicas,
            cost_usd_per_hour=usd_per_hour,
            power_w=None,
            utilization=utilization,
            instances=replicas,
            rate_rps=rate,
        )

    def rental(gpu, instances, usd_per_hour):
        return Rental(
            offer=gpu,
            provider="",
            instance_type="",
            region="",
            market="",
            gpu=gpu,
            gpus_per_instance=1.0,
            instances=instances,
            cost_usd_per_hour=usd_per_hour,
        )

    return Plan(
        status=PlanStatus.OPTIMAL,
        cost_usd_per_hour=6.70,
        bound_usd_per_hour=6.70,
        gap=0.0,
        solver=SOLVER,
        allocation=(allocation("A10G", 3, 3.03, 1.0, 15.0), allocation("A100-80GB", 1, 3.67, 0.75, 15.0)),
        rentals=(rental("A10G", 3, 3.03), rental("A100-80GB", 1, 3.67)),
        routing=(
            bucket(0, 0, 6.0, {"A100-80GB": 1.0}),
            bucket(0, 1, 3.0, {"A100-80GB": 1.0}),
            bucket(1, 0, 15.0, {"A10G": 1.0}),
            bucket(1, 1, 6.0, {"A100-80GB": 1.0}),
        ),
        baselines=(
            Baseline(offer="A100-80GB", replicas=2, cost_usd_per_hour=7.34, feasible=True),
            Baseline(offer="A10G", replicas=12, cost_usd_per_hour=12.12, feasible=True),
        ),
        savings_vs_best_single=1 - 6.70 / 7.34,
        assumptions=("Each bucket's requests are cut into 1 equal slice.",),
        inputs={"request_sha256": "a" * 64},
        rate_rps=30.0,
    )


L4_OFFER = "aws/g6.xlarge/us-east-1/on-demand"
A100_OFFER = "gcp/a2-ultragpu-2g/us-central1/on-demand"


@pytest.fixture
def catalog():
    """Two services; two engine configurations of one service share the A100 machines."""

    def route(service, row, column, sizes, rate, weights, kind=ProvenanceKind.ESTIMATED):
        return Route(
            service=service,
            input_tokens=sizes[0],
            output_tokens=sizes[1],
            row=row,
            column=column,
            rate_rps=rate,
            weights=weights,
            provenance=dict.fromkeys(weights, kind),
        )

    def a100(service, tp, precision, replicas, usd_per_hour, utilization, rate, kind):
        return Allocation(
            service=service,
            offer=A100_OFFER,
            option=f"{A100_OFFER}[{precision} tp{tp}]",
            gpu="A100-80GB",
            gpus_per_replica=tp,
            replicas=replicas,
            cost_usd_per_hour=usd_per_hour,
            power_w=400.0 * tp * replicas,
            utilization=utilization,
            provider="gcp",
            region="us-central1",
            market="on-demand",
            instance_type="a2-ultragpu-2g",
            instances=3,
            engine="vllm",
            precision=precision,
            tensor_parallel=tp,
            rate_rps=rate,
            output_tokens_per_s=rate * 300,
            provenance=kind,
            price_as_of="2026-08-20",
        )

    l4 = Allocation(
        service="chat",
        offer=L4_OFFER,
        option=L4_OFFER,
        gpu="L4",
        gpus_per_replica=1,
        replicas=8,
        cost_usd_per_hour=6.44,
        power_w=576.0,
        utilization=0.81,
        provider="aws",
        region="us-east-1",
        market="on-demand",
        instance_type="g6.xlarge",
        instances=8,
        engine="vllm",
        precision="bf16",
        rate_rps=20.0,
        output_tokens_per_s=2000.0,
        provenance=ProvenanceKind.MEASURED,
        provenance_note="vLLM 0.6.3, L4, 2025-02",
        price_as_of="2026-07-10",
    )
    a100_tp1, a100_tp2 = f"{A100_OFFER}[bf16 tp1]", f"{A100_OFFER}[bf16 tp2]"
    return Plan(
        name="q1-fleet",
        status=PlanStatus.OPTIMAL,
        cost_usd_per_hour=36.86,
        bound_usd_per_hour=36.858,
        gap=5.4e-5,
        solver=SOLVER,
        allocation=(
            l4,
            a100("chat", 1, "bf16", 1, 5.07, 0.774, 10.0, ProvenanceKind.CALIBRATED),
            a100("search", 2, "bf16", 2, 25.35, 0.6949, 120.0, ProvenanceKind.ESTIMATED),
        ),
        rentals=(
            Rental(
                offer=L4_OFFER,
                provider="aws",
                instance_type="g6.xlarge",
                region="us-east-1",
                market="on-demand",
                gpu="L4",
                gpus_per_instance=1.0,
                instances=8,
                cost_usd_per_hour=6.44,
                price_as_of="2026-07-10",
                price_source="provider's price list",
            ),
            Rental(
                offer=A100_OFFER,
                provider="gcp",
                instance_type="a2-ultragpu-2g",
                region="us-central1",
                market="on-demand",
                gpu="A100-80GB",
                gpus_per_instance=2.0,
                instances=3,
                cost_usd_per_hour=30.42,
                price_as_of="2026-08-20",
            ),
        ),
        routing=(
            route("chat", 0, 0, ((0, 1000), (0, 250)), 18.0, {L4_OFFER: 1.0}, ProvenanceKind.MEASURED),
            route("chat", 0, 1, ((0, 1000), (250, 2000)), 4.0, {L4_OFFER: 0.5, a100_tp1: 0.5}),
            route("chat", 1, 0, ((1000, 4000), (0, 250)), 5.0, {a100_tp1: 1.0}),
            route("chat", 1, 1, ((1000, 4000), (250, 2000)), 3.0, {a100_tp1: 1.0}),
            route("search", 0, 0, ((0, 8000), (0, 500)), 120.0, {a100_tp2: 1.0}),
        ),
        baselines=(
            Baseline(offer="H100-80GB", replicas=6, cost_usd_per_hour=64.20, feasible=True),
            Baseline(offer="A100-80GB", replicas=9, cost_usd_per_hour=45.63, feasible=True),
            Baseline(offer="L40S", replicas=31, cost_usd_per_hour=57.66, feasible=True),
            Baseline(
                offer="L4",
                replicas=0,
                cost_usd_per_hour=None,
                feasible=False,
                reason="Qwen2.5-32B does not fit its memory",
            ),
            Baseline(offer="H200-141GB", replicas=5, cost_usd_per_hour=59.10, feasible=True),
            Baseline(offer="B200", replicas=4, cost_usd_per_hour=71.96, feasible=True),
            Baseline(offer="MI300X", replicas=7, cost_usd_per_hour=55.30, feasible=True),
        ),
        savings_vs_best_single=1 - 36.86 / 45.63,
        binding=("L4 quota aws us-east-1 (one more saves 0.35 USD/h)",),
        warnings=(
            Warning_(
                code="W201", message="Prices of aws are 134 days old; the limit is 90.", observed=134, threshold=90
            ),
        ),
        assumptions=("10% headroom is kept above the planned rate.", "Requests arrive as a Poisson process."),
        inputs={
            "request_sha256": "b" * 64,
            "catalog_date": "2026-08-20",
            "reproduce": "gpuplan plan q1.yaml --as-of 2026-11-21",
            "request": {"kind": "PlanRequest"},
        },
        rate_rps=150.0,
        output_tokens_per_s=41000.0,
        power_w=2576.0,
    )


@pytest.fixture
def infeasible():
    return Plan(
        name="too tight",
        status=PlanStatus.INFEASIBLE,
        cost_usd_per_hour=None,
        bound_usd_per_hour=None,
        gap=None,
        solver=SolverInfo(name="highs", version="1.12.0", seconds=0.02, termination="infeasible"),
        conflicts=(
            Conflict(
                requirement="chat: ttft p99 <= 200 ms",
                explanation="No GPU answers 8k-token prompts this fast; the best, H100-80GB, takes 310 ms.",
                current=0.2,
                relaxed=0.31,
                unit="s",
                suggestion="ttft p99 200 ms -> 310 ms",
            ),
            Conflict(requirement="budget", explanation="", current=5.0, relaxed=7.25, unit="USD/h"),
            Conflict(requirement="available H100-80GB", explanation="More of them would be as slow."),
        ),
        rate_rps=30.0,
    )


@pytest.fixture
def odd_names():
    """Names that terminals, Markdown, HTML and CSV could each take for something else."""
    service = '<script>alert("x")</script>'
    offer = "a|b,c\n*[red]très_long-" + "interminable-" * 8 + "人工\x1b[31m"
    return Plan(
        name="r&d _team_",
        status=PlanStatus.FEASIBLE,
        cost_usd_per_hour=1234.5,
        bound_usd_per_hour=1200.0,
        gap=34.5 / 1234.5,
        solver=SolverInfo(name="cbc", version="2.10", seconds=60.0, termination="time-limit"),
        allocation=(
            Allocation(
                service=service,
                offer=offer,
                option=offer,
                gpu="GPU|1",
                gpus_per_replica=4,
                replicas=25,
                cost_usd_per_hour=1234.5,
                power_w=None,
                utilization=0.5,
                instances=13,
            ),
        ),
        rentals=(
            Rental(
                offer=offer,
                provider="own",
                instance_type="",
                region="dc 1",
                market="owned",
                gpu="GPU|1",
                gpus_per_instance=8.0,
                instances=13,
                cost_usd_per_hour=1234.5,
                price_as_of="not a date",
            ),
        ),
        routing=(
            Route(
                service=service,
                input_tokens=(0, 128),
                output_tokens=(0, 128),
                row=0,
                column=0,
                rate_rps=12345.6,
                weights={offer: 1.0},
            ),
        ),
        rate_rps=12345.6,
    )
