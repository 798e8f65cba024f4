import csv
import logging

import numpy as np
import pytest

from shared.apps.baselines.population_table import idh_label, read_population
from shared.errors import DataError

META = ["ID", "Sex", "Age at MRI", "WHO CNS Grade", "IDH"]


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def tables(tmp_path):
    """Four patients; the metadata is in another order and knows a fifth."""

    def make(features=None, metadata=None):
        features = features or [
            ["ID", "Image", "diagnostics_Size", "volume", "texture", "always"],
            ["P3", "a.nii", "1", "1e10", "0.5", "7"],
            ["P1", "b.nii", "2", "2e10", "0.25", "7"],
            ["P2", "c.nii", "3", "3e10", "-1", "7"],
            ["P4", "d.nii", "4", "4e10", "2", "7"],
        ]
        metadata = metadata or [
            META,
            ["P1", "M", "66", "4", "wildtype"],
            ["P2", "F", "31.5", "2", "IDH1 p.R132H"],
            ["P3", "F", "", "3", "mutated (NOS)"],
            ["P4", "M", "70", "4", ""],
            ["P5", "M", "50", "4", "wildtype"],
        ]
        return write(tmp_path / "features.csv", features), write(tmp_path / "metadata.csv", metadata)

    return make


def test_joins_by_patient_and_says_what_it_leaves_out(tables, caplog):
    with caplog.at_level(logging.INFO):
        table = read_population(*tables())
    assert table.patients == ("P3", "P1", "P2") and table.labels.tolist() == [1, 0, 1]
    assert table.feature_names == ("volume", "texture")
    np.testing.assert_array_equal(table.features, [[1e10, 0.5], [2e10, 0.25], [3e10, -1]])
    assert table.covariate_names == ("age", "sex") and table.grade.tolist() == [3, 4, 2]
    np.testing.assert_array_equal(table.covariates, [[np.nan, 0], [66, 1], [31.5, 0]])
    np.testing.assert_array_equal(table.covariate("grade", "sex"), [[3, 0], [4, 1], [2, 0]])
    for line in (
        "1 column without numbers left out: Image",
        "1 feature the same for all patients left out: always",
        "1 patients have no features",
        "1 patients have no label in 'IDH'",
    ):
        assert line in caplog.text


def test_without_labels_everybody_stays(tables):
    table = read_population(*tables(), label_column=None, grade_column=None, covariates={})
    assert table.patients == ("P3", "P1", "P2", "P4") and set(table.labels.tolist()) == {-1}
    assert np.isnan(table.grade).all() and table.covariates.shape == (4, 0)


def test_features_by_prefix(tables):
    table = read_population(*tables())
    np.testing.assert_array_equal(table.named("tex")[:, 0], table.features[:, 1])
    with pytest.raises(DataError, match="no feature begins with 'u_brain'; the first is 'volume'"):
        table.named("u_brain")


def test_all_problems_at_once(tables):
    features = [
        ["ID", "volume", "hole", "empty"],
        ["P1", "1", "0.5", ""],
        ["P2", "2", "nan", ""],
        ["P2", "2", "0.1", ""],
        ["P9", "3", "inf", ""],
    ]
    metadata = [META, ["P1", "M", "old", "4", "maybe"], ["P2", "F", "30", "2", "mutated"], ["P1", "M", "1", "4", "0"]]
    with pytest.raises(DataError) as error:
        read_population(*tables(features, metadata))
    text = str(error.value)
    for part in (
        "features.csv: P2 appears 2 times (rows 3, 4)",
        "metadata.csv: P1 appears 2 times (rows 2, 4)",
        "metadata.csv: no row of P9, who has features",
        "feature 'hole' is no finite number for P2, P9",
        "feature 'empty' is no finite number for all patients",
    ):
        assert part in text
    metadata = [META, ["P1", "M", "old", "4", "maybe"], *[[f"P{i}", "F", "30", "2", "mutated"] for i in (2, 3, 4)]]
    with pytest.raises(DataError) as error:
        read_population(*tables(metadata=metadata))
    assert "IDH of P1 is 'maybe'; write wildtype, mutated" in str(error.value)
    assert "Age at MRI must be a number, F or M, or empty; not so: P1 ('old')" in str(error.value)


def test_names_and_numbers_as_people_write_them(tables, caplog):
    metadata = [
        META,
        ["Mu\u0308ller", "M", "66,5", "4", "wildtype"],
        ["P2", "F", "1,234", "2", "WT"],
        ["P4", "M", "", "", "1"],
    ]
    features = [["ID", "volume"], ["M\u00fcller", "1.5"], ["P2", "2.345"], ["P4", "3"]]
    with caplog.at_level(logging.INFO):
        table = read_population(*tables(features, metadata))
    assert table.patients == ("Müller", "P2", "P4") and table.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(table.covariate("age")[:, 0], [66.5, 1.234, np.nan])
    np.testing.assert_array_equal(table.features[:, 0], [1.5, 2.345, 3])
    assert "column 'IDH': 'wildtype' (1), 'WT' (1) -> 0, wild type; '1' (1) -> 1, mutated" in caplog.text


def test_thousands_and_names_that_look_alike_are_refused(tables):
    features = [
        ["ID", "volume", "all"],
        ["P1", "12", "1,234"],
        ["P2", "1.234", "2,345"],
        ["P4", "845", "3,456"],
        ["p4", "1", "4,567"],
    ]
    metadata = [META, ["P1", "M", "66", "4", "wildtype"], ["P02", "F", "1,234", "2", "WT"], ["P4", "M", "", "", "1"]]
    with pytest.raises(DataError) as error:
        read_population(*tables(features, metadata))
    text = str(error.value)
    for part in (
        "features.csv: P2: feature 'volume' may mean 1234 or 1.234, got '1.234'",
        "features.csv: P1: feature 'all' may mean 1234 or 1.234, got '1,234'",
        "features.csv: P4 and p4 differ in capitals only",
        "no row of P2, p4, who have features",
        "; 'P02' looks alike, the difference: leading zeros",
    ):
        assert part in text
    features = [["ID", "volume"], ["P1", "1.5"], ["P2", "2.345"], ["P4", "3"]]
    metadata = [
        META,
        ["P1", "M", "66.123", "4", "wildtype"],
        ["P2", "F", "31.456", "2", "WT"],
        ["P4", "M", "", "", "1"],
    ]
    paths = tables(features, metadata)
    assert read_population(*paths).covariate("age")[0, 0] == 66.123
    paths[1].write_text(paths[1].read_text().replace(",", ";"))
    with pytest.raises(DataError, match="P1: Age at MRI may mean 66123"):
        read_population(*paths)
    paths = tables([["ID", "volume"], ["P1", "1.234"], ["P2", "2.345"], ["P4", "3.456"]], metadata)
    assert read_population(*paths).features[0, 0] == 1.234
    paths[0].write_text(paths[0].read_text().replace(",", ";"))
    with pytest.raises(DataError, match="P1: feature 'volume' may mean 1234"):
        read_population(*paths)
    metadata = [
        META,
        ["P1", "M", "66", "4", "wildtype"],
        ["P2", "F", "1,234", "2", "WT"],
        ["P3", "F", "", "", "1"],
        ["P4", "F", "", "", "1"],
    ]
    with pytest.raises(DataError, match=r"metadata\.csv: P2: Age at MRI may mean 1234 or 1\.234, got '1,234'"):
        read_population(*tables(metadata=metadata))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_column": "patient"}, "features.csv: no column 'patient'; its columns are ID, Image"),
        ({"label_column": "IDH1"}, "metadata.csv: no column 'IDH1'; its columns are ID, Sex"),
        ({"covariates": {"age": "Age"}}, "metadata.csv: no column 'Age'"),
        ({"exclude": ("vol", "tex", "alw", "dia")}, "no column holds a feature"),
        ({"exclude": ("vol", "tex", "dia")}, "all 1 features are the same"),
    ],
)
def test_names_what_is_missing(tables, options, message):
    with pytest.raises(DataError, match=message):
        read_population(*tables(), **options)


@pytest.mark.parametrize(
    "text", ["IDH1 p.R132C", "IDH2 p.Arg172Trp", "IDH2 p.R172K", "IDH1 p.Arg132His", "Mutant", "1"]
)
def test_mutations(text):
    assert idh_label(text) == 1


@pytest.mark.parametrize("text", ["WT", "IDH-wildtype", "IDH wild-type", "0"])
def test_wild_types(text):
    assert idh_label(text) == 0


@pytest.mark.parametrize("text", ["", "NA", "unknown", "?", "-", "indeterminate"])
def test_unknown(text):
    assert idh_label(text) is None


@pytest.mark.parametrize("text", ["2", "EGFR mutated", "R132", "wild"])
def test_anything_else_is_no_label(text):
    if text == "R132":
        assert idh_label("IDH1 " + text) == 1
    with pytest.raises(ValueError, match=text):
        idh_label(text)
