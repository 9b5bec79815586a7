from __future__ import annotations

import pytest
from pydantic import ValidationError
from tests_support import REPO

from planner.errors import InputError, OutputExistsError
from planner.files.documents import did_you_mean, parse_document, validation_error
from planner.files.output import write_text
from planner.files.request import PlanRequest


def test_yaml_1_2_keeps_what_looks_like_a_time_or_a_switch():
    data = parse_document(b"a: 12:30:00\nb: on\nc: 'no'\nd: 1e3\ne: ~\n", name="x").data
    assert data == {"a": "12:30:00", "b": "on", "c": "no", "d": 1000.0, "e": None}


def test_every_field_knows_its_line():
    document = parse_document(b"a:\n  - b: 1\n    c: 2\n", name="x.yaml")
    assert str(document.where("a", 0, "c")) == "x.yaml:3:5, field a[0].c"
    assert str(document.where("a", 0, "missing")) == "x.yaml:2:5, field a[0].missing"


def test_json_and_yaml_are_told_apart_by_content():
    assert parse_document(b'\xef\xbb\xbf {"a": [1]}', name="x").data == {"a": [1]}


def test_a_deep_document_is_refused_and_not_a_crash():
    with pytest.raises(InputError, match="deeply"):
        parse_document(b"[" * 100_000, name="x")


def test_the_first_problem_is_told_and_the_others_counted():
    text = (REPO / "examples/request.yaml").read_bytes().replace(b"rate:", b"rat:").replace(b"catalog:", b"catalgo:")
    document = parse_document(text, name="x.yaml")
    with pytest.raises(ValidationError) as caught:
        PlanRequest.model_validate(document.data)
    error = validation_error(caught.value, PlanRequest, document)
    assert "'rat'" in error.message
    assert "Did you mean 'rate'" in error.hint
    assert "(1 more problem after this one.)" in error.hint


def test_did_you_mean_is_silent_when_nothing_is_near():
    assert did_you_mean("zzz", ["alpha", "beta"]) == ""
    assert did_you_mean("ALPHE", ["alpha", "beta"]) == "Did you mean 'alpha'?"


class TestOutput:
    def test_nothing_is_overwritten_unasked(self, tmp_path):
        path = tmp_path / "a.txt"
        write_text(path, "one", force=False)
        with pytest.raises(OutputExistsError, match="exists"):
            write_text(path, "two", force=False)
        assert path.read_text(encoding="utf-8") == "one"
        write_text(path, "two", force=True)
        assert path.read_text(encoding="utf-8") == "two"

    def test_a_failed_write_leaves_the_old_file_and_no_litter(self, tmp_path):
        path = tmp_path / "a.txt"
        write_text(path, "one", force=False)
        with pytest.raises(UnicodeEncodeError):
            write_text(path, "\ud800", force=True)
        assert path.read_text(encoding="utf-8") == "one"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]

    def test_the_mode_is_what_the_user_would_get(self, tmp_path):
        write_text(tmp_path / "ours", "x", force=False)
        (tmp_path / "theirs").write_text("x", encoding="utf-8")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="folder"):
            write_text(tmp_path, "x", force=True)
