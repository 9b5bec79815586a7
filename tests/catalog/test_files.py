"""Users' own files: every layout that is read, and every error that a row can raise."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog.files import import_offers, read_offers_file
from planner.catalog.gpus import load_gpus
from planner.catalog.offers import load_offers, offers_csv, with_own_offers
from planner.domain.hardware import Market
from planner.errors import InputError, PlannerError, UnsupportedFormatError

DATA = Path(__file__).parent / "data"
HEADER = "provider,instance_type,region,market,gpu,gpu_count,price_usd_per_hour"
ROW = "acme,box,dc1,on-demand,L4,1,0.5"
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size"
SKYPILOT = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"
)


def read(path, **options):
    return read_offers_file(path, gpus=load_gpus(), **options)


@pytest.fixture
def written(tmp_path):
    def write(text, name="prices.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_gpuhunt():
    offers = {offer.name: offer for offer in read(DATA / "gpuhunt_aws.csv", provider="aws", as_of=date(2026, 9, 1))}
    assert len(offers) == 5
    p5 = offers["aws/p5.48xlarge/us-east-1/spot"]
    assert (p5.gpu, p5.gpus_per_instance, p5.price_usd_per_hour, p5.vcpus) == ("H100-80GB", 8, 21.5, 192)
    assert p5.ram_bytes == 2048 * 2**30
    assert p5.as_of == date(2026, 9, 1)
    assert p5.source == "gpuhunt_aws.csv (gpuhunt CSV v2)"
    assert offers["aws/p4de.24xlarge/us-east-1/on-demand"].gpu == "A100-80GB"
    assert offers["aws/p4d.24xlarge/us-west-2/on-demand"].gpu == "A100-40GB"
    assert offers["aws/g6.xlarge/us-east-1/on-demand"].gpu == "L4"


def test_gpuhunt_names_its_provider_by_the_file(written):
    path = written(f"{GPUHUNT}\nbox,eu,1.0,4,16,1,L4,24,False,", "nebius.csv")
    assert read(path)[0].name == "nebius/box/eu/on-demand"


def test_gpuhunt_memory_tells_cards_of_one_name_apart(written):
    lines = [f"box{index},eu,1.0,4,16,1,{gpu},False," for index, gpu in enumerate(("V100,16", "V100,32", "H100NVL,94"))]
    offers = read(written("\n".join([GPUHUNT, *lines])))
    assert [offer.gpu for offer in offers] == ["V100-16GB", "V100-32GB", "H100-NVL-94GB"]


def test_gpuhunt_card_with_other_memory_is_refused(written):
    with pytest.raises(InputError, match="No RTX4090 with 48 GB is known; RTX-4090 has 24 GB") as caught:
        read(written(f"{GPUHUNT}\nbox,eu,1.0,4,16,1,RTX4090,48,False,"))
    assert (caught.value.where.line, caught.value.where.field) == (2, "gpu_memory")


def test_skypilot():
    offers = {offer.name: offer for offer in read(DATA / "skypilot" / "lambda" / "vms.csv")}
    assert set(offers) == {
        "lambda/gpu_8x_h100_sxm5/us-east-1/on-demand",
        "lambda/gpu_1x_a10/us-east-1/on-demand",
        "lambda/gpu_1x_a10/us-east-1/spot",
        "lambda/gpu_2x_a100/us-west-1/on-demand",
        "lambda/gpu_1x_l4/us-west-1/on-demand",
        "lambda/gpu_1x_l4/us-west-1a/spot",
        "lambda/gpu_1x_l4/us-west-1b/spot",
    }
    a10 = offers["lambda/gpu_1x_a10/us-east-1/spot"]
    assert (a10.market, a10.price_usd_per_hour, a10.vcpus, a10.as_of) == (Market.SPOT, 0.3, 30, None)
    assert offers["lambda/gpu_1x_l4/us-west-1b/spot"].price_usd_per_hour == 0.5
    assert offers["lambda/gpu_2x_a100/us-west-1/on-demand"].notes == "40 GB SXM assumed, as SkyPilot does"


def test_own_csv_and_yaml_say_the_same():
    table, document = read(DATA / "ours.csv"), read(DATA / "ours.yaml")
    assert table == document
    first = table[0]
    assert (first.gpu, first.market, first.available) == ("H100-80GB", Market.RESERVED_1Y, 4)
    assert first.as_of == date(2026, 10, 1)
    assert table[1].available is None


def test_json_list(written):
    path = written(
        '[{"provider": "acme", "instance_type": "box", "region": "dc1", "market": "owned", "gpu": "L4",'
        ' "gpu_count": 1, "price_usd_per_hour": 0}]',
        "ours.json",
    )
    assert read(path)[0].price_usd_per_hour == 0


def test_bundled_offers_survive_a_round_trip(written):
    offers = load_offers()
    assert read(written(offers_csv(offers))) == offers


def test_quoted_header_blank_lines_byte_order_mark_and_windows_line_ends(written):
    header = ",".join(f'"{column}"' for column in HEADER.split(","))
    path = written(f"\ufeff\r\n{header}\r\n\r\n{ROW}\r\n")
    assert [offer.name for offer in read(path)] == ["acme/box/dc1/on-demand"]


def test_own_offers_replace_bundled_ones_of_the_same_name(written):
    name = "aws/p5.48xlarge/us-east-1/on-demand"
    own = read(written(f"{HEADER}\naws,p5.48xlarge,us-east-1,on-demand,H100,8,40\n"))
    offers = with_own_offers(load_offers(), own)
    assert len(offers) == len(load_offers())
    assert [offer.price_usd_per_hour for offer in offers if offer.name == name] == [40]


LAYOUT_TEXTS = [path.read_bytes() for path in sorted(DATA.rglob("*.*"))]


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_files_are_told_of_and_never_a_traceback(data, tmp_path_factory):
    content = bytearray(data.draw(st.sampled_from(LAYOUT_TEXTS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.mktemp("damaged") / "prices.csv"
    path.write_bytes(bytes(content))
    offers, problem = (), None
    try:
        offers = read(path)
    except PlannerError as error:
        problem = error
    assert problem is None or problem.where.path == str(path)
    assert all(offer.price_usd_per_hour > 0 and offer.gpu in load_gpus().by_name for offer in offers)


def test_skip_unknown_counts_what_it_leaves_out(written):
    path = written(
        f"{SKYPILOT}\na,L4,1,4,16,,0.5,,us-east-1,\nb,K80,1,4,16,,0.5,,us-east-1,\nc,L4,1,4,16,,0.5,,cn-north-1,\n"
        "d,L4,0,4,16,,0.5,,us-east-1,\n",
        "aws.csv",
    )
    imported = import_offers(path, gpus=load_gpus(), skip_unknown=True)
    assert [offer.instance_type for offer in imported.offers] == ["a"]
    assert imported.skipped == {"GPU without a specification": 2, "price not in US dollars": 1}
    assert imported.format_name == "SkyPilot catalog CSV"


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ("acme,box,dc1,on-demand,L4,1,-0.5", "price_usd_per_hour", "-0.5 is negative"),
        ("acme,box,dc1,on-demand,L4,1,nan", "price_usd_per_hour", "'nan' is not a finite number"),
        ("acme,box,dc1,on-demand,L4,1,inf", "price_usd_per_hour", "'inf' is not a finite number"),
        ("acme,box,dc1,on-demand,L4,1,1_0", "price_usd_per_hour", "'1_0' is not a finite number"),
        ("acme,box,dc1,on-demand,L4,1,2.49 USD/h", "price_usd_per_hour", "'2.49 USD/h' is not a finite number"),
        ("acme,box,dc1,on-demand,L4,1,", "price_usd_per_hour", "empty"),
        ("acme,box,dc1,on-demand,L4,1,0", "price_usd_per_hour", "The price is 0"),
        ("acme,box,dc1,on-demand,L4,0,0.5", "gpu_count", "0 GPUs"),
        ("acme,box,dc1,on-demand,L4,,0.5", "gpu_count", "empty"),
        ("acme,box,dc1,on-demand,L4,1025,0.5", "gpu_count", "1025 GPUs in one instance are more than 1024"),
        ("acme,box,dc1,on-demand, ,1,0.5", "gpu", "empty"),
        ("acme,box,dc1,on-demand,L5,1,0.5", "gpu", "The GPU 'L5' is not known"),
        ("acme,box,dc1,on-demnd,L4,1,0.5", "market", "'on-demnd' is not known here"),
        (",box,dc1,on-demand,L4,1,0.5", "provider", "empty"),
        ("aws,box,cn-north-1,on-demand,L4,1,0.5", "price_usd_per_hour", "Chinese yuan"),
        ("azure,box,chinaeast2,on-demand,L4,1,0.5", "price_usd_per_hour", "Chinese yuan"),
    ],
)
def test_a_wrong_cell_is_named(written, row, field, message):
    path = written(f"{HEADER}\n{ROW}\n{row}\n")
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    where = caught.value.where
    assert (where.path, where.line, where.field) == (str(path), 3, field)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("as_of", "20.7.2026", "'20.7.2026' is not a date"),
        ("as_of", "2099-01-01", "dated 2099-01-01, which has not come yet"),
        ("available", "1.5", "not a whole number"),
        ("vcpus", "-4", "negative"),
        ("ram_gib", "much", "'much' is not a finite number"),
    ],
)
def test_a_wrong_optional_cell_is_named(written, column, value, message):
    with pytest.raises(InputError, match=message) as caught:
        read(written(f"{HEADER},{column}\n{ROW},{value}\n"))
    assert caught.value.where.field == column


def test_duplicate_offer(written):
    with pytest.raises(InputError, match=r"acme/box/dc1/on-demand is offered twice, first at line 2") as caught:
        read(written(f"{HEADER}\n{ROW}\n{ROW.replace('0.5', '0.6')}\n"))
    assert caught.value.where.line == 3


def test_duplicate_offer_in_gpuhunt(written):
    row = "box,eu,1.0,4,16,1,L4,24,False,"
    with pytest.raises(InputError, match="offered twice"):
        read(written(f"{GPUHUNT}\n{row}\n{row}\n"))


def test_row_with_too_few_cells(written):
    with pytest.raises(InputError, match="The row has 6 cells, the header 7"):
        read(written(f"{HEADER}\n{ROW.rsplit(',', 1)[0]}\n"))


def test_misspelt_column(written):
    with pytest.raises(InputError, match="Unknown column 'vcpu'") as caught:
        read(written(f"{HEADER},vcpu\n{ROW},4\n"))
    assert "vcpus" in caught.value.hint


def test_column_twice(written):
    with pytest.raises(InputError, match="'gpu' appears twice"):
        read(written(f"{HEADER},gpu\n{ROW},L4\n"))


def test_missing_column_names_the_layout_that_is_nearest(written):
    with pytest.raises(UnsupportedFormatError, match="gpuplan CSV, but lacks gpu_count") as caught:
        read(written("provider,instance_type,region,market,gpu,price_usd_per_hour\na,b,c,spot,L4,1\n"))
    assert "gpuhunt CSV v2" in caught.value.hint


def test_gpuhunt_of_an_older_version(written):
    with pytest.raises(UnsupportedFormatError, match="gpuhunt CSV v2, but lacks spot"):
        read(written("instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory\na,b,1,1,1,1,L4,24\n"))


def test_unknown_spot_word_in_gpuhunt(written):
    with pytest.raises(InputError, match="'maybe' is not known here"):
        read(written(f"{GPUHUNT}\nbox,eu,1.0,4,16,1,L4,24,maybe,\n"))


def test_skypilot_unknown_gpu_names_line_and_gpu(written):
    with pytest.raises(InputError, match="The GPU 'K80' is not known") as caught:
        read(written(f"{SKYPILOT}\na,L4,1,4,16,,0.5,,us-east-1,\nb,K80,1,4,16,,0.5,,us-east-1,\n"))
    assert (caught.value.where.line, caught.value.where.field) == (3, "AcceleratorName")


def test_file_without_gpu_offers(written):
    with pytest.raises(InputError, match="holds no GPU offer"):
        read(written(f"{HEADER}\n"))


def test_yaml_error_names_the_line(written):
    path = written(
        "- {provider: a, instance_type: b, region: c, market: spot, gpu: L4, gpu_count: 1, price_usd_per_hour: 1}\n"
        "- provider: a\n  instance_type: b\n  region: c\n  market: spot\n  gpu: L4\n  gpu_count: 1\n"
        "  price_usd_per_hour: -1\n",
        "ours.yaml",
    )
    with pytest.raises(InputError, match="-1 is negative") as caught:
        read(path)
    assert caught.value.where.line == 2
    assert caught.value.where.field == "price_usd_per_hour"


def test_yaml_misspelt_key(written):
    with pytest.raises(InputError, match="Unknown column 'prize_usd_per_hour'") as caught:
        read(written("- prize_usd_per_hour: 1\n", "ours.yaml"))
    assert (caught.value.where.line, caught.value.hint) == (1, "Did you mean 'price_usd_per_hour'?")


@pytest.mark.parametrize("text", ["- 5\n", "- {gpu: [L4]}\n"])
def test_yaml_of_another_shape(written, text):
    with pytest.raises(InputError, match=r"not a single value|is a mapping"):
        read(written(text, "ours.yaml"))


@pytest.mark.parametrize("text", ["just words\n", "{}\n", "kind: PlanRequest\n"])
def test_neither_list_nor_table(written, text):
    with pytest.raises(UnsupportedFormatError, match="neither a list of offers nor a table"):
        read(written(text, "ours.txt"))


def test_unreadable_files(tmp_path, written):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="a folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="empty"):
        read(written("\n"))
    (tmp_path / "binary.csv").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(UnsupportedFormatError, match="not a text"):
        read(tmp_path / "binary.csv")
