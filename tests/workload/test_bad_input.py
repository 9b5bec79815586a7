"""What is wrong with a trace is said with its file and line; nothing is read as something else, nothing crashes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from planner.errors import InputError, UnsupportedFormatError
from planner.workload.read import ColumnMap, read_trace, resolve_trace

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = "2023-11-16 18:00:00.5,5,6"
MOONCAKE = {"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def error_of(path: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        read_trace(path, **options)
    return caught.value


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ("2023-11-16 18:00:00,-5,6", "ContextTokens", "-5 is not a number of tokens"),
        ("2023-11-16 18:00:00,0,6", "ContextTokens", "0 is not a number of tokens"),
        ("2023-11-16 18:00:00,5,0", "GeneratedTokens", "0 is not a number of tokens"),
        ("2023-11-16 18:00:00,5.5,6", "ContextTokens", "5.5 is not a number of tokens"),
        ("2023-11-16 18:00:00,nan,6", "ContextTokens", "nan is not a number of tokens"),
        ("2023-11-16 18:00:00,inf,6", "ContextTokens", "inf is not a number of tokens"),
        ("2023-11-16 18:00:00,20231116180000,6", "ContextTokens", "is not a number of tokens"),
        ("2023-11-16 18:00:00,five,6", "ContextTokens", "'five' is not a number of tokens"),
        ("2023-11-16 18:00:00,,6", "ContextTokens", "(empty) is not a number of tokens"),
        ("2023-11-16 18:00:00,5", None, "The row has 2 fields, the header 3."),
        ("2023-11-16 18:00:00,1,500,6", None, "The row has 4 fields, the header 3."),
        ("2023-11-16 18:00:00", None, "The row has 1 fields, the header 3."),
        ("16/11/2023 18:00,5,6", "TIMESTAMP", "is not a date and time such as"),
        ("2023-13-45 18:00:00,5,6", "TIMESTAMP", "is not a date and time such as"),
        ("yesterday,5,6", "TIMESTAMP", "The arrival 'yesterday' is not a date and time"),
        (",5,6", "TIMESTAMP", "The arrival (empty) is not a date and time"),
        ("5,5,6", "TIMESTAMP", "is not a date and time such as"),
        ("now,5,6", "TIMESTAMP", "is not a date and time such as"),
        ("2023,5,6", "TIMESTAMP", "is not a date and time such as"),
        ("20231116,5,6", "TIMESTAMP", "is not a date and time such as"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(tmp_path, row, field, message):
    path = write(tmp_path, "\n".join([HEADER, GOOD, "", GOOD, row, GOOD, row, ""]))
    error = error_of(path)
    assert message in error.message
    assert error.where is not None
    assert (error.where.path, error.where.line, error.where.field) == (str(path), 5, field)
    assert "--skip-bad-rows" in error.hint
    assert str(error).startswith(f"{path}:5")
    kept = read_trace(path, skip_bad_rows=True)
    assert (kept.n_requests, kept.n_bad_rows) == (3, 2)


def test_the_line_is_right_after_quoted_line_breaks_and_in_later_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("planner.workload.tables.EXACT_CHUNK_ROWS", 2)
    rows = ['1,2,"a\nb"', "3,4,c", '5,6,"d\n\ne"', "7,0,f"]
    error = error_of(write(tmp_path, "\n".join(["input_tokens,output_tokens,text", *rows])))
    assert error.where is not None
    assert error.where.line == 8


def test_a_row_with_too_many_fields_is_never_read_as_another_number(tmp_path):
    # A thousands separator: pandas alone would read 1 input and 234 output tokens.
    path = write(tmp_path, f"{HEADER}\n2023-11-16 18:00:00,1,234,56\n{GOOD}\n")
    assert error_of(path).where.line == 2
    # A short row and a long one leave the number of commas in the file as it should be.
    path = write(tmp_path, f"{HEADER},extra\n{GOOD}\n2023-11-16 18:00:00,1,234,56,x\n")
    assert error_of(path).where.line == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_length": -1}, "-1 is not a number of tokens"),
        ({"output_length": 0}, "0 is not a number of tokens"),
        ({"output_length": 2.5}, "2.5 is not a number of tokens"),
        ({"output_length": None}, "(empty) is not a number of tokens"),
        ({"output_length": True}, "(empty) is not a number of tokens"),
        ({"output_length": [3]}, "(empty) is not a number of tokens"),
        ({"output_length": 10**400}, "is not a number of tokens"),
        ({"timestamp": "noon"}, "The arrival 'noon' is not a number (ms)"),
        ({"timestamp": None}, "The arrival (empty) is not a number (ms)"),
        ({"hash_ids": [1]}, "1 prefix hashes, but 600 tokens fill 2 blocks of 512."),
        ({"hash_ids": [1, "x"]}, "The prefix hashes are not a list of whole numbers."),
        ({"hash_ids": 12}, "The prefix hashes are not a list of whole numbers."),
        ({"hash_ids": [1, 2**70]}, "The prefix hashes are not a list of whole numbers."),
    ],
)
def test_a_malformed_mooncake_line(tmp_path, changes, message):
    lines = [MOONCAKE] * 4 + [MOONCAKE | changes] + [MOONCAKE]
    path = write(tmp_path, "\n".join(map(json.dumps, lines)))
    error = error_of(path)
    assert message in error.message
    assert error.where.line == 5
    kept = read_trace(path, skip_bad_rows=True)
    assert (kept.n_requests, kept.n_bad_rows) == (5, 1)
    assert kept.prefix.hashes.tolist() == [1, 2] * 5


def test_hashes_that_fit_no_block_size_are_held_against_mooncakes_own(tmp_path):
    lines = [MOONCAKE | {"hash_ids": list(range(n_blocks))} for n_blocks in (7, 9, 38)]
    error = error_of(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert "7 prefix hashes, but 600 tokens fill 2 blocks of 512." in error.message


@pytest.mark.parametrize("line", ['{"timestamp": 5, "input_le', "[1, 2]", "null", "hello", "[" * 100_000])
def test_a_line_that_is_no_json_object(tmp_path, line):
    path = write(tmp_path, f"{json.dumps(MOONCAKE)}\n\n{line}\n")
    error = error_of(path)
    assert (error.message, error.where.line) == ("The line is not a JSON object.", 3)
    assert read_trace(path, skip_bad_rows=True).n_bad_rows == 1


def test_burstgpt_totals_find_a_row_cut_short(tmp_path):
    text = (DATA / "burstgpt_v1.csv").read_text().replace("417,276,693", "417,27,693")
    error = error_of(write(tmp_path, text))
    assert "The total is 693, but input and output add up to 444." in error.message
    assert (error.where.line, error.where.field) == (4, "Total tokens")


def test_burstgpt_failures_are_no_malformed_rows_but_a_negative_response_is(tmp_path):
    text = (DATA / "burstgpt_v1.csv").read_text().replace("33,410,443", "33,-3,30")
    error = error_of(write(tmp_path, text))
    assert error.where.line == 6
    kept = read_trace(tmp_path / "trace.csv", skip_bad_rows=True)
    assert (kept.n_requests, kept.n_bad_rows, kept.n_failed_requests) == (3, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The file is empty."),
        (" \n\n", "The file is empty."),
        (f"{HEADER}\n", "The trace has no requests."),
        ("2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,5,6\n", "not a header that names columns"),
        ("1.5,5,6\n2.5,5,6\n", "not a header that names columns"),
        ("just some words\nand more\n", "not a header that names columns"),
        ('[{"timestamp": 1}]', "not a JSON object"),
        ('{\n "timestamp": 1}', "not a JSON object"),
        ("input_tokens,input_tokens,output_tokens\n1,2,3\n", "stands in the header twice"),
    ],
)
def test_files_that_are_no_trace(tmp_path, text, message):
    error = error_of(write(tmp_path, text))
    assert message in error.message
    assert error.where.path.endswith("trace.csv")


def test_nothing_left_is_an_error_even_when_skipping(tmp_path):
    path = write(tmp_path, f"{HEADER}\nx,1,1\ny,1,1\n")
    assert "all 2 rows are malformed or failed" in error_of(path, skip_bad_rows=True).message


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xfeT\0I\0", b"T\0I\0M\0E\0,\0", bytes(range(128, 256)) * 9]
)
def test_binary_files(tmp_path, content):
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(UnsupportedFormatError, match="not text and not Parquet"):
        read_trace(path)


def test_damaged_gzip_and_parquet(tmp_path):
    path = tmp_path / "trace.csv.gz"
    packed = gzip.compress(resolve_trace("bundled:azure_code_2023").read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    assert "gzip compression is broken" in error_of(path).message
    path.write_bytes(packed[:2] + b"garbage" * 9)
    assert "gzip compression is broken" in error_of(path).message
    path.write_bytes(b"PAR1" + b"garbage" * 9)
    assert "begins like Parquet" in error_of(path).message


def test_paths_that_are_no_file(tmp_path, monkeypatch):
    assert "There is no such file" in error_of(tmp_path / "absent.csv").message
    assert "This is a folder" in error_of(tmp_path).message
    path = write(tmp_path, f"{HEADER}\n{GOOD}\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "may not be read" in error_of(path).message


def test_an_unknown_bundled_name_lists_those_there_are():
    with pytest.raises(InputError, match="bundled:azure_code_2023, bundled:azure_conv_2023"):
        resolve_trace("bundled:azure_2024")


def test_columns_that_are_not_there_or_do_not_go_with_the_format(tmp_path):
    path = write(tmp_path, "a,b\n1,2\n")
    with pytest.raises(UnsupportedFormatError, match=r"no column 'c'.*a, b"):
        read_trace(path, columns=ColumnMap(None, "a", "c"))
    with pytest.raises(InputError, match="Give one of the two"):
        read_trace(path, columns=ColumnMap(None, "a", "b"), format_name="azure")


def test_random_damage_never_crashes(tmp_path):
    rng = random.Random(7)
    originals = [
        (DATA / name).read_bytes()[:4000]
        for name in ("mooncake_conversation_200.jsonl", "burstgpt_v1.csv", "burstgpt_v2.csv", "vidur_splitwise.csv")
    ]
    originals.append(resolve_trace("bundled:azure_code_2023").read_bytes()[:2000])
    path = tmp_path / "trace"
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randint(0, 9)] = rng.choice(
                [
                    b"",
                    b",",
                    b"\n",
                    b'"',
                    b"\0",
                    b"\xff",
                    b"-",
                    b"1e999",
                    b"{",
                    b"]",
                    b";",
                    b"nan",
                    bytes([rng.randrange(256)]),
                ]
            )
        path.write_bytes(bytes(damaged))
        for skip in (False, True):
            try:
                trace = read_trace(path, skip_bad_rows=skip)
            except InputError:
                outcomes.add("refused")
            else:
                assert (trace.input_tokens >= 1).all()
                assert (trace.output_tokens >= 1).all()
                assert trace.arrival_s[0] == 0
                outcomes.add("read")
    assert outcomes == {"refused", "read"}


def test_a_span_of_decades_is_a_wrong_time(tmp_path):
    path = write(tmp_path, "ts_s,input_tokens,output_tokens\n1700000000,5,6\n0,5,6\n")
    error = error_of(path)
    assert "more than any trace lasts" in error.message
    assert error.where.field == "ts_s"
    write(tmp_path, "ts_s,input_tokens,output_tokens\n1e308,5,6\n-1e308,5,6\n")
    assert "more than any trace lasts" in error_of(path).message


@pytest.mark.parametrize("bad", ["7,8,9", "7", "", ",8", "7,x"])
@pytest.mark.parametrize("at", [0, 149, 150, 299, 500])
def test_no_row_is_lost_around_a_bad_one_at_any_seam(tmp_path, monkeypatch, bad, at):
    monkeypatch.setattr("planner.workload.tables.CHUNK_ROWS", 150)
    monkeypatch.setattr("planner.workload.tables.EXACT_CHUNK_ROWS", 40)
    rows = [f"{i + 1},5" for i in range(500)]
    expected = [i + 1 for i in range(500)]
    path = write(tmp_path, "\n".join(["input_tokens,output_tokens", *rows[:at], bad, *rows[at:], "0,5"]))
    trace = read_trace(path, skip_bad_rows=True)
    assert trace.input_tokens.tolist() == expected
    assert trace.n_bad_rows == (2 if bad else 1)
    assert error_of(path).where.line == (at + 2 if bad else 502 + 1)
