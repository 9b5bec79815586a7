"""Every trace format is told by its content and read into the same requests, at the right times."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planner.errors import InputError, UnsupportedFormatError
from planner.workload.formats import FORMATS
from planner.workload.read import ColumnMap, format_names, parse_columns, read_trace, resolve_trace

DATA = Path(__file__).resolve().parents[1] / "data" / "workload"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


# --- the real traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n_requests", "minutes", "mean_in", "mean_out", "max_in", "max_out", "sha256"),
    [
        ("azure_conv_2023", 19_366, 58.362, 1154.6974, 211.12594, 14_050, 1000, "2f1e5b666d4e3055"),
        ("azure_code_2023", 8_819, 57.266, 2047.8483, 27.88253, 7437, 1899, "54e9a6d2a4bd06ba"),
    ],
)
def test_azure_2023(name, n_requests, minutes, mean_in, mean_out, max_in, max_out, sha256):
    trace = read_trace(f"bundled:{name}")
    assert (trace.n_requests, trace.format_name, trace.n_bad_rows) == (n_requests, "azure", 0)
    assert trace.arrival_s[0] == 0
    assert trace.arrival_s[-1] / 60 == pytest.approx(minutes, abs=5e-4)
    assert trace.input_tokens.mean() == pytest.approx(mean_in, abs=1e-4)
    assert trace.output_tokens.mean() == pytest.approx(mean_out, abs=1e-5)
    assert (trace.input_tokens.max(), trace.output_tokens.max()) == (max_in, max_out)
    assert trace.sha256.startswith(sha256)
    assert trace.source == f"bundled:{name}"
    assert trace.input_tokens.dtype == trace.output_tokens.dtype == np.int64


def test_bundled_traces_equal_a_plain_reading_of_the_file():
    trace = read_trace("bundled:azure_code_2023")
    rows = [line.split(",") for line in resolve_trace("bundled:azure_code_2023").read_text().splitlines()[1:]]
    assert trace.input_tokens.tolist() == [int(row[1]) for row in rows]
    assert trace.output_tokens.tolist() == [int(row[2]) for row in rows]
    minutes = [int(row[0][11:13]) * 60 + int(row[0][14:16]) for row in rows]
    seconds = np.array([60 * minute + float(row[0][17:]) for minute, row in zip(minutes, rows, strict=True)])
    assert np.allclose(trace.arrival_s, seconds - seconds[0], atol=2e-6, rtol=0)


def test_mooncake_has_a_hash_per_512_tokens():
    path = DATA / "mooncake_conversation_200.jsonl"
    trace = read_trace(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (trace.n_requests, trace.format_name) == (200, "mooncake")
    assert trace.arrival_s.tolist() == [line["timestamp"] / 1000 for line in lines]
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 512
    assert np.array_equal(np.diff(trace.prefix.offsets), np.ceil(trace.input_tokens / 512))
    assert trace.prefix.hashes.tolist() == [block for line in lines for block in line["hash_ids"]]


def test_vidur_form_of_the_azure_trace_gives_the_same_requests():
    vidur, azure = read_trace(DATA / "vidur_splitwise.csv"), read_trace("bundled:azure_conv_2023")
    assert vidur.format_name == "vidur"
    assert np.allclose(vidur.arrival_s, azure.arrival_s[:10], atol=1e-6, rtol=0)
    assert vidur.input_tokens.tolist() == azure.input_tokens[:10].tolist()
    assert vidur.output_tokens.tolist() == azure.output_tokens[:10].tolist()


def test_burstgpt_layouts_differ_but_read_alike():
    old, new = read_trace(DATA / "burstgpt_v1.csv"), read_trace(DATA / "burstgpt_v2.csv")
    assert old.format_name == new.format_name == "burstgpt"
    assert old.arrival_s.tolist() == [0, 40, 113, 175]
    assert old.input_tokens.tolist() == [472, 1087, 417, 33]
    assert old.output_tokens.tolist() == [18, 230, 276, 410]
    assert new.arrival_s.tolist() == [0, 51, 90]
    assert new.input_tokens.tolist() == [906, 36, 100]
    assert new.output_tokens.tolist() == [446, 29, 50]


def test_burstgpt_failures_are_counted_apart_from_malformed_rows():
    for name in ("burstgpt_v1.csv", "burstgpt_v2.csv"):
        trace = read_trace(DATA / name)
        assert (trace.n_failed_requests, trace.n_bad_rows) == (1, 0)


def test_lengths_without_times():
    trace = read_trace(DATA / "sharegpt_lengths.csv")
    assert (trace.format_name, trace.has_arrivals) == ("lengths", False)
    assert trace.arrival_s.tolist() == [0, 0, 0]
    assert trace.input_tokens.tolist() == [1024, 17, 2500]


def test_splitwise_simulator(tmp_path):
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    trace = read_trace(write(tmp_path, header + "0,2,0,1.5,1,100,20\n1,2,0,2.25,1,300,40\n"))
    assert (trace.format_name, trace.arrival_s.tolist()) == ("splitwise", [0, 0.75])
    assert trace.input_tokens.tolist() == [100, 300]
    assert trace.output_tokens.tolist() == [20, 40]


def test_bailian_is_in_seconds_with_blocks_of_16(tmp_path):
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 40, "output_length": 9, "turn": 1}
    lines = [row | {"hash_ids": [1, 2, 3]}, row | {"timestamp": 62.0, "hash_ids": [1, 2, 4]}]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert (trace.format_name, trace.arrival_s.tolist()) == ("bailian", [0, 0.5])
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 16


# --- detection -------------------------------------------------------------------------------------------------------


def test_formats_have_distinct_names_and_every_one_is_read_by_a_test():
    names = [known.name for known in FORMATS]
    assert len(set(names)) == len(names)
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in format_names() if name != "generic")


def test_columns_are_found_by_name_in_any_order(tmp_path):
    trace = read_trace(
        write(tmp_path, "GeneratedTokens,NumImages,TIMESTAMP,ContextTokens\n7,2,2024-10-15 00:00:00,9\n")
    )
    assert (trace.format_name, trace.input_tokens[0], trace.output_tokens[0]) == ("azure", 9, 7)


def test_an_unknown_file_is_refused_with_its_columns_and_the_way_out(tmp_path):
    path = write(tmp_path, "when,prompt,answer\n2024-01-01,1,2\n")
    with pytest.raises(UnsupportedFormatError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert "when, prompt, answer" in message
    assert "--columns arrival=" in message
    assert all(known.name in message for known in FORMATS)


@pytest.mark.parametrize(
    "header",
    [
        "input_tokens,prompt_tokens,output_tokens",
        "input_len,output_len,output_tokens",
        "start_time,end_time,input_len,output_len",
    ],
)
def test_columns_that_could_mean_several_things_are_not_guessed(tmp_path, header):
    path = write(tmp_path, f"{header}\n{','.join('5' * len(header.split(',')))}\n")
    with pytest.raises(UnsupportedFormatError, match="not known"):
        read_trace(path)


def test_lengths_never_hide_a_time_column(tmp_path):
    path = write(
        tmp_path, "timestamp,prompt_tokens,completion_tokens\n2024-01-01 00:00:01,5,6\n2024-01-01 00:00:04,5,6\n"
    )
    trace = read_trace(path)
    assert (trace.format_name, trace.has_arrivals, trace.arrival_s.tolist()) == ("generic", True, [0, 3])


def test_insisting_on_a_format(tmp_path):
    assert read_trace(DATA / "vidur_splitwise.csv", format_name="lengths").has_arrivals is False
    with pytest.raises(UnsupportedFormatError, match="no column 'TIMESTAMP'"):
        read_trace(DATA / "vidur_splitwise.csv", format_name="azure")
    with pytest.raises(UnsupportedFormatError, match=r"not a trace format.*azure.*mooncake"):
        read_trace(DATA / "vidur_splitwise.csv", format_name="azzure")
    with pytest.raises(UnsupportedFormatError, match="mooncake is JSON lines, and the file is CSV"):
        read_trace(DATA / "vidur_splitwise.csv", format_name="mooncake")


# --- named columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "column", "unit", "expected_s"),
    [
        (("10", "12.5"), "when", ":s", 2.5),
        (("1700000000123", "1700000000623"), "when", ":ms", 0.5),
        (("1700000000000000", "1700000000250000"), "when", ":us", 0.25),
        (("5000000000", "6500000000"), "when", ":ns", 1.5),
        (("10", "1510"), "start_ms", "", 1.5),
        (("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01.009930+00:00"), "when", "", 1.0),
        (("2024-05-10T02:00:00Z", "2024-05-10T04:00:00.5+02:00"), "when", "", 0.5),
        (("2024-05-10 23:59:59.5", "2024-05-11 00:00:00"), "when", "", 0.5),
    ],
)
def test_times_in_every_unit(tmp_path, stamps, column, unit, expected_s):
    path = write(tmp_path, f"{column},a,b\n{stamps[0]},1,2\n{stamps[1]},3,4\n")
    trace = read_trace(path, columns=parse_columns(f"arrival={column}{unit},input=a,output=b"))
    assert trace.arrival_s.tolist() == pytest.approx([0, expected_s], abs=1e-6)


def test_a_number_whose_unit_would_be_a_guess_is_refused(tmp_path):
    path = write(tmp_path, "when,a,b\n0,1,2\n1000,3,4\n")
    with pytest.raises(InputError, match=r"does not tell their unit.*arrival=when:s"):
        read_trace(path, columns=ColumnMap("when", "a", "b"))


def test_named_columns_in_json_lines(tmp_path):
    text = '{"at": 2.5, "i": 10, "o": 20}\n\n{"at": 1.0, "i": 30, "o": 40}\n'
    trace = read_trace(write(tmp_path, text), columns=ColumnMap("at:s", "i", "o"))
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0, 1.5], [30, 10])


@pytest.mark.parametrize("text", ["input=a", "input=a,output=b,input=c", "in=a,output=b", "input,output=b", ""])
def test_parse_columns_refuses(text):
    with pytest.raises(InputError, match="arrival=COLUMN"):
        parse_columns(text)


def test_parquet(tmp_path):
    path = tmp_path / "trace.bin"
    frame = pd.DataFrame(
        {
            "at": pd.to_datetime(["2024-01-01 00:00:02", "2024-01-01 00:00:00.25"], format="ISO8601"),
            "prompt_tokens": [5, 6],
            "completion_tokens": [7, 8],
        }
    )
    frame.to_parquet(path)
    trace = read_trace(path, columns=ColumnMap("at", "prompt_tokens", "completion_tokens"))
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0, 1.75], [6, 5])
    azure = frame.rename(columns={"at": "TIMESTAMP", "prompt_tokens": "ContextTokens"})
    azure.rename(columns={"completion_tokens": "GeneratedTokens"}).to_parquet(path)
    assert read_trace(path).format_name == "azure"


def test_a_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "trace.parquet"
    pd.DataFrame({"input_tokens": [5, 0], "output_tokens": [7, 8]}).to_parquet(path)
    with pytest.raises(InputError, match="field input_tokens: Row 2: 0 is not"):
        read_trace(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "trace.parquet"
    pd.DataFrame({"input_tokens": [5], "output_tokens": [7]}).to_parquet(path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"gpuplan\[parquet\]"):
        read_trace(path)


# --- what files are like in the wild ---------------------------------------------------------------------------------


def test_gzip_is_told_by_content_and_hashed_as_it_lies_on_disk(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress(resolve_trace("bundled:azure_code_2023").read_bytes()))
    packed, plain = read_trace(path), read_trace("bundled:azure_code_2023")
    assert np.array_equal(packed.arrival_s, plain.arrival_s)
    assert np.array_equal(packed.input_tokens, plain.input_tokens)
    assert packed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != plain.sha256


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + AZURE_HEADER + "2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,7,8\n",
        AZURE_HEADER + "2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,7,8",
        (AZURE_HEADER + "2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,7,8\n").replace("\n", "\r\n"),
        "\n\n" + AZURE_HEADER + "\n2023-11-16 18:00:00,5,6\n\n  \n2023-11-16 18:00:01,7,8\n\n",
        (AZURE_HEADER + "2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,7,8\n").replace(",", ";"),
        (AZURE_HEADER + "2023-11-16 18:00:00,5,6\n2023-11-16 18:00:01,7,8\n").replace(",", "\t"),
        'TIMESTAMP,"ContextTokens",GeneratedTokens,"a,b"\n'
        '2023-11-16 18:00:00,5,"6","a\nb"\n2023-11-16 18:00:01,7,8,"c"\n',
        " TIMESTAMP, ContextTokens ,GeneratedTokens\n2023-11-16 18:00:00, 5,6.0\n2023-11-16 18:00:01,7 ,8\n",
    ],
    ids=["bom", "no last newline", "crlf", "blank lines", "semicolons", "tabs", "quotes", "spaces"],
)
def test_csv_dialects(tmp_path, text):
    trace = read_trace(write(tmp_path, text))
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist()) == (
        [0, 1],
        [5, 7],
        [6, 8],
    )


def test_bytes_that_are_not_utf8_matter_only_where_numbers_are_wanted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"input_tokens,output_tokens,user\n5,6,Mel\xe4nge\n")
    assert read_trace(path).n_requests == 1


def test_arrivals_are_sorted_stably_and_hashes_move_with_their_requests(tmp_path):
    lines = [
        {"timestamp": 3000, "input_length": 1000, "output_length": 1, "hash_ids": [1, 2]},
        {"timestamp": 1000, "input_length": 300, "output_length": 2, "hash_ids": [3]},
        {"timestamp": 3000, "input_length": 1500, "output_length": 3, "hash_ids": [4, 5, 6]},
        {"timestamp": 2000, "input_length": 10, "output_length": 4},
    ]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert trace.arrival_s.tolist() == [0, 1, 2, 2]
    assert trace.output_tokens.tolist() == [2, 4, 1, 3]
    assert trace.prefix is not None
    assert trace.prefix.offsets.tolist() == [0, 1, 1, 3, 6]
    assert trace.prefix.hashes.tolist() == [3, 1, 2, 4, 5, 6]


def test_ties_keep_the_order_of_the_file(tmp_path):
    rows = "".join(f"{7 if i else 9},{i + 1},1\n" for i in range(100))
    trace = read_trace(write(tmp_path, "at_s,input_tokens,output_tokens\n" + rows))
    assert trace.input_tokens.tolist() == [*range(2, 101), 1]


def test_mooncake_keys_with_another_block_size(tmp_path):
    lines = [{"timestamp": i, "input_length": 100, "output_length": 1, "hash_ids": [1, 2, 3, i]} for i in range(3, 9)]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 32


def test_large_files_are_read_in_chunks_without_a_seam(tmp_path, monkeypatch):
    whole = read_trace("bundled:azure_conv_2023")
    mooncake = read_trace(DATA / "mooncake_conversation_200.jsonl")
    monkeypatch.setattr("planner.workload.tables.CHUNK_ROWS", 997)
    monkeypatch.setattr("planner.workload.tables.EXACT_CHUNK_ROWS", 37)
    pieces = read_trace("bundled:azure_conv_2023")
    assert np.array_equal(whole.arrival_s, pieces.arrival_s)
    assert np.array_equal(whole.input_tokens, pieces.input_tokens)
    in_pieces = read_trace(DATA / "mooncake_conversation_200.jsonl").prefix
    assert mooncake.prefix is not None
    assert in_pieces is not None
    assert np.array_equal(mooncake.prefix.hashes, in_pieces.hashes)
    assert np.array_equal(mooncake.prefix.offsets, in_pieces.offsets)
