from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.catalog.files import read_offers_file
from planner.catalog.gpus import load_gpus

DATA = Path(__file__).parent / "data"
AS_OF = ("--as-of", "2026-11-21")


def test_list_is_cheapest_first_and_stops_at_the_limit(gpuplan):
    ran = gpuplan("catalog", "list", "--provider", "aws", "--gpu", "L4", "--limit", "3", *AS_OF)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert len(lines) == 4
    assert "g6.xlarge" in lines[1]
    assert "0.80" in lines[1]
    assert "more; raise --limit" in ran.err


def test_list_json_has_everything(gpuplan):
    ran = gpuplan("catalog", "list", "--gpu", "H100", "--market", "spot", "--json", *AS_OF)
    assert ran.code == 0
    offers = ran.json["offers"]
    assert len(offers) > 40
    assert {offer["market"] for offer in offers} == {"spot"}
    prices = [offer["price_usd_per_gpu_hour"] for offer in offers]
    assert prices == sorted(prices)
    assert ran.json["warnings"][0]["code"] == "W201"


def test_list_sorts_by_price(gpuplan):
    offers = gpuplan("catalog", "list", "--sort", "price", "--json").json["offers"]
    prices = [offer["price_usd_per_hour"] for offer in offers]
    assert prices == sorted(prices)
    assert gpuplan("catalog", "list", "--sort", "size").code == 2


def test_list_warns_of_stale_prices_with_their_age(gpuplan):
    ran = gpuplan("catalog", "list", "--provider", "oracle-cloud", *AS_OF)
    assert "W201: oracle-cloud: all 5 prices up to 630 days (20.7 months) old" in ran.err
    assert gpuplan("catalog", "list", "--provider", "oracle-cloud", "--max-age", "1000d", *AS_OF).err == ""


def test_list_in_a_narrow_terminal_keeps_the_prices(gpuplan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    ran = gpuplan("catalog", "list", "--provider", "aws", "--gpu", "H100", *AS_OF)
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 60
    assert "55.04" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("list", "--provider", "awz"), 2, "Did you mean 'aws'?"),
        (("list", "--market", "spott"), 2, "Did you mean 'spot'?"),
        (("list", "--gpu", "H1000"), 6, "The GPU 'H1000' is not known"),
        (("list", "--provider", "aws", "--market", "spot"), 6, "100 by market"),
        (("list", "--max-age", "180"), 2, "no unit"),
        (("list", "-o", "offers.txt"), 2, "neither a .csv nor a .json"),
        (("show", "H1000"), 6, "The GPU 'H1000' is not known"),
        (("show", "aws/p5.48xlarge/us-east-1/on-demnd"), 6, "aws/p5.48xlarge/us-east-1/on-demand"),
        (("import", "absent.csv", "-o", "-"), 2, "no such file"),
    ],
)
def test_errors(gpuplan, arguments, code, message):
    ran = gpuplan("catalog", *arguments)
    assert ran.code == code
    assert ran.out == ""
    assert message in ran.err
    if arguments[0] == "list":
        error = json.loads(gpuplan("catalog", *arguments, "--json").err)["error"]
        assert set(error) == {"code", "message", "hint", "where"}


def test_list_writes_what_can_be_read_back(gpuplan, tmp_path):
    target = tmp_path / "out.csv"
    arguments = ("catalog", "list", "--provider", "verda", "-o", target)
    assert gpuplan(*arguments).code == 0
    assert len(read_offers_file(target, gpus=load_gpus())) == 23
    assert gpuplan(*arguments).code == 2
    assert gpuplan(*arguments, "--force").code == 0
    assert gpuplan("catalog", "list", "--provider", "verda", "-o", tmp_path / "out.json").code == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["offers"]) == 23


def test_list_with_own_offers(gpuplan):
    ran = gpuplan("catalog", "list", "--file", DATA / "ours.csv", "--provider", "acme", "--json")
    assert [offer["name"] for offer in ran.json["offers"]] == [
        "acme/l4-box/dc1/on-demand",
        "acme/dgx-1/dc1/reserved-1y",
    ]


def test_gpus(gpuplan):
    ran = gpuplan("catalog", "gpus")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 45
    assert len(gpuplan("catalog", "gpus", "--json").json["gpus"]) == 44


def test_show_gpu(gpuplan):
    ran = gpuplan("catalog", "show", "h100")
    assert ran.code == 0
    for fact in (
        "H100-80GB",
        "3,350 GB/s, 3,180 measured",
        "989 TFLOP/s, 915 measured",
        "700 W, 117 W idle",
        "NVLink4",
    ):
        assert fact in ran.out
    assert "'h100' was read as H100-80GB" in ran.err
    document = gpuplan("catalog", "show", "h100", "--json").json
    assert document["gpu"]["name"] == "H100-80GB"
    assert len(document["offers"]) == 248


def test_show_offer(gpuplan):
    name = "aws/p5.48xlarge/us-east-1/on-demand"
    ran = gpuplan("catalog", "show", name)
    assert ran.code == 0
    assert "55.04" in ran.out
    assert gpuplan("catalog", "show", name, "--json").json["gpu_count"] == 8


def test_import(gpuplan, tmp_path):
    target = tmp_path / "aws.csv"
    ran = gpuplan(
        "catalog", "import", DATA / "gpuhunt_aws.csv", "-o", target, "--provider", "aws", "--dated", "2026-09-01"
    )
    assert ran.code == 0
    assert ran.out == ""
    assert "5 offers read from gpuhunt CSV v2" in ran.err
    offers = read_offers_file(target, gpus=load_gpus())
    assert {offer.provider for offer in offers} == {"aws"}
    assert {offer.as_of.isoformat() for offer in offers} == {"2026-09-01"}


def test_import_to_stdout_is_only_the_table(gpuplan):
    ran = gpuplan("catalog", "import", DATA / "skypilot" / "lambda" / "vms.csv", "-o", "-")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 8


def test_import_leaves_unknown_gpus_out_only_when_told(gpuplan, tmp_path):
    source = tmp_path / "sky.csv"
    text = (DATA / "skypilot" / "lambda" / "vms.csv").read_text(encoding="utf-8")
    source.write_text(text + "old,K80,1.0,4.0,16.0,,0.5,,us-east-1,\n", encoding="utf-8")
    refused = gpuplan("catalog", "import", source, "-o", "-")
    assert (refused.code, refused.out) == (2, "")
    assert f"{source}:9, field AcceleratorName: The GPU 'K80' is not known." in refused.err
    taken = gpuplan("catalog", "import", source, "-o", "-", "--skip-unknown")
    assert taken.code == 0
    assert "1 rows left out: GPU without a specification" in taken.err


@pytest.mark.parametrize("command", ["list", "show", "gpus", "import"])
def test_help(gpuplan, command):
    ran = gpuplan("catalog", command, "--help")
    assert ran.code == 0
    assert "Usage" in ran.out
