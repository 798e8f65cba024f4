"""Tables and names as people write them, from a hospital's folder to a datalist."""

import json
import shutil
import unicodedata

import pytest

from shared.data import Datalist, cases_for_inference
from tests.scripts.test_prepare_scripts import LABELS, Hospital, hospital, save


@pytest.fixture
def cohort(tmp_path):
    return Hospital(tmp_path)


def test_which_value_became_which_class_is_told(cohort, capsys):
    assert cohort.run(*LABELS, "--classes", "MVI-,MVI+") == 0
    said = capsys.readouterr().out
    told = "'M0' (4) -> 0, MVI-; 'M1' (3), 'M2' (1) -> 1, MVI+ ('M0' is the only other value)"
    assert f"column 'MVI': {told}" in said
    assert json.loads((cohort.output / "manifest.json").read_text())["labels"] == {"M0": 0, "M1": 1, "M2": 1}


@pytest.mark.parametrize("odd", ["Mx", "M 1", "unknown"])
def test_an_unexpected_value_is_refused_and_nothing_is_written(cohort, capsys, odd):
    cohort.rows[0]["MVI"] = odd
    assert cohort.run(*LABELS) == 2
    said = capsys.readouterr().err
    assert "'M0' (3 patients: P2, P4, P6)" in said and f"{odd!r} (1 patient: P0)" in said
    assert not cohort.output.exists()
    assert cohort.run(*LABELS, "--negative", "M0") == 2
    assert f"P0: label {odd!r} is neither among --positive M1,M2 nor --negative M0" in capsys.readouterr().err
    # to predict a patient nobody needs the label
    assert cohort.run(*LABELS, "--negative", "M0", "--inference") == 0
    assert "column 'MVI': 7 labels read; P0: label" in capsys.readouterr().out
    assert [case.get("label") for case in cases_for_inference(cohort.output)] == [None, 1, 0, 1, 0, 1, 0, 1]


def test_numbers_are_numbers_however_they_are_written(cohort):
    for number, row in enumerate(cohort.rows):
        row["MVI"] = ("0", "1", "0.0", "1.0", "00", "01", "0", "1")[number]
        row["test"] = "1.0" if number > 5 else "0.0"
    assert cohort.run("--label-column", "MVI", "--positive", "1", "--test-column", "test", "--folds", "0") == 0
    data = Datalist(cohort.output)
    assert {case["patient"]: case["label"] for case in data.training + data.testing} == {
        f"P{number}": number % 2 for number in range(8)
    }
    assert [case["patient"] for case in data.testing] == ["P6", "P7"]


def test_thousands_are_refused_with_column_and_patient(cohort, capsys):
    for row, afp in zip(cohort.rows, ["12", '"1,234"', "845", '"12,500"', "3.4", "<2", "", "7"], strict=True):
        row["afp"] = afp
    assert cohort.run(*LABELS, "--covariates", "afp") == 2
    said = capsys.readouterr().err
    assert "P1: covariate 'afp' may mean 1234 or 1.234, got '1,234'" in said
    assert "P3: covariate 'afp' may mean 12500 or 12.500" in said and "P5: covariate 'afp' must be a number" in said
    assert "4 problems" not in said and "3 problems" in said and not cohort.output.exists()
    for row, afp in zip(cohort.rows, ["12", '"1,234"', "845", '"0,5"', "3", "2", "", "inf"], strict=True):
        row["afp"] = afp
    cohort.rows[7]["afp"] = "nan"
    assert cohort.run(*LABELS, "--covariates", "afp", "--folds", "0") == 0
    found = {case["patient"]: case.get("covariates", {}).get("afp") for case in Datalist(cohort.output).training}
    assert list(found.values()) == [12, 1.234, 845, 0.5, 3, 2, None, None]
    assert "covariate 'afp' is missing for 2 patients: P6, P7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoding", "flat"), [("utf-8", False), ("utf-16", True), ("utf-16-le", False), ("cp1252", True)]
)
def test_one_name_composed_in_the_table_and_not_on_the_disk(tmp_path, capsys, encoding, flat):
    names = ["Müller", "José", "P3", "P4"]
    for name in names:
        there = unicodedata.normalize("NFD", name)
        save(tmp_path / "in" / (f"{there}_t1.nii.gz" if flat else f"{there}/{there}_t1.nii.gz"))
    rows = "".join(f"{name};{number % 2};;\r\n" for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(f"patient;label;;\r\n{rows};;;\r\n", encoding=encoding, newline="")
    common = [str(tmp_path / "in"), str(tmp_path / "t.csv"), "--folds", "0", "--modalities", "T1", "--output"]
    assert hospital.main([*common, str(tmp_path / "out")]) == 0
    data = Datalist(tmp_path / "out")
    assert sorted(case["patient"] for case in data.training) == sorted(names)
    assert all(case["image"][0].endswith(f"/{case['patient']}/t1.nii.gz") for case in data.training)
    sources = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]
    assert any(source.startswith(unicodedata.normalize("NFD", "Müller")) for source in sources)
    assert ("read as Windows-1252" in capsys.readouterr().out) == (encoding == "cp1252")


def test_hints_say_why_two_names_differ(cohort, capsys):
    for number, name in enumerate(("P\u00a00", "P001", "P2.", "PЗ")):
        cohort.rows[number]["patient"] = name
    assert cohort.run(*LABELS) == 2
    said = capsys.readouterr().err
    for line in (
        "P\u00a00: is in {table} and has no file in {folder}; 'P0' looks alike, the difference: a non-breaking space",
        "P001: is in {table} and has no file in {folder}; 'P1' looks alike, the difference: leading zeros",
        "P1: has files and no row in {table}; 'P001' looks alike, the difference: leading zeros",
        "P2: has files and no row in {table}; 'P2.' looks alike, the difference: a space or a dot at an end",
        "P3: has files and no row in {table}\n",
    ):
        assert line.format(table=cohort.table, folder=cohort.folder) in said


def test_names_that_differ_in_capitals_only_are_told(cohort, capsys):
    cohort.rows[0]["patient"], cohort.rows[1]["patient"] = "p0", "p1"
    assert cohort.run(*LABELS) == 0
    assert "2 patients' files have other capitals than the table, as P0 for p0; the table's are kept" in (
        capsys.readouterr().out
    )
    cohort.rows[1]["patient"] = "P0"
    assert cohort.run(*LABELS) == 2
    assert "p0 and P0 differ in capitals only (rows 2 and 3 of the label table)" in capsys.readouterr().err
    (cohort.folder / "p0").mkdir()
    shutil.copy(cohort.folder / "P1" / "P1_T1.nii.gz", cohort.folder / "p0" / "t1.nii.gz")
    cohort.rows[1]["patient"] = "P1"
    assert cohort.run(*LABELS) == 2
    assert f"P0 and p0 in {cohort.folder} differ in capitals only" in capsys.readouterr().err
    assert cohort.run("--inference", labels=False) == 2
    assert f"P0 and p0 in {cohort.folder} differ in capitals only" in capsys.readouterr().err
