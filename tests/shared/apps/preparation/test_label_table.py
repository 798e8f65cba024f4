"""The label table of a preparation script: whole columns, by the table's own delimiter and encoding."""

import argparse

import pytest

from shared.apps.preparation.label_table import read_label_table


@pytest.fixture
def read(tmp_path):
    def run(content, encoding="utf-8", **more):
        path = tmp_path / "labels.csv"
        path.write_bytes(content.encode(encoding))
        options = {"labels": path, "patient_column": "id", "label_column": "label", "positive": [], "negative": []}
        options |= {"covariates": [], "test_column": None, "inference": False, "classes": ["no", "yes"]}
        return read_label_table(argparse.Namespace(**options | more))

    return run


def test_what_is_known_of_each_patient(read):
    found = read("id;label;age;test\nA;1;61,5;yes\nB;0.0;;0\nC;NA;7;1.0\n", covariates=["age"], test_column="test")
    assert found.patients == {
        "A": {"label": 1, "covariates": {"age": 61.5}, "test": True},
        "B": {"label": 0, "test": False},
        "C": {"covariates": {"age": 7.0}, "test": True},
    }
    assert found.unlabelled == {"C": "column 'label' is empty (it holds 'NA'; name that value where it is a class)"}
    assert not found.problems and not found.wrong and found.values == {"1": 1, "0.0": 0}
    assert found.told == ["column 'label': '0.0' (1) -> 0, no; '1' (1) -> 1, yes"]


def test_the_delimiter_speaks_for_the_decimal_sign(read):
    rows = "id;label;afp\nA;1;1.234\nB;0;2.345\n"
    found = read(rows, covariates=["afp"])
    assert list(found.wrong) == ["A", "B"] and "covariates" not in found.patients["A"]
    assert found.wrong["A"] == [
        "A: covariate 'afp' may mean 1234 or 1.234, got '1.234'; write 1234 or 1.2340, without thousands separators"
    ]
    assert read(rows.replace(";", "\t"), covariates=["afp"]).patients["B"]["covariates"] == {"afp": 2.345}


def test_sections_and_encodings_that_are_odd_are_told(read):
    found = read("id,label,test\nÄ,1,perhaps\nB,0,\n", "cp1252", test_column="test")
    assert found.wrong == {"Ä": ["Ä: column 'test' must be 1 or 0, got 'perhaps'"]}
    assert found.told[0].endswith("labels.csv: read as Windows-1252, as it is no UTF-8")
    assert found.patients["B"]["test"] is False


def test_labels_of_patients_to_predict_need_not_be_read(read):
    found = read("id,label\nA,M1\nB,Mx\nC,M0\n", positive=["M1", "M2"], inference=True)
    assert not found.problems and all("label" not in patient for patient in found.patients.values())
    assert found.told[0].startswith("column 'label': 0 labels read; column 'label' holds several values beside")
    assert read("id\nA\n", inference=True).patients == {"A": {}}
