"""The datalist reader: what it hands out, and the message of every rule it checks."""

import copy
import gzip
import json
import logging
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data import Datalist, InferenceDatalist, cases_for_inference
from shared.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


def save(path, shape=(6, 5, 4), spacing=1.0, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing] * min(3, len(shape)) + [1.0] * (4 - min(3, len(shape))))
    nib.save(nib.Nifti1Image(np.zeros(shape, dtype), affine), path)


class Folder:
    """A prepared folder with ``content`` as its datalist, to be spoilt by a test."""

    def __init__(self, root, patients=8, testing=2):
        self.root = root
        cases = []
        for row in range(patients + testing):
            name = f"P{row}"
            for file in ("t1.nii.gz", "t2.nii.gz", "mask.nii.gz"):
                save(root / name / file)
            cases.append(
                {
                    "patient": name,
                    "image": [f"{name}/t1.nii.gz", f"{name}/t2.nii.gz"],
                    "mask": f"{name}/mask.nii.gz",
                    "label": row % 2,
                    "fold": row // 2 % 4,
                    "covariates": {"age": 40.0 + row},
                }
            )
        for case in cases[patients:]:
            del case["fold"]
        self.content = {"modalities": ["T1", "T2"], "training": cases[:patients], "testing": cases[patients:]}

    def read(self, content=None, **options):
        content = self.content if content is None else content
        (self.root / "datalist.json").write_text(json.dumps(content))
        return Datalist(self.root, **options)

    def problems(self, content=None, **options):
        with pytest.raises(DataError) as caught:
            self.read(content, **options)
        return caught.value.problems


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_two_spellings_of_one_name_are_one_patient(folder):
    folder.content["training"][0]["patient"] = "M\u00fcller"
    folder.content["testing"][0]["patient"] = "Mu\u0308ller"
    assert folder.problems() == ["Müller: is in the training and in the testing section; keep one"]


def test_fold_splits_the_training_section(folder):
    data = folder.read(fold=1, covariates=["age"], num_modalities=2)
    assert [case["patient"] for case in data.validation] == ["P2", "P3"]
    assert [case["patient"] for case in data.training] == ["P0", "P1", "P4", "P5", "P6", "P7"]
    assert [case["patient"] for case in data.testing] == ["P8", "P9"]
    assert data.modalities == ["T1", "T2"] and data.classes == ["0", "1"]
    case = data.training[0]
    assert case["image"] == [str(folder.root / "P0/t1.nii.gz"), str(folder.root / "P0/t2.nii.gz")]
    assert (
        case["mask"] == str(folder.root / "P0/mask.nii.gz") and case["label"] == 0 and case["covariates"]["age"] == 40
    )


def test_every_case_is_validated_once_over_all_folds(folder):
    held = [case["patient"] for fold in range(4) for case in folder.read(fold=fold).validation]
    assert sorted(held) == [f"P{row}" for row in range(8)]


def test_without_a_fold_the_testing_section_validates(folder, caplog):
    data = folder.read()
    assert len(data.training) == 8 and data.validation == data.testing and not caplog.records


def test_without_fold_and_testing_the_training_cases_validate_with_a_warning(folder, caplog):
    folder.content["testing"] = []
    data = folder.read()
    assert data.validation == data.training and "optimistic" in caplog.text


def test_testing_cases_without_labels_do_not_validate(folder, caplog):
    for case in folder.content["testing"]:
        del case["label"]
    data = folder.read()
    assert data.validation == data.training and len(data.testing) == 2 and "optimistic" in caplog.text


def test_a_single_path_is_one_modality_and_a_mask_is_optional(folder):
    for case in folder.content["training"] + folder.content["testing"]:
        case["image"] = case["image"][0]
        del case["mask"]
    del folder.content["modalities"]
    data = folder.read(num_modalities=1)
    assert data.training[0]["image"] == [str(folder.root / "P0/t1.nii.gz")] and "mask" not in data.training[0]
    assert len(data.modalities) == 1


# --- some modalities of many --------------------------------------------------------------------------------------


def files(data, row=0):
    return [Path(path).name for path in data.training[row]["image"]]


def test_modalities_are_taken_by_name_in_the_order_asked_for(folder):
    assert files(folder.read()) == ["t1.nii.gz", "t2.nii.gz"]
    for names, expected in ((["t2"], ["t2.nii.gz"]), (["T2", "T1"], ["t2.nii.gz", "t1.nii.gz"])):
        data = folder.read(use_modalities=names, num_modalities=len(names))
        assert files(data) == expected and data.modalities == [name.upper() for name in names]
    (folder.root / "P3/t1.nii.gz").unlink()  # of a modality that is not taken
    assert len(folder.read(use_modalities=["T2"]).training) == 8
    folder.content["training"][3]["image"] = ["P3/t2.nii.gz"]  # which of the two it is, cannot be known
    assert folder.problems(use_modalities=["T2"])[0].startswith("P3: has 1 images, 2 are expected")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (["DWI", "T1"], "use_modalities names DWI; its modalities are T1, T2: name some of them, or leave it out"),
        ("T1", "use_modalities must list names of modalities, each once, got 'T1'; its modalities are T1, T2"),
        ([], "use_modalities must list names of modalities, each once, got []"),
        (["T1", "t1"], "use_modalities must list names of modalities, each once, got ['T1', 't1']"),
        ([1], "use_modalities must list names of modalities, each once, got [1]"),
    ],
)
def test_modalities_that_cannot_be_taken_are_one_clear_error(folder, use, message):
    (problem,) = folder.problems(use_modalities=use, num_modalities=1)
    assert message in problem


def test_modalities_without_names_cannot_be_taken_by_name(folder):
    del folder.content["modalities"]
    (problem,) = folder.problems(use_modalities=["T1"], num_modalities=1)
    assert "use_modalities names T1; it names no modalities" in problem


def test_a_number_that_is_not_that_of_the_names_is_refused(folder):
    (problem,) = folder.problems(use_modalities=["T1"], num_modalities=2)
    assert "of the datalist are taken 1 modalities (T1), the configuration expects 2" in problem


def test_a_models_modalities_are_taken_of_a_datalist_with_more(folder, caplog):
    folder.read()
    with caplog.at_level(logging.WARNING):
        for kind in (Datalist, InferenceDatalist):
            data = kind(folder.root, num_modalities=1, modalities=["t2"])
            case = (data.cases if kind is InferenceDatalist else data.testing)[0]
            assert [Path(path).name for path in case["image"]] == ["t2.nii.gz"] and data.modalities == ["T2"]
    assert "its modalities are T1, T2, the model's t2: only these are taken" in caplog.text
    # named again, in another order than the model's
    assert files(folder.read(use_modalities=["T2", "T1"], modalities=["T1", "T2"])) == ["t1.nii.gz", "t2.nii.gz"]
    (problem,) = folder.problems(modalities=["T2", "DWI"], num_modalities=2)
    assert "its modalities are T1, T2, the model was trained on T2, DWI" in problem
    (problem,) = folder.problems(use_modalities=["T1"], modalities=["T1", "T2"], num_modalities=2)
    assert "its modalities are T1, the model was trained on T1, T2" in problem


def test_a_datalist_elsewhere_keeps_its_paths_relative_to_the_folder(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("elsewhere") / "other.json"
    file.write_text(json.dumps(folder.content))
    assert Datalist(folder.root, file).training[0]["image"][0] == str(folder.root / "P0/t1.nii.gz")


def test_no_voxel_is_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("voxels were read")

    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__array__", refuse)
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "get_unscaled", refuse)
    assert len(folder.read(fold=0).training) == 6


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (6, 5, 4, 1, 1), (6, 5, 1)])
def test_trailing_axes_of_length_one_are_accepted(folder, shape):
    save(folder.root / "P0/t1.nii.gz", shape)
    assert len(folder.read().training) == 8


def test_images_on_other_grids_are_accepted_and_logged(folder, caplog):
    save(folder.root / "P3/t2.nii.gz", (6, 5, 3))
    save(folder.root / "P4/t2.nii.gz", spacing=2.0)
    with pytest.raises(DataError, match=r"^P4: .*P4/t2.nii.gz has the shape of .*P4/t1.nii.gz and lies elsewhere"):
        folder.read()
    folder.content["training"][4]["trust_affines"] = True
    with caplog.at_level(logging.WARNING):
        assert len(folder.read().training) == 8
    assert "resampled to the first modality: P3, P4" in caplog.text


def spoil_file(name, **options):
    return lambda folder: save(folder.root / name, **options)


def test_a_patient_to_predict_may_lack_images_where_the_model_allows_it(folder):
    """Another image stands in their place, whichever they are and in whichever order the model takes them."""
    folder.content["modalities"] = ["T1", "T2"]
    folder.content["testing"][0]["image"][1] = None
    folder.content["testing"][1]["image"][0] = None
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    first, other = cases_for_inference(folder.root, may_lack=True)
    assert first["lacking"] == {"T2": 1} and first["image"] == [str(folder.root.resolve() / "P8/t1.nii.gz")] * 2
    assert other["lacking"] == {"T1": 0} and other["image"] == [str(folder.root.resolve() / "P9/t2.nii.gz")] * 2
    first, other = cases_for_inference(folder.root, may_lack=True, modalities=["T2", "T1"])
    assert first["lacking"] == {"T2": 0} and other["lacking"] == {"T1": 1}
    with pytest.raises(DataError, match=r"P8: has no T2; every modality is needed \(but in an inference") as caught:
        cases_for_inference(folder.root)
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match="the model was trained on T1, FLAIR; prepare"):
        cases_for_inference(folder.root, modalities=["T1", "FLAIR"])
    folder.content["testing"] = [
        {**case, "image": [f"{case['patient']}/t1.nii.gz"]} for case in folder.content["testing"]
    ]
    (folder.root / "datalist.json").write_text(json.dumps({**folder.content, "modalities": ["t1"]}))
    first, _ = cases_for_inference(folder.root, may_lack=True, modalities=["FLAIR", "T1", "T2"], num_modalities=3)
    assert (
        first["lacking"] == {"FLAIR": 0, "T2": 2}
        and first["image"] == [str(folder.root.resolve() / "P8/t1.nii.gz")] * 3
    )
    folder.content["testing"][0]["image"] = [None, None]
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    with pytest.raises(DataError, match="P8: has no T1, T2; one modality at least is needed: add"):
        cases_for_inference(folder.root, may_lack=True)


def set_case(row, section="training", **values):
    def spoil(folder):
        for key, value in values.items():
            folder.content[section][row].pop(key, None)
            if value is not None:
                folder.content[section][row][key] = value

    return spoil


def write_bytes(name, content):
    return lambda folder: (folder.root / name).write_bytes(content)


def copy_case(row, section, **values):
    def spoil(folder):
        case = copy.deepcopy(folder.content["training"][row])
        folder.content[section].append({**case, **values})

    return spoil


def truncate(folder):
    save(folder.root / "P0/t1.nii")
    (folder.root / "P0/t1.nii").write_bytes((folder.root / "P0/t1.nii").read_bytes()[:400])
    folder.content["training"][0]["image"][0] = "P0/t1.nii"


def set_groups(names, testing=("x", "y")):
    """Groups of the eight training cases, whose folds are 0, 0, 1, 1, 2, 2, 3, 3, and of the two testing cases."""

    def spoil(folder):
        for section, groups in (("training", names), ("testing", testing)):
            for case, group in zip(folder.content[section], groups, strict=True):
                case |= {} if group is None else {"group": group}

    return spoil


def flatten_affine(folder):
    image = nib.Nifti1Image(np.zeros((6, 5, 4), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[280:328] = np.zeros(12, np.float32).tobytes()  # the rows of the sform
    (folder.root / "P2/t1.nii.gz").write_bytes(gzip.compress(content))


BAD = {
    "missing file": (lambda f: (f.root / "P1/t2.nii.gz").unlink(), {}, r"P1: .*P1/t2.nii.gz: file not found"),
    "missing mask": (set_case(1, mask="P1/no.nii.gz"), {}, r"P1: .*no.nii.gz: file not found"),
    "not a NIfTI": (write_bytes("P1/t1.nii.gz", b"nonsense" * 99), {}, r"P1: .*t1.nii.gz: not readable as NIfTI"),
    "empty file": (write_bytes("P1/t1.nii.gz", b""), {}, r"P1: .*t1.nii.gz: not readable as NIfTI"),
    "2D": (spoil_file("P2/t1.nii.gz", shape=(6, 5)), {}, r"P2: .*is 2D \(6, 5\).*stack the slices"),
    "4D": (spoil_file("P2/t1.nii.gz", shape=(6, 5, 4, 3)), {}, r"P2: .*is 4D \(6, 5, 4, 3\).*to its own file"),
    "colour": (
        spoil_file("P2/t1.nii.gz", dtype=np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
        {},
        r"P2: .*colour voxels",
    ),
    "flat affine": (flatten_affine, {}, r"P2: .*no valid orientation"),
    "shortened": (truncate, {}, r"P0: .*shorter than its header"),
    "a modality is missing": (set_case(3, image=["P3/t1.nii.gz", None]), {}, r"^P3: has no T2; every modality"),
    "one modality fewer": (set_case(3, image=["P3/t1.nii.gz"]), {}, r"P3: has 1 images, 2 are expected.*T1, T2"),
    "number of modalities": (lambda f: None, {"num_modalities": 3}, r"has 2 modalities \(T1, T2\).* expects 3"),
    "no image": (set_case(3, image=None), {}, r"P3: 'image' must be a path or a list"),
    "label missing": (set_case(2, label=None), {}, r"P2: label is missing"),
    "testing label missing": (set_case(0, "testing", label=None), {}, r"P8: label is missing"),
    "label out of range": (set_case(2, label=2), {}, r"P2: label must be an integer from 0 to 1, got 2"),
    "label negative": (set_case(2, label=-1), {}, r"P2: label must be an integer from 0 to 1, got -1"),
    "label a word": (set_case(2, label="mutant"), {}, r"P2: label must be an integer.*'mutant'"),
    "label a fraction": (set_case(2, label=0.5), {}, r"P2: label must be an integer.*0.5"),
    "label a bool": (set_case(2, label=True), {}, r"P2: label must be an integer.*True"),
    "twice in a section": (copy_case(2, "training"), {}, r"P2: appears 2 times in the training section"),
    "in two folds": (copy_case(2, "training", fold=3), {}, r"P2: is in folds 1 and 3"),
    "in two sections": (copy_case(2, "testing"), {}, r"P2: is in the training and in the testing section"),
    "group in two folds": (
        set_groups("aabbccbd"),
        {},
        r"group b: is in fold 1 \(P2, P3\) and fold 3 \(P6\); a group belongs to one fold or section.*--group-column",
    ),
    "group in two sections": (
        set_groups("aabbccdd", "xa"),
        {},
        r"group a: is in fold 0 .* and the testing section \(P9\)",
    ),
    "group of some only": (set_groups("aabbccdd", ["x", None]), {}, r"1 cases have no group, others .*: P9; give"),
    "group a number": (set_case(2, group=3), {}, r"P2: 'group' must be a name, got 3"),
    "shared image": (
        set_case(3, image=["P3/t1.nii.gz", "P3/../P4/t2.nii.gz"]),
        {},
        r"P4: .*t2.nii.gz: is the image of patient P3",
    ),
    "image listed twice": (set_case(3, image=["P3/t1.nii.gz"] * 2), {}, r"P3: .*t1.nii.gz: is listed twice"),
    "fold missing": (set_case(5, fold=None), {"fold": 0}, r"P5: fold must be an integer, got None.*--folds"),
    "fold a word": (set_case(5, fold="1"), {"fold": 0}, r"P5: fold must be an integer, got '1'"),
    "no such fold": (lambda f: None, {"fold": 7}, r"no case has fold 7; the datalist has folds 0, 1, 2, 3"),
    "fold below -1": (lambda f: None, {"fold": -2}, r"fold must be -1 .* got -2"),
    "covariate missing": (
        set_case(4, covariates={"sex": 1}),
        {"covariates": ["age"]},
        r"P4: covariate 'age' is missing",
    ),
    "covariate infinite": (
        set_case(4, covariates={"age": float("inf")}),
        {"covariates": ["age"]},
        r"P4: covariate 'age' must be a finite number, got inf",
    ),
    "covariate a word": (set_case(4, covariates={"age": "44"}), {"covariates": ["age"]}, r"P4: covariate 'age'.*'44'"),
    "name that leaves the folder": (
        set_case(4, patient="../P4"),
        {},
        r"\.\./P4: a patient's name begins the names of files: it holds no / or \\",
    ),
    "name of dots": (set_case(4, patient=".."), {}, r"\.\.: a patient's name begins the names of files"),
    "no name": (set_case(4, patient=None), {}, r"training\[4\]: a case is an object with the patient's name"),
    "classes": (
        lambda f: f.content.update(classes=["a", "b", "c"]),
        {},
        r"'classes' must name 2 classes .* got \['a', 'b', 'c'\]",
    ),
    "no training": (lambda f: f.content.update(training=[]), {}, r"the training section is empty"),
    "not a list": (lambda f: f.content.update(training={"a": 1}), {}, r"'training' must be a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_rule_names_the_patient_and_the_remedy(folder, name):
    spoil, options, message = BAD[name]
    spoil(folder)
    problems = folder.problems(**options)
    assert len(problems) == 1, problems
    with pytest.raises(DataError, match=message):
        folder.read(**options)


def test_groups_that_lie_in_one_fold_are_kept_in_composed_characters(folder):
    set_groups(["Mu\u0308ller", "M\u00fcller", *"bbccdd"])(folder)
    data = folder.read(fold=0)
    assert [case["group"] for case in data.validation] == ["M\u00fcller"] * 2
    assert [case["group"] for case in data.training] == [*"bbccdd"]


def test_all_problems_are_reported_at_once(folder):
    (folder.root / "P1/t2.nii.gz").unlink()
    set_case(2, label=5)(folder)
    set_case(3, covariates={})(folder)
    save(folder.root / "P4/t1.nii.gz", (6, 5))
    problems = folder.problems(covariates=["age"], fold=0)
    assert [problem.split(":")[0] for problem in problems] == ["P1", "P2", "P3", "P4"]


def test_one_class_only(folder):
    for case in folder.content["training"]:
        case["label"] = 1
    assert "one class only: 8 cases of label 1" in folder.problems()[0]
    assert "the training part of fold 0 has one class only: 6 cases" in folder.problems(fold=0)[0]
    assert len(folder.read(labels_required=False).training) == 8


def test_a_fold_that_leaves_nothing(folder):
    for case in folder.content["training"]:
        case["fold"] = 0
    assert "all cases have fold 0, none is left" in folder.problems(fold=0)[0]


@pytest.mark.parametrize("missing", ["folder", "datalist"])
def test_no_data_names_the_preparation_scripts(tmp_path, missing):
    with pytest.raises(DataError) as caught:
        Datalist(tmp_path / "none" if missing == "folder" else tmp_path)
    for name in ("scripts/prepare_patients.py", "scripts/prepare_tcga_lgg.py", "bash scripts/demo.sh"):
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": []}', ""])
def test_a_file_that_is_no_datalist(tmp_path, text):
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(DataError, match=r"datalist.json: (is not readable JSON|a datalist is an object)"):
        Datalist(tmp_path)


def test_inference_takes_the_testing_section_and_needs_no_labels(folder):
    for case in folder.content["testing"]:
        del case["label"], case["covariates"]
    (folder.root / "P0/t1.nii.gz").unlink()  # not asked for, so not looked at
    folder.read(folder.content | {"training": []}, labels_required=False)
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    cases = cases_for_inference(folder.root)
    assert [case["patient"] for case in cases] == ["P8", "P9"] and "label" not in cases[0]
    with pytest.raises(DataError, match="P8: covariate 'age' is missing"):
        cases_for_inference(folder.root, covariates=["age"])
    with pytest.raises(DataError, match=r"P0: .*file not found"):
        cases_for_inference(folder.root, split="training")


def test_inference_with_an_empty_testing_section(folder):
    folder.content["testing"] = []
    folder.read()
    with pytest.raises(DataError, match="nothing to predict, split 'testing' is empty"):
        cases_for_inference(folder.root)
    assert len(cases_for_inference(folder.root, split="training")) == 8
    for case in folder.content["training"]:
        del case["label"]
    folder.read(labels_required=False)
    assert len(cases_for_inference(folder.root)) == 8
    folder.content["training"] = []
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    with pytest.raises(DataError, match="nothing to predict, split 'testing' is empty"):
        cases_for_inference(folder.root)


def test_inference_tells_the_section_in_which_a_patient_is_listed_twice(folder):
    folder.content["testing"].append(folder.content["testing"][0])
    (folder.root / "datalist.json").write_text(json.dumps(folder.content))
    with pytest.raises(DataError, match=r"P8: appears 2 times in the testing section"):
        cases_for_inference(folder.root)


def test_neither_torch_nor_monai_is_imported():
    code = (
        "import sys; from shared.data import Datalist, stratified_folds; import shared.apps.preparation.files;"
        "assert not {'torch', 'monai', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
