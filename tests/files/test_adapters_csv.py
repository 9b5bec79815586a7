from __future__ import annotations

import pytest

from planner.domain.adapters import Adapter, Isolation
from planner.domain.slo import Metric, Slo
from planner.errors import InputError, UnsupportedFormatError
from planner.files.adapters_csv import read_adapters
from planner.files.documents import parse_document, validation_error
from planner.files.request.adapters import Adapters

HEADER = "name,rank,target_modules,rate,trace,slo,isolation,merged\n"


def written(folder, text, *, name="adapters.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_with_everything(tmp_path):
    path = written(
        tmp_path,
        "\ufeff" + HEADER + "legal,16,q k v o,2 req/s,,ttft p99 <= 2s; tpot mean <= 60ms,,\n"
        '"tax, EU",64,all-linear,,tax.csv,,shared-backbone,no\n\n'
        "old,8,q_proj+v_proj,0 req/s,,,,\n"
        "hot,8,v,90 req/min,,,,yes\n",
    )
    legal, tax, old, hot = read_adapters(path, isolation=Isolation.SHARED_PROCESS)
    assert legal == Adapter(
        name="legal",
        rank=16,
        target_modules=("k_proj", "o_proj", "q_proj", "v_proj"),
        rate_rps=2.0,
        slos=(
            Slo(metric=Metric.TTFT, percentile=99.0, bound_s=2.0),
            Slo(metric=Metric.TPOT, percentile=None, bound_s=0.06),
        ),
    )
    assert tax.name == "tax, EU"
    assert (tax.trace, tax.rate_rps, tax.isolation) == ("tax.csv", None, Isolation.SHARED_BACKBONE)
    assert (old.rate_rps, old.target_modules) == (0.0, ("q_proj", "v_proj"))
    assert (hot.rate_rps, hot.is_merged, hot.isolation) == (1.5, True, Isolation.DEDICATED)


def test_rates_without_a_unit_stand_in_a_column_that_names_it(tmp_path):
    path = written(tmp_path, "name,rank,target_modules,rate_rps\na,8,q,2.5\n")
    assert read_adapters(path)[0].rate_rps == 2.5


@pytest.mark.parametrize(
    ("row", "place", "words"),
    [
        ("a,8,q,2,,,,", ":2, field rate", "has no unit"),
        ("a,8,q,-2 req/s,,,,", ":2, field rate", "must not be negative"),
        ("a,8,q,nan req/s,,,,", ":2, field rate", "is not a request rate"),
        ("a,8,q,,,,,", ":2", "neither is given"),
        ("a,8,q,1 req/s,t.csv,,,", ":2", "both are given"),
        ("a,0,q,1 req/s,,,,", ":2, field rank", "greater than or equal to 1"),
        ("a,9999,q,1 req/s,,,,", ":2, field rank", "less than or equal to 4096"),
        ("a,1.5,q,1 req/s,,,,", ":2, field rank", "'1.5' is not a whole number"),
        ("a,,q,1 req/s,,,,", ":2, field rank", "'rank' is missing"),
        (",8,q,1 req/s,,,,", ":2, field name", "'name' is missing"),
        ("a,8,,1 req/s,,,,", ":2, field target_modules", "'target_modules' is missing"),
        ("a,8,;,1 req/s,,,,", ":2, field target_modules", "at least 1 item"),
        ("a,8,q,1 req/s,,fast,,", ":2, field slo", "'fast' is not a service-level objective"),
        ("a,8,q,1 req/s,,,alone,", ":2, field isolation", "not 'alone'"),
        ("a,8,q,1 req/s,,,,maybe", ":2, field merged", "Write yes or no"),
        ("a,8,q,1 req/s,,,shared-process,yes", ":2", "cannot be shared"),
        ("a,8,q,1 req/s,,,", ":2", "7 cells, the header 8"),
        ("a,8,q,1 req/s,,,,\nb,8,q,1 req/s,,,,\na,8,q,1 req/s,,,,", ":4, field name", "in line 2 already"),
        ('a,8,"q,1 req/s,,,,', ":2", "CSV is broken"),
        ("", "", "holds no adapter"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path, row, place, words):
    path = written(tmp_path, HEADER + row)
    with pytest.raises(InputError) as caught:
        read_adapters(path)
    assert str(caught.value.where).startswith(f"{path}{place}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,rnak,target_modules\n", "Did you mean 'rank'"),
        ("name,colour,target_modules\n", "Known: name, rank"),
        ("name,rank\n", "'target_modules' is missing"),
        ("name,rank,rank,target_modules\n", "appears twice"),
        ("", "'name' is missing"),
        ("name,rank,target_modules,rate_rps\na,8,q,fast\n", "'fast' is not a number"),
        ("name,rank,target_modules,rate_rps,rate\na,8,q,1,1 req/s\n", "both rate and rate_rps"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_adapters(written(tmp_path, text))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UnsupportedFormatError, match="not UTF-8"):
        read_adapters(written(tmp_path, b"\xff\xfe\x00"))
    with pytest.raises(InputError, match="no such file"):
        read_adapters(tmp_path / "none.csv")


def read(text):
    document = parse_document(text.encode(), name="r.yaml")
    try:
        return Adapters.model_validate(document.data)
    except ValueError as error:
        raise validation_error(error, Adapters, document) from error


def test_a_list_in_a_request():
    form = read(
        "isolation: shared-backbone\n"
        "each:\n"
        "  - {name: a, rank: 8, target_modules: [q, v], rate: 1 req/s}\n"
        "  - {name: b, rank: 8, target_modules: q v, trace: b.csv, isolation: dedicated, slo: ttft p99 <= 1s}\n"
    )
    a, b = form.listed()
    assert a.isolation is Isolation.SHARED_BACKBONE
    assert b.isolation is Isolation.DEDICATED
    assert a.target_modules == b.target_modules == ("q_proj", "v_proj")
    assert str(b.slos[0]) == "ttft p99 <= 1 s"
    assert read("file: adapters.csv").listed() == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("isolation: dedicated", "neither is given"),
        ("file: a.csv\neach: [{name: a, rank: 8, target_modules: q, rate: 1 req/s}]", "both are given"),
        ("each: [{name: a, rank: 8, target_modules: q, rate: 1 req/s, colour: red}]", "Unknown key 'colour'"),
        ("each: []", "at least 1 item"),
        (
            "each: [{name: a, rank: 8, target_modules: q, rate: 1 req/s},"
            " {name: a, rank: 8, target_modules: q, rate: 1 req/s}]",
            "'a' stands there 2 times",
        ),
    ],
)
def test_a_wrong_list_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        read(text)
