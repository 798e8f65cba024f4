"""Subgroups of predictions: columns from covariates, tables and masks; the files and the section."""

import csv
import json
import shutil

import numpy as np
import pytest
from ignite.engine import Engine

from shared.data.subgroups import read_subgroup_tables, subgroup_values
from shared.errors import DataError
from shared.handlers import SaveSubgroups
from shared.io import write_csv
from shared.reports import subgroups
from shared.reports.subgroups import _section, evaluated_subgroups
from tests.support.documented import undocumented_in
from tests.support.tiny import ball, save, write_case
from tests.support.tiny_patches import write_patch_data


def prepared(folder, count=48):
    """Patients with covariates and masks (links of two files: small and large), predictions that know nothing in B."""
    folder.mkdir()
    small, large = ball(radius=3), ball(radius=6)
    volumes = [save(folder / f"{name}.nii.gz", mask) for name, mask in (("small", small), ("large", large))]
    random, cases, rows = np.random.default_rng(0), [], []
    for k in range(count):
        label, site = k % 2, "AB"[k // 2 % 2]
        case = {"patient": f"P{k:02}", "image": [f"P{k:02}.nii.gz"], "label": label, "mask": f"P{k:02}_mask.nii.gz"}
        shutil.copy(volumes[k // 4 % 2], folder / case["mask"])
        cases.append({**case, "covariates": {"age": 30.0 + k}, "subgroups": {"sex": "FM"[k // 8 % 2]}})
        probability = 0.5 * label + 0.5 * random.random() if site == "A" else random.random()
        rows.append({"patient": case["patient"], "label": label, "probability": probability})
    (folder / "datalist.json").write_text(json.dumps({"training": [], "testing": cases}))
    write_csv(
        folder / "subgroups.csv", [{"patient": c["patient"], "site": "AB"[k // 2 % 2]} for k, c in enumerate(cases)]
    )
    write_csv(folder / "predictions.csv", rows)
    voxel = 3.0  # mm3
    return cases, {"small": small.sum() * voxel / 1000, "large": large.sum() * voxel / 1000}


def levels(rows, column):
    return {row["level"]: row for row in rows if row["column"] == column}


def test_columns_come_from_covariates_cases_tables_and_masks(tmp_path):
    cases, volume = prepared(tmp_path / "data")
    values = subgroup_values(cases, [case["patient"] for case in cases], tmp_path / "data")
    assert set(values) == {"age", "sex", "site", "tumour size (ml)"}
    assert values["age"]["P03"] == 33.0 and values["sex"]["P08"] == "M" and values["site"]["P02"] == "B"
    sizes = values["tumour size (ml)"]
    assert sizes["P00"] == pytest.approx(volume["small"]) and sizes["P04"] == pytest.approx(volume["large"])


def test_an_evaluation_leaves_table_picture_and_section(tmp_path):
    folder = tmp_path / "data"
    cases, _ = prepared(folder)
    rows = evaluated_subgroups(folder, cases, folder, bootstrap=300)
    site = levels(rows, "site")
    assert site["A"]["AUC"]["value"] == 1.0 and site["B"]["AUC"]["value"] < 0.8
    assert [row["n"] for row in levels(rows, "age").values()] == [16, 16, 16]
    assert all(row["few"] for row in levels(rows, "age").values()) and not site["A"]["few"]
    with (folder / "subgroup_metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) and float(table[0]["AUC_value"]) == rows[0]["AUC"]["value"]
    found = undocumented_in(folder, "ircl_mvi")
    assert not [path for path in found if path.startswith(("subgroup", "sections"))]
    section = json.loads((folder / "sections/20_subgroups.json").read_text())
    assert section["status"] == "amber" and any("site B" in text for text in section["text"])
    assert any(text.startswith("Fewer than 20 patients") for text in section["text"])
    assert (folder / section["pictures"][0]["file"]).is_file() and not section["patients"]


def test_a_difference_is_told_by_the_corrected_p(tmp_path):
    auc = {"value": 0.8, "low": 0.7, "high": 0.9}
    row = {"column": "site", "level": "A", "n": 30, "patients": 30, "positives": 9, "few": False, "reference": False}
    row |= dict.fromkeys(("AUC", "sensitivity", "specificity"), auc)
    (tmp_path / "subgroups.png").touch()
    for corrected, status in ((0.06, ""), (0.04, "amber")):
        difference = {"value": -0.1, "low": -0.2, "high": 0.0, "p": 0.03, "p_holm": corrected}
        _section(tmp_path, [row | {"difference": difference}], "0.5")
        found = json.loads((tmp_path / "sections/20_subgroups.json").read_text())
        assert found["status"] == status and any("site A" in text for text in found["text"]) is (status == "amber")


def test_a_table_of_patients_tells_of_their_images_and_leaves_what_the_datalist_says_where_it_is_empty(tmp_path):
    write_csv(tmp_path / "subgroups.csv", [{"patient": "P0", "site": "A"}, {"patient": "P1", "site": ""}])
    cases = [{"patient": "P0"}, {"patient": "P1", "subgroups": {"site": "B"}}]
    found = subgroup_values(cases, ["0.png", "1.png"], tmp_path)
    assert found == {"site": {"0.png": "A", "1.png": "B"}}


def test_rows_of_a_group_are_drawn_together(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(subgroups, "write_subgroups", lambda *_, **options: given.update(options) or [])
    rows = [{"patient": f"P{k}", "group": f"G{k // 2}", "label": k % 2, "probability": 0.5} for k in range(4)]
    write_csv(tmp_path / "predictions.csv", rows)
    evaluated_subgroups(tmp_path, [{"patient": f"P{k}"} for k in range(4)], tmp_path)
    assert given["groups"] == ["G0", "G0", "G1", "G1"] and given["patients"] is None


def test_without_a_column_that_divides_nothing_is_left(tmp_path):
    folder = tmp_path / "data"
    cases, _ = prepared(folder)
    evaluated_subgroups(folder, cases, folder, bootstrap=20)
    (folder / "subgroups.csv").unlink()
    bare = [{"patient": case["patient"], "image": case["image"]} for case in cases]
    assert evaluated_subgroups(folder, bare, folder, bootstrap=20) == []
    assert not (folder / "sections/20_subgroups.json").exists() and not (folder / "subgroups.png").exists()


def test_an_evaluation_without_labels_leaves_none_of_an_earlier_one(tmp_path):
    folder = tmp_path / "data"
    cases, _ = prepared(folder)
    evaluated_subgroups(folder, cases, folder, bootstrap=20)
    write_csv(folder / "predictions.csv", [{"patient": c["patient"], "label": "", "probability": 0.5} for c in cases])
    assert evaluated_subgroups(folder, cases, folder, bootstrap=20) == []
    assert not (folder / "subgroup_metrics.csv").exists() and not (folder / "sections/20_subgroups.json").exists()


def test_patches_have_their_share_inside_and_patients_are_drawn_whole(tmp_path):
    from PIL import Image

    content = write_patch_data(tmp_path, training=8, testing=8, each=3)
    rows = []
    for k, case in enumerate(content["testing"]):
        mask = np.zeros((32, 32), np.uint8)
        mask[: 2 * k] = 255
        Image.fromarray(mask).save(tmp_path / f"mask{k}.png")
        case["mask"] = f"mask{k}.png"
        rows.append({"image": case["image"], "patient": case["patient"], "label": case["label"], "probability": k / 24})
    write_csv(tmp_path / "predictions.csv", rows)
    found = evaluated_subgroups(tmp_path, content["testing"], tmp_path, bootstrap=50)
    thirds = levels(found, "tumour size (share of the patch)")
    assert sum(row["n"] for row in thirds.values()) == 24 and sum(row["patients"] for row in thirds.values()) >= 8


def test_tables_that_cannot_be_used_are_refused_at_once(tmp_path):
    (tmp_path / "subgroups.csv").write_text("patient,site\nP1,A\nP1,B\n")
    (tmp_path / "acquisition.csv").write_text("scanner\nX\n")
    with pytest.raises(DataError) as error:
        read_subgroup_tables(tmp_path)
    assert "P1 stands in it twice" in str(error.value) and "needs a column patient (or image)" in str(error.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("patient,site\nP00,A\nP00,B\n", "P00 stands in it twice"),
        ('patient,site\nP00,"A\n', "a quotation mark in row 2"),
        ("site\nA\n", "needs a column patient"),
    ],
)
def test_an_evaluation_is_refused_before_anything_is_predicted(tmp_path, table, message):
    folder = tmp_path / "data"
    cases, _ = prepared(folder)
    (folder / "subgroups.csv").unlink()
    (folder / "acquisition.csv").write_text(table)
    predicted = []
    engine = Engine(lambda engine, batch: predicted.append(batch))
    SaveSubgroups(folder, cases, folder).attach(engine)
    with pytest.raises(DataError, match=message):
        engine.run([1])
    assert not predicted


def test_a_table_may_name_images_and_more_patients_than_are_evaluated(tmp_path):
    cases = [{"patient": "P1", "image": str(tmp_path / "a/1.png")}]
    engine = Engine(lambda engine, batch: None)
    SaveSubgroups(tmp_path, cases, tmp_path).started(engine)
    # the last is of patients in another section or fold
    for table in ("image,stain\na/1.png,2\n", "patient,site\nP0,A\nP1,B\n", "patient,site\nP0,A\n"):
        (tmp_path / "subgroups.csv").write_text(table)
        SaveSubgroups(tmp_path, cases, tmp_path).started(engine)


def test_a_mask_that_cannot_be_read_is_not_known(tmp_path):
    case = write_case(tmp_path, "P1")
    (tmp_path / "broken.nii.gz").write_bytes(b"no")
    cases = [{**case, "mask": case["mask"]}, {"patient": "P2", "image": case["image"], "mask": "broken.nii.gz"}]
    sizes = subgroup_values(cases, ["P1", "P2"], tmp_path)["tumour size (ml)"]
    assert sizes["P1"] > 0 and sizes["P2"] is None


def test_a_table_of_images_gives_columns_of_patients_where_these_agree(tmp_path):
    (tmp_path / "acquisition.csv").write_text(
        "patient,modality,site,echo_time_ms,kernel\nP1,T1,1,1.2,\nP1,T1V,1,2.4,\nP2,T1,2,1.2,\nP2,T1V,2,1.2,\n"
    )
    own = {"site": {"P1": 1.0, "P2": 2.0}, "kernel": {"P1": None, "P2": None}}
    assert read_subgroup_tables(tmp_path) == own
    each = {"T1: echo_time_ms": {"P1": 1.2, "P2": 1.2}, "T1V: echo_time_ms": {"P1": 2.4, "P2": 1.2}}
    assert read_subgroup_tables(tmp_path, by_modality=True) == own | each
    (tmp_path / "acquisition.csv").write_text("patient,modality,site\nP1,T1,1\nP1,T1,1\n")
    with pytest.raises(DataError, match="P1 T1 stands in it twice"):
        read_subgroup_tables(tmp_path)
    (tmp_path / "acquisition.csv").write_text("patient,modality\nP1,MR\nP2,CT\n")  # the user's own
    assert read_subgroup_tables(tmp_path, by_modality=True) == {"modality": {"P1": "MR", "P2": "CT"}}
    header = "patient,modality,scanner,echo_time_ms,slice_step_mm"  # the preparation's
    (tmp_path / "acquisition.csv").write_text(f"{header}\nP1,T1,1,9,3\nP1,T2,1,9,3\nP2,T1,2,9,4\nP2,T2,2,9,4\n")
    assert list(read_subgroup_tables(tmp_path)) == ["scanner"]
    (tmp_path / "subgroups.csv").write_text("patient,sex\nP1,f\n")
    assert list(read_subgroup_tables(tmp_path)) == ["sex", "scanner"]
    (tmp_path / "subgroups.csv").unlink()
    assert len(read_subgroup_tables(tmp_path, by_modality=True)) == 3
