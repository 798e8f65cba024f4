"""scripts/audit.py: a clean cohort is green, every planted leak is red."""

import csv
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from shared.apps.audit import audit as script
from shared.apps.audit import signals
from shared.apps.audit.rows import read_cohort
from shared.errors import DataError
from tests.support.documented import undocumented_in
from tests.support.tiny import write_case
from tests.support.tiny_patches import write_patch_data


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few trees: what is planted tells the label whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "TREES", 8)
        yield


def run(folder, *options, bundle="sscl_crc"):
    """The findings by check and item, and the exit status."""
    output = folder.parent / f"{folder.name}_audit"
    status = script.main([bundle, "--dataset_dir", str(folder), "--output", str(output), "--threads", "1", *options])
    with (output / "audit.csv").open(newline="") as file:
        return {(row["check"], row["item"]): row for row in csv.DictReader(file)}, status, output


def edit(folder, change):
    content = json.loads((folder / "datalist.json").read_text())
    change(content)
    (folder / "datalist.json").write_text(json.dumps(content))
    return content


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """24 patients with two patches each; nothing but the colour tells the label."""
    folder = tmp_path_factory.mktemp("patches") / "data"
    write_patch_data(folder, training=24, testing=4, each=2, side=48)

    def folds(content):
        for case in content["training"]:
            case["fold"] = int(case["patient"][1:]) // 2 % 3

    edit(folder, folds)
    return folder


@pytest.fixture
def copy(patches, tmp_path):
    return Path(shutil.copytree(patches, tmp_path / "data"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """26 patients with one modality each, the label at random."""
    folder = tmp_path_factory.mktemp("volumes") / "data"
    labels = np.random.default_rng(5).permutation(np.arange(26) % 2)
    cases = []
    for k, label in enumerate(labels.tolist()):
        case = write_case(folder, f"P{k:02}", label=label, seed=100 * k)
        cases.append({**case, "image": [Path(case["image"][0]).name], "mask": Path(case["mask"]).name, "fold": k % 3})
    content = {"modalities": ["T1"], "classes": ["no", "yes"], "training": cases, "testing": []}
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def cases(volumes, tmp_path):
    return Path(shutil.copytree(volumes, tmp_path / "data"))


def test_a_clean_cohort_is_nowhere_red(patches, volumes):
    for folder, bundle in ((patches, "sscl_crc"), (volumes, "ircl_mvi")):
        found, status, output = run(folder, "--strict", bundle=bundle)
        assert {row["status"] for row in found.values()} <= {"green", "amber"} and status == 0
        assert {check for check, _ in found} == {
            "patients",
            "near-duplicates",
            "names",
            "files",
            "dates",
            "acquisition",
        }
        for item in ("a patient in two parts or folds", "a group in two parts or folds"):
            assert found["patients", item]["status"] == "green"
        for item in ("files of the same bytes", "near-duplicates"):
            assert found["near-duplicates", item]["status"] == "green"
        section = json.loads((output / "sections/10_audit.json").read_text())
        content = json.loads((output / "audit.json").read_text())
        assert not undocumented_in(output, "Audit")
        assert section["status"] == content["status"] != "red" and len(section["tables"][0]["rows"]) == len(found)


def test_a_patient_in_two_parts_is_red(copy):
    edit(copy, lambda content: content["testing"][0].update(patient="P03"))
    found, status, _ = run(copy, "--strict")
    row = found["patients", "a patient in two parts or folds"]
    assert row["status"] == "red" and "P03 (fold 1, testing)" in row["found"] and status == 1
    assert run(copy)[1] == 0  # without --strict the exit status is 0


def test_a_group_in_two_folds_is_red_and_unlabelled_patches_are_not(copy):
    def change(content):
        for case in content["training"]:
            case["group"] = "family" if case["patient"] in ("P00", "P02") else case["patient"]
        content["unlabelled"][0]["patient"] = content["testing"][0]["patient"]

    edit(copy, change)
    found = run(copy)[0]
    assert found["patients", "a group in two parts or folds"]["status"] == "red"
    assert found["patients", "a patient in two parts or folds"]["status"] == "green"


def test_names_that_differ_in_spelling_are_told(copy):
    edit(copy, lambda content: content["testing"][0].update(patient="p-3"))
    row = run(copy)[0]["patients", "names that differ in spelling alone"]
    assert row["status"] == "green"
    edit(copy, lambda content: content["testing"][0].update(patient="p03"))
    row = run(copy)[0]["patients", "names that differ in spelling alone"]
    assert row["status"] == "amber" and "P03 (fold 1) = p03 (testing)" in row["found"]


def test_copies_are_red_across_patients_and_green_within_a_group(copy):
    content = json.loads((copy / "datalist.json").read_text())
    source = content["training"][5]
    Image.open(copy / source["image"]).save(copy / "copy.jpg", quality=95)
    shutil.copy(copy / content["training"][6]["image"], copy / "same.png")
    edit(copy, lambda c: c["testing"][0].update(image="copy.jpg") or c["testing"][1].update(image="same.png"))
    found, _, output = run(copy)
    near, same = (found["near-duplicates", item] for item in ("near-duplicates", "files of the same bytes"))
    assert near["status"] == same["status"] == "red"
    assert f"{source['image']} = copy.jpg" in near["found"] and "same.png" in same["found"]
    with (output / "near_duplicates.csv").open(newline="") as file:
        pairs = {(row["first"], row["other"], row["kind"]): row for row in csv.DictReader(file)}
    row = pairs[source["image"], "copy.jpg", "near-duplicate"]
    assert row["status"] == "red" and (row["first_part"], row["other_part"]) == ("fold 1", "testing")
    assert (output / "near_duplicates.png").is_file() and not undocumented_in(output, "Audit")

    def together(content):  # one group in one part: nothing leaks
        training, testing = content["training"], content["testing"]
        for case in (training[5], testing[0]):
            case["group"] = "A"
        for case in (training[6], testing[1]):
            case["group"] = "B"
        for case in training + testing:
            case.pop("fold", None)
        content["training"], content["testing"] = training + testing[:2], testing[2:]

    edit(copy, together)
    found = run(copy)[0]
    near, same = (found["near-duplicates", item] for item in ("near-duplicates", "files of the same bytes"))
    assert near["status"] == same["status"] == "green" and "pairs within a patient or group" in near["found"]


def test_a_copied_volume_is_red_also_with_another_gain_and_mask(cases):
    image = nib.load(cases / "P04_0.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 3 + 40, image.affine), cases / "P19_0.nii.gz")
    found = run(cases, bundle="ircl_mvi")[0]
    row = found["near-duplicates", "near-duplicates"]
    assert row["status"] == "red" and "P04 = P19" in row["found"]
    assert found["near-duplicates", "files of the same bytes"]["status"] == "green"


def label_of(folder):
    content = json.loads((folder / "datalist.json").read_text())
    return {case["patient"]: case["label"] for case in content["training"]}


def test_a_header_that_tells_the_label_is_red(cases):
    for patient, label in label_of(cases).items():
        path = cases / f"{patient}_0.nii.gz"
        image = nib.load(path)
        image.header["descrip"] = b"scanner B" if label else b"scanner A"
        nib.save(image, path)
    found = run(cases, bundle="ircl_mvi")[0]
    row = found["acquisition", "descrip"]
    assert row["status"] == "red" and float(row["auc"]) > 0.95 and row["rows"] == "26"


@pytest.mark.parametrize("place", ["table", "sidecar", "covariate"])
def test_a_scanner_that_tells_the_label_is_red_wherever_it_stands(cases, place):
    labels = label_of(cases)
    if place == "table":
        lines = [f"{patient},{1.5 + 1.5 * label}" for patient, label in labels.items()]
        (cases / "acquisition.csv").write_text("\n".join(["patient,field", *lines]))
    elif place == "sidecar":
        for patient, label in labels.items():
            content = {"field": 1.5 + 1.5 * label, "PatientAge": 40 + label}
            (cases / f"{patient}_0.json").write_text(json.dumps(content))
    else:
        edit(cases, lambda c: [x.update(covariates={"site": x["label"], "age": x["label"]}) for x in c["training"]])
    found = run(cases, bundle="ircl_mvi")[0]
    rows = {item: row for (check, item), row in found.items() if check == "acquisition"}
    assert rows["site" if place == "covariate" else "field"]["status"] == "red"
    assert not any("ge" in item.casefold() and "age" in item.casefold() for item in rows)  # the person's own


def test_dates_and_names_that_tell_the_label_are_red(cases):
    def rename(content):
        for k, case in enumerate(content["training"]):
            case["patient"] = f"{'B' if case['label'] else 'A'}{k:02}_{2010 + 5 * case['label']}03{k + 1:02}"

    edit(cases, rename)
    found = run(cases, bundle="ircl_mvi")[0]
    assert found["dates", "date in the patient's name"]["status"] == "red"
    assert found["names", "patient's name: text 1"]["status"] == "red"
    assert found["names", "patient's name: number 1"]["status"] != "red"


def test_order_time_and_size_that_tell_the_label(cases):
    def change(content):
        content["training"].sort(key=lambda case: case["label"])
        for case in content["training"]:
            image = nib.load(cases / case["image"][0])
            path = cases / f"{case['patient']}_0.nii"
            # stored without compression, of another type: the size says nothing of what is shown
            kind = np.float64 if case["label"] else np.float32
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(kind), image.affine), path)
            case["image"] = [path.name]
            os.utime(path, (1e9 + 1e6 * case["label"],) * 2)

    edit(cases, change)
    found = run(cases, bundle="ircl_mvi")[0]
    for item in ("place in the datalist", "time of the file", "size of the file"):
        assert found["files", item]["status"] == "red", item
    assert found["acquisition", "data type"]["status"] == "red"


def test_order_is_amber_where_folders_hold_one_class(copy):
    edit(copy, lambda content: content["training"].sort(key=lambda case: case["label"]))
    row = run(copy)[0]["files", "place in the datalist"]
    assert row["status"] == "amber" and "each folder holds one class" in row["found"]


def test_bad_input_is_refused_with_all_that_is_wrong(copy, tmp_path):
    with pytest.raises(SystemExit, match="no such dataset folder"):
        run(tmp_path / "nowhere")
    edit(copy, lambda c: c["training"][0].update(image="gone.png") or c["training"][1].update(label=3))
    with pytest.raises(SystemExit) as error:
        run(copy)
    assert "gone.png: file not found" in str(error.value) and "label must be 0 or 1, got 3" in str(error.value)
    (copy / "acquisition.csv").write_text("scanner\nA\n")
    edit(copy, lambda c: c["training"].__delitem__(slice(0, 2)))
    with pytest.raises(DataError, match="needs a column patient"):
        signals.acquisition_columns(read_cohort(copy))
