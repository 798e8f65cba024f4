"""The preparation scripts, from the publisher's or a hospital's folder to a datalist that is accepted."""

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tifffile import imread, imwrite

from shared.data import Datalist, cases_for_inference
from shared.digests import CACHE, sha256
from shared.transforms import LoadCased
from tests.support.script_modules import load_script

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "tcga_lgg"


tcga = load_script("prepare_tcga_lgg")
hospital = load_script("prepare_patients")


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CACHE]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["prepare_tcga_lgg", "prepare_patients"])
def test_help_comes_from_anywhere_without_torch_or_monai(tmp_path, name):
    path = str(ROOT / "scripts" / f"{name}.py")
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{path!r}, '--help']\n"
        f"try: runpy.run_path({path!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'monai', 'sklearn', 'nibabel', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--folds" in done.stdout


# --- TCGA-LGG ---------------------------------------------------------------------------------------------------------


AREAS = {2: 0, 3: 6, 9: 20, 10: 12, 11: 20, 12: 2}  # tumour pixels by slice number


@pytest.fixture
def published(tmp_path):
    """Six patients in the publisher's layout and a label table."""
    rng = np.random.default_rng(0)
    source = tmp_path / "lgg"
    rows = []
    for number in range(6):
        name = f"TCGA_XX_{number:04d}_19990101"
        folder = source / "kaggle_3m" / name
        folder.mkdir(parents=True)
        for index, area in AREAS.items():
            image = rng.integers(0, 256, (32, 24, 3), dtype=np.uint8)
            image[:4, :, :] = 255  # the front of the head
            if number == 3:
                image[..., 2] = image[..., 1]
            mask = np.zeros((32, 24), np.uint8)
            mask.reshape(-1)[24 * 10 : 24 * 10 + area] = 255
            imwrite(folder / f"{name}_{index}.tif", image)
            imwrite(folder / f"{name}_{index}_mask.tif", mask)
        rows.append({"patient": name, "idh_mutant": number % 2, "age": "" if number == 4 else 40 + number})
    (source / "kaggle_3m" / "data.csv").write_text("Patient,death01\n")
    return source, rows


def write_labels(source, rows):
    path = source / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def run_tcga(source, rows, output, *more):
    return tcga.main(
        [str(source), str(write_labels(source.parent, rows)), "--output", str(output), "--folds", "3", *more]
    )


def test_tcga_is_prepared(published, tmp_path, capsys):
    source, rows = published
    output = tmp_path / "out"
    assert run_tcga(source, rows, output) == 0
    data = Datalist(output, fold=2, num_modalities=3)
    assert data.modalities == ["T1 pre-contrast", "FLAIR", "T1 post-contrast"]
    assert data.classes == ["IDH wild type", "IDH mutant"]
    cases = data.training + data.validation
    assert len(cases) == 6 and len(data.validation) == 2 and not data.testing
    assert {case["patient"]: case["label"] for case in cases} == {row["patient"]: row["idh_mutant"] for row in rows}
    ages = {case["patient"]: case.get("covariates") for case in cases}
    assert ages[rows[0]["patient"]] == {"age": 40.0} and ages[rows[4]["patient"]] is None
    manifest = json.loads((output / "manifest.json").read_text())
    # The three largest areas in slice order: 9 and 11 (20 pixels each), 10 (12).
    assert manifest["kept_slices"][rows[0]["patient"]] == [9, 10, 11]
    assert manifest["sequence_is_copy_of_flair"] == {rows[3]["patient"]: ["post"]}
    assert manifest["without_age"] == [rows[4]["patient"]] and "nominal" in manifest["geometry"]
    file = f"{rows[0]['patient']}/{rows[0]['patient']}_9.tif"
    assert manifest["sources"][file] == sha256(source / "kaggle_3m" / file)
    assert "copy of FLAIR" in capsys.readouterr().out


def test_tcga_voxels_are_the_publishers_and_stand_upright(published, tmp_path):
    source, rows = published
    assert run_tcga(source / "kaggle_3m", rows, tmp_path / "out") == 0
    name = rows[0]["patient"]
    for channel, file in enumerate(("pre", "flair", "post")):
        image = nib.load(tmp_path / "out" / name / f"{file}.nii.gz")
        assert image.shape == (24, 32, 3) and nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert np.allclose(image.header.get_zooms(), (1, 1, 5)) and b"nominal" in image.header["descrip"].item()
        for position, number in enumerate((9, 10, 11)):
            published_slice = imread(source / "kaggle_3m" / name / f"{name}_{number}.tif")[..., channel]
            assert np.array_equal(np.asarray(image.dataobj)[..., position].T, published_slice)
        canonical = np.asarray(nib.as_closest_canonical(image).dataobj)
        assert (canonical[:, -4:] == 255).all() and not (canonical[:, :4] == 255).all()
    mask = nib.load(tmp_path / "out" / name / "mask.nii.gz")
    assert list(np.asarray(mask.dataobj).sum((0, 1))) == [20, 12, 20] and mask.get_data_dtype() == np.uint8


def test_tcga_again_gives_the_same_bytes_and_heldout_patients_are_apart(published, tmp_path):
    source, rows = published
    heldout = tmp_path / "heldout.csv"
    heldout.write_text(f"patient\n{rows[5]['patient']}\n")
    more = ["--heldout-csv", str(heldout), "--folds", "2", "--slices", "2"]
    assert run_tcga(source, rows, tmp_path / "out", *more) == 0
    first = contents(tmp_path / "out")
    (tmp_path / "out" / rows[2]["patient"] / "pre.nii.gz").unlink()
    assert run_tcga(source, rows, tmp_path / "out", *more) == 0
    assert contents(tmp_path / "out") == first
    data = Datalist(tmp_path / "out", fold=0)
    assert [case["patient"] for case in data.testing] == [rows[5]["patient"]]
    assert nib.load(data.training[0]["image"][0]).shape[2] == 2


def test_tcga_reports_all_problems_at_once_and_writes_nothing(published, tmp_path, capsys):
    source, rows = published
    root = source / "kaggle_3m"
    names = [row["patient"] for row in rows]
    rows[0]["idh_mutant"] = "mutant"
    (root / names[1] / f"{names[1]}_9_mask.tif").unlink()
    (root / names[2] / f"{names[2]}_10.tif").write_bytes(b"II*\x00 no more")
    for number in (9, 10, 11, 12):
        imwrite(root / names[3] / f"{names[3]}_{number}_mask.tif", np.zeros((32, 24), np.uint8))
    imwrite(root / names[4] / f"{names[4]}_9.tif", np.zeros((32, 24), np.uint8))
    rows.append({"patient": "TCGA_YY_0000_19990101", "idh_mutant": 1, "age": 3})
    rows.append(dict(rows[5]))
    assert run_tcga(source, rows, tmp_path / "out") == 2
    text = capsys.readouterr().err
    for message in (
        f"{names[0]}: idh_mutant must be 0 or 1, got 'mutant'",
        f"{names[1]}: slice 9 has no mask",
        f"{names[2]}: {names[2]}_10.tif is not a readable TIFF",
        f"{names[3]}: has 1 slices with tumour, 3 are needed",
        f"{names[4]}: {names[4]}_9.tif must be rows x columns x 3",
        f"{names[5]}: appears twice in the label table (rows 7 and 9)",
        "TCGA_YY_0000_19990101: is in",
        "--skip-missing leaves such patients out",
    ):
        assert message in text, text
    assert not (tmp_path / "out").exists()


def test_tcga_leaves_out_missing_patients_when_told(published, tmp_path, capsys):
    source, rows = published
    rows[0]["idh_mutant"] = ""
    rows[1]["patient"] = "TCGA_YY_0000_19990101"
    assert run_tcga(source, rows, tmp_path / "out", "--folds", "2") == 2
    error = capsys.readouterr().err
    assert "idh_mutant is empty" in error and "has images and no row" in error and "has no folder" in error
    assert run_tcga(source, rows, tmp_path / "out", "--folds", "2", "--skip-missing") == 0
    assert "left out: TCGA_YY_0000_19990101" in capsys.readouterr().out
    assert len(Datalist(tmp_path / "out").training) == 4


@pytest.mark.parametrize("wrong", ["no folder", "empty folder", "no column", "no table"])
def test_tcga_names_a_wrong_source(published, tmp_path, capsys, wrong):
    source, rows = published
    labels = write_labels(tmp_path, rows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("patient;grade\na;1\n")
    arguments, message = {
        "no folder": ([tmp_path / "none", labels], "no such folder; give the publisher's folder"),
        "empty folder": ([tmp_path / "empty", labels], "no patient folder with *_mask.tif"),
        "no column": ([source, tmp_path / "other.csv"], "no column 'idh_mutant'; its columns are patient, grade"),
        "no table": ([source, tmp_path / "none.csv"], "no such label table"),
    }[wrong]
    assert tcga.main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_tcga_knows_clutter_ages_that_are_none_and_names_that_look_alike(published, tmp_path, capsys):
    source, rows = published
    root, names = source / "kaggle_3m", [row["patient"] for row in rows]
    for folder in ("__MACOSX", "@eaDir", names[0]):
        (root / folder).mkdir(exist_ok=True)
        for file in (f"._{names[1]}_9.tif", f"._{names[1]}_9_mask.tif"):
            (root / folder / file).write_bytes(b"mac")
        (root / folder / "x_1_mask.tif").write_bytes(b"mac") if folder != names[0] else None
    assert run_tcga(source, rows, tmp_path / "out") == 0
    assert len(Datalist(tmp_path / "out").training) == 6
    rows[0]["age"], rows[1]["age"], rows[2]["idh_mutant"] = "forty", "1,234", "1.0"
    rows[3]["patient"] = names[3].replace("_", "-")
    capsys.readouterr()
    assert run_tcga(source, rows, tmp_path / "out") == 2
    text = capsys.readouterr().err
    assert f"{names[0]}: age must be a number, got 'forty'" in text
    assert f"{names[1]}: age may mean 1234 or 1.234" in text and "idh_mutant" not in text
    hint = f"; {names[3]!r} looks alike, the difference: dashes, dots or underscores"
    assert f"has no folder in {source}{hint}" in text


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="the TCGA-LGG patients are not beside the repository")
def test_tcga_on_the_published_patients(tmp_path):
    assert tcga.main([str(REAL), str(REAL / "idh_labels.csv"), "--output", str(tmp_path)]) == 0
    data = Datalist(tmp_path, fold=0, num_modalities=3, covariates=["age"])
    cases = data.training + data.validation
    with (REAL / "idh_labels.csv").open() as file:
        rows = {row["patient"]: row for row in csv.DictReader(file)}
    assert {case["patient"]: str(case["label"]) for case in cases} == {n: r["idh_mutant"] for n, r in rows.items()}
    shares = [np.mean([c["label"] for c in cases if c["fold"] == fold]) for fold in range(5)]
    assert max(shares) - min(shares) < 0.1
    full = next(case for case in cases if rows[case["patient"]]["full_volume"] == "1")
    areas = {
        int(path.stem.split("_")[-2]): int((imread(path) > 0).sum())
        for path in (REAL / "kaggle_3m" / full["patient"]).glob("*_mask.tif")
    }
    kept = json.loads((tmp_path / "manifest.json").read_text())["kept_slices"][full["patient"]]
    assert kept == sorted(kept) and sorted(areas[n] for n in kept) == sorted(areas.values())[-3:]
    mask = np.asarray(nib.load(full["mask"]).dataobj)
    assert list(mask.sum((0, 1))) == [areas[number] for number in kept]


# --- a hospital's folder ----------------------------------------------------------------------------------------------


def save(path, shape=(6, 5, 4), spacing=1.0, value=0):
    """An image whose largest value is given, no two alike, or, by its name, a mask with a tumour of it (of 1 for 0)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing] * min(3, len(shape)) + [1.0] * (4 - min(3, len(shape))))
    noise = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 100, shape)
    array = (value - noise).astype(np.int16)
    array.flat[0] = value
    if any(word in path.name.lower() for word in ("mask", "seg")):
        array[:] = 0
        array[1:3, 1:3, 1:3] = value or 1
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


class Hospital:
    """Eight patients with a folder each, T1, T1D and mask, and a label table with the column MVI (M0, M1, one M2)."""

    def __init__(self, root):
        self.root, self.folder, self.table, self.output = root, root / "patients", root / "labels.csv", root / "out"
        self.rows = []
        for number in range(8):
            name = f"P{number}"
            for value, file in enumerate((f"{name}_T1.nii.gz", f"{name}-t1d.nii", "Tumor_Seg.nii.gz")):
                save(self.folder / name / file, value=value)
            self.rows.append(
                {
                    "patient": name,
                    "MVI": "M0" if number % 2 == 0 else "M2" if number == 7 else "M1",
                    "age": 50 + number,
                    "test": int(number > 5),
                }
            )

    def write(self, delimiter=",", encoding="utf-8"):
        lines = [delimiter.join(self.rows[0])] + [delimiter.join(map(str, row.values())) for row in self.rows]
        self.table.write_text("\r\n".join(lines) + "\r\n", encoding=encoding)

    def run(self, *more, labels=True, modalities="T1,T1D", write=True):
        if write:
            self.write()
        arguments = [str(self.folder), *([str(self.table)] if labels else []), "--output", str(self.output)]
        arguments += ["--modalities", modalities, "--folds", "2"]
        return hospital.main([*arguments, *more])


@pytest.fixture
def cohort(tmp_path):
    return Hospital(tmp_path)


LABELS = ("--label-column", "MVI", "--positive", "M1,M2")


def test_a_folder_per_patient(cohort, capsys):
    before = contents(cohort.folder)
    assert cohort.run(*LABELS, "--covariates", "age", "--test-column", "test", "--classes", "MVI-,MVI+") == 0
    data = Datalist(cohort.output, fold=1, num_modalities=2, covariates=["age"])
    assert data.modalities == ["T1", "T1D"] and data.classes == ["MVI-", "MVI+"]
    assert sorted(case["patient"] for case in data.training + data.validation) == [f"P{n}" for n in range(6)]
    assert [case["patient"] for case in data.testing] == ["P6", "P7"]
    for case in data.training + data.testing:
        number = int(case["patient"][1:])
        assert case["label"] == number % 2 and case["covariates"] == {"age": 50.0 + number}
        values = [int(np.asarray(nib.load(path).dataobj).max()) for path in (*case["image"], case["mask"])]
        assert values == [0, 1, 2]
        assert Path(case["image"][0]).read_bytes() == before[Path(case["patient"]) / f"{case['patient']}_T1.nii.gz"]
        assert case["image"][1].endswith("/t1d.nii")
    manifest = json.loads((cohort.output / "manifest.json").read_text())
    assert manifest["sources"]["P0/P0_T1.nii.gz"] == sha256(cohort.folder / "P0" / "P0_T1.nii.gz")
    assert contents(cohort.folder) == before
    assert "6 training patients (3 MVI-, 3 MVI+)" in capsys.readouterr().out


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8-sig")])
def test_tables_as_spreadsheets_write_them(cohort, delimiter, encoding):
    for row in cohort.rows:
        row["patient"] = f"  {row['patient'].lower()} "
        if delimiter == ";":
            row["age"] = f"{row['age']},5"
    cohort.write(delimiter, encoding)
    assert cohort.run(*LABELS, "--covariates", "age", write=False) == 0
    case = Datalist(cohort.output, covariates=["age"]).training[0]
    assert case["patient"] == "p0" and case["covariates"]["age"] == (50.5 if delimiter == ";" else 50)


def test_running_again_copies_nothing_anew(cohort, monkeypatch):
    assert cohort.run(*LABELS) == 0
    first = contents(cohort.output)
    (cohort.output / "P0" / "t1.nii.gz").unlink()
    copied = []
    original = shutil.copy2
    monkeypatch.setattr(shutil, "copy2", lambda a, b: (copied.append(Path(a).name), original(a, b)))
    assert cohort.run(*LABELS) == 0
    assert copied == ["P0_T1.nii.gz"] and contents(cohort.output) == first


def test_links_instead_of_copies(cohort):
    assert cohort.run(*LABELS, "--link") == 0
    path = cohort.output / "P0" / "t1.nii.gz"
    assert path.is_symlink() and path.resolve() == (cohort.folder / "P0" / "P0_T1.nii.gz").resolve()
    assert cohort.run(*LABELS, "--link") == 0 and len(Datalist(cohort.output).training) == 8
    assert cohort.run(*LABELS, "--copy") == 0 and not path.is_symlink()


def test_a_stratified_share_is_set_apart(cohort):
    assert cohort.run(*LABELS, "--test-fraction", "0.25") == 0
    data = Datalist(cohort.output, fold=0)
    assert sorted(case["label"] for case in data.testing) == [0, 1]
    tested = [case["patient"] for case in data.testing]
    assert cohort.run(*LABELS, "--test-fraction", "0.25") == 0
    assert [case["patient"] for case in Datalist(cohort.output, fold=0).testing] == tested


def test_one_nifti_per_patient_side_by_side(tmp_path):
    """As HCC-WCH: one modality of seven slices, no mask; P1 is not taken for P1_2."""
    names = ["P1", "P1_2", "P3", "P10", "P11", "P12"]
    for name in names:
        save(tmp_path / "images" / f"{name}.nii.gz", (8, 8, 7))
    table = tmp_path / "labels.csv"
    table.write_text("id,label\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(names)))
    arguments = [tmp_path / "images", table, "--output", tmp_path / "out", "--patient-column", "id", "--folds", "2"]
    assert hospital.main(list(map(str, arguments))) == 0
    data = Datalist(tmp_path / "out", num_modalities=1)
    assert sorted(case["patient"] for case in data.training) == sorted(names)
    assert all("mask" not in case and case["image"][0].endswith("/image.nii.gz") for case in data.training)


def test_files_side_by_side_with_masks_and_patterns(tmp_path):
    for name in ("P1", "P1_2", "P3", "P4"):
        for kind in ("t1", "t1_post", "mask"):
            save(tmp_path / "images" / f"{name}_{kind}.nii.gz")
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\nP1,0\nP1_2,1\nP3,0\nP4,1\n")
    common = [str(tmp_path / "images"), str(table), "--folds", "2", "--output"]
    assert hospital.main([*common, str(tmp_path / "a"), "--modalities", "T1,T1 post"]) == 0
    patterns = ["--pattern", "plain=*_t1.nii.gz", "--pattern", "contrast=*post*", "--mask-pattern", "*_mask*"]
    assert hospital.main([*common, str(tmp_path / "b"), "--modalities", "plain,contrast", *patterns]) == 0
    for output, files in (("a", ("t1.nii.gz", "t1_post.nii.gz")), ("b", ("plain.nii.gz", "contrast.nii.gz"))):
        data = Datalist(tmp_path / output, num_modalities=2)
        assert [len(data.training), *{Path(p).name for p in data.training[0]["image"]}] == [4, *set(files)]
        sources = json.loads((tmp_path / output / "manifest.json").read_text())["sources"]
        assert sources["P1_t1.nii.gz"] and "mask" in data.training[0]


def test_inference_needs_no_labels(cohort):
    assert cohort.run("--inference", labels=False) == 0
    cases = cases_for_inference(cohort.output, num_modalities=2)
    assert len(cases) == 8 and all("label" not in case and "mask" in case for case in cases)
    assert cohort.run("--inference", *LABELS, "--covariates", "age") == 0
    cases = cases_for_inference(cohort.output, covariates=["age"])
    assert [case["label"] for case in cases] == [0, 1] * 4


def test_inference_of_files_side_by_side(tmp_path):
    for name in ("A", "B_1"):
        for kind in ("T1", "T1D", "mask"):
            save(tmp_path / "new" / f"{name}_{kind}.nii.gz")
    arguments = [str(tmp_path / "new"), "--output", str(tmp_path / "out"), "--modalities", "T1,T1D", "--inference"]
    assert hospital.main(arguments) == 0
    assert [case["patient"] for case in cases_for_inference(tmp_path / "out")] == ["A", "B_1"]


def test_all_problems_are_listed_at_once_and_nothing_is_written(cohort, capsys):
    save(cohort.folder / "P0" / "second_t1.nii.gz")
    (cohort.folder / "P1" / "P1-t1d.nii").unlink()
    save(cohort.folder / "P2" / "P2_T1.nii.gz", (6, 5))
    (cohort.folder / "P3" / "P3_T1.nii.gz").write_bytes(b"nonsense")
    (cohort.folder / "P4" / "Tumor_Seg.nii.gz").unlink()
    save(cohort.folder / "P5" / "other_mask.nii.gz")
    cohort.rows[6]["MVI"] = ""
    cohort.rows[7]["age"] = "old"
    save(cohort.folder / "P9" / "P9_T1.nii.gz")
    cohort.rows.append({"patient": "P10", "MVI": "M0", "age": 1, "test": 0})
    cohort.rows.append({"patient": "P10", "MVI": "M1", "age": 1, "test": 0})
    assert cohort.run(*LABELS, "--covariates", "age") == 2
    text = capsys.readouterr().err
    for message in (
        "P0: 2 files match modality T1 by the word 'T1' in the name (P0/P0_T1.nii.gz, P0/second_t1.nii.gz)",
        "P1: no file matches modality T1D by the word 'T1D' in the name; its files are P1/P1_T1.nii.gz",
        "P2_T1.nii.gz: is 2D (6, 5)",
        "P3_T1.nii.gz: not readable as NIfTI",
        "P4: has no mask, other patients have one",
        "P5: 2 files may be the mask (P5/Tumor_Seg.nii.gz, P5/other_mask.nii.gz)",
        "P6: column 'MVI' is empty",
        "P7: covariate 'age' must be a number, got 'old'",
        "P9: has files and no row in",
        "P10: is in",
        "P10: appears twice in the label table (rows 10 and 11)",
        "--skip-missing leaves such patients out",
    ):
        assert message in text, text
    assert not cohort.output.exists()


def test_missing_patients_are_left_out_when_told(cohort, capsys):
    cohort.rows[0]["MVI"] = "NA"
    save(cohort.folder / "P9" / "P9_T1.nii.gz")
    assert cohort.run(*LABELS, "--skip-missing") == 0
    assert "left out: P0: column 'MVI' is empty" in capsys.readouterr().out
    assert len(Datalist(cohort.output).training) == 7


def test_a_missing_covariate_is_said_and_found_by_the_datalist(cohort, capsys):
    cohort.rows[2]["age"] = ""
    assert cohort.run(*LABELS, "--covariates", "age") == 0
    assert "covariate 'age' is missing for 1 patients: P2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="P2: covariate 'age' is missing"):
        Datalist(cohort.output, covariates=["age"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label-column", "MVI"), "P0: label must be 0 or 1, got 'M0'; name the positive values with --positive"),
        ((*LABELS, "--negative", "M9"), "P0: label 'M0' is neither among --positive M1,M2 nor --negative M9"),
        (("--label-column", "outcome"), "no column 'outcome'; its columns are patient, MVI, age, test"),
        ((*LABELS, "--test-column", "age"), "P0: column 'age' must be 1 or 0, got '50'"),
        (("--label-column", "MVI", "--positive", "M7"), "--positive 'M7': no row of column 'MVI' holds it"),
        ((*LABELS, "--folds", "5"), "label 0 has 4 patients, fewer than the 5 folds"),
        ((*LABELS, "--test-fraction", "0.99"), "cannot be split with --test-fraction 0.99"),
    ],
)
def test_labels_and_splits_that_do_not_fit(cohort, capsys, arguments, message):
    assert cohort.run(*arguments) == 2
    assert message in capsys.readouterr().err and not cohort.output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f", "--output", "o"], "a label table is needed"),
        (["f", "l", "--output", "o", "--pattern", "T9=x"], "must be MODALITY=PATTERN with one of image"),
        (["f", "l", "--output", "o", "--modalities", "T1,t1"], "name each modality once"),
        (["f", "l", "--output", "o", "--test-fraction", "1.5"], r"must lie in \[0, 1\)"),
        (["f", "--inference", "--output", "o", "--covariates", "age"], "need a label table"),
    ],
)
def test_command_lines_that_cannot_be_meant(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        hospital.main(arguments)
    assert end.value.code == 2
    assert message.replace("\\", "") in capsys.readouterr().err


def test_wrong_places(cohort, capsys):
    cohort.write()
    (cohort.root / "dicom").mkdir()
    (cohort.root / "dicom" / "IM0001.dcm").write_bytes(b"DICM")
    for folder, output, message in (
        (cohort.root / "none", cohort.output, "no such folder"),
        (cohort.root / "dicom", cohort.output, "convert DICOM with dcm2niix, other formats (NRRD"),
        (cohort.folder, cohort.folder / "prepared", "must lie outside"),
    ):
        assert hospital.main([str(folder), str(cohort.table), "--output", str(output), *LABELS]) == 2
        assert message in capsys.readouterr().err
    cohort.table.write_bytes(b"PK\x03\x04rest of a workbook")
    assert hospital.main([str(cohort.folder), str(cohort.table), "--output", str(cohort.output)]) == 2
    assert "save the sheet as CSV" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(cohort, capsys, monkeypatch):
    assert cohort.run(*LABELS) == 0
    original = shutil.copy2

    def full(source, target):
        if "P3" in str(source):
            Path(target).write_bytes(Path(source).read_bytes()[:9])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(source, target)

    for path in (cohort.output / "P3").iterdir():
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        assert cohort.run(*LABELS) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (cohort.output / "datalist.json").exists() and not list((cohort.output / "P3").iterdir())
    assert cohort.run(*LABELS) == 0 and len(Datalist(cohort.output).training) == 8


def test_the_output_may_not_be_a_file(cohort, capsys):
    cohort.output.write_text("mine")
    assert cohort.run(*LABELS) == 2
    assert "a file stands where a folder is needed" in capsys.readouterr().err and cohort.output.read_text() == "mine"


def paint(path, affine=None, **boxes):
    """A mask of 12 x 10 x 6 voxels of 1 ml: a box of each value, by value."""
    array = np.zeros((12, 10, 6), np.int16)
    for value, box in boxes.items():
        array[tuple(slice(*side) for side in box)] = int(value[1:])
    nib.save(nib.Nifti1Image(array, np.diag([10.0, 10, 10, 1]) if affine is None else affine), path)


@pytest.fixture
def tumours(tmp_path):
    """Two patients of one modality with a tumour (2) of 8 ml in an organ (1)."""
    rng = np.random.default_rng(0)
    for name in ("P0", "P1"):
        folder = tmp_path / "patients" / name
        folder.mkdir(parents=True)
        image = nib.Nifti1Image(rng.integers(100, 200, (12, 10, 6)).astype(np.int16), np.diag([10.0, 10, 10, 1]))
        nib.save(image, folder / "T1.nii.gz")
        paint(folder / "mask.nii.gz", v1=[(1, 9), (1, 8), (1, 5)], v2=[(2, 4), (2, 4), (2, 4)])
    return tmp_path


def prepare(root, *more):
    given = [str(root / "patients"), "--inference", "--output", str(root / "out"), "--modalities", "T1"]
    return hospital.main([*given, *more])


def test_labels_of_masks_are_named_and_go_with_the_datalist(tumours, capsys):
    assert prepare(tumours) == 2
    said = capsys.readouterr().err
    assert "P1/mask.nii.gz: has 3 values: 0 (496.0 ml), 1 (216.0 ml), 2 (8.0 ml); name those" in said
    assert not (tumours / "out").exists()
    assert prepare(tumours, "--mask-labels", "2") == 0
    assert "tumours: 2 masks, median 8.0 ml (8.0 to 8.0 ml)" in capsys.readouterr().out
    manifest = json.loads((tumours / "out" / "manifest.json").read_text())
    assert manifest["tumour_ml"] == {"P0": 8.0, "P1": 8.0} and manifest["mask_labels"] == [2]
    # the file is the hospital's own, the labels stand beside it
    assert (tumours / "out/P0/mask.nii.gz").read_bytes() == (tumours / "patients/P0/mask.nii.gz").read_bytes()
    assert [int(LoadCased()(case)["mask"].sum()) for case in cases_for_inference(tumours / "out")] == [8, 8]
    assert prepare(tumours, "--mask-labels", "1,2") == 0
    said = capsys.readouterr().out
    shown = np.asarray(nib.load(tumours / "patients/P0/T1.nii.gz").dataobj)
    low, high = np.percentile(shown, (1, 99))
    share = 224 / (shown > low + 0.1 * (high - low)).sum()
    assert f"look at P0: the tumour of 224.0 ml is {share:.0%} of what T1.nii.gz shows; is it an organ?" in said
    assert [int(LoadCased()(case)["mask"].sum()) for case in cases_for_inference(tumours / "out")] == [224, 224]
    with pytest.raises(SystemExit):
        prepare(tumours, "--mask-labels", "tumour")
    assert "must be positive whole numbers, as 1,4, got 'tumour'" in capsys.readouterr().err


def test_a_mask_of_the_images_shape_elsewhere_is_refused_unless_its_affine_is_trusted(tumours, capsys):
    moved = np.diag([10.0, 10, 10, 1])
    moved[:3, 3] = (20, 0, 0)
    paint(tumours / "patients/P0/mask.nii.gz", moved, v1=[(2, 4), (2, 4), (2, 4)])
    rounded = np.diag([10.0, 10, 10, 1]) + 1e-4 * np.eye(4)[:, ::-1]
    rounded[3] = (0, 0, 0, 1)
    paint(tumours / "patients/P1/mask.nii.gz", rounded, v1=[(2, 4), (2, 4), (2, 4)])
    assert prepare(tumours) == 2
    said = capsys.readouterr().err
    assert "P0/mask.nii.gz has the shape of" in said and "P1" not in said and "fslcpgeom T1.nii.gz mask.nii.gz" in said
    assert "its affine is [10 0 0 20; 0 10 0 0; 0 0 10 0], the other's [10 0 0 0; 0 10 0 0; 0 0 10 0]" in said
    assert prepare(tumours, "--trust-affines") == 0
    cases = json.loads((tumours / "out" / "datalist.json").read_text())["testing"]
    assert [case.get("trust_affines") for case in cases] == [True, None]
    places = [LoadCased()(case)["mask"][0].nonzero()[0].tolist() for case in cases_for_inference(tumours / "out")]
    assert places == [[4, 2, 2], [2, 2, 2]]


def test_a_label_that_no_mask_holds_is_refused(tumours, capsys):
    (tumours / "labels.csv").write_text("patient,label\nP0,0\nP1,1\n")
    given = [str(tumours / "patients"), str(tumours / "labels.csv"), "--output", str(tumours / "out")]
    given += ["--modalities", "T1", "--folds", "0", "--mask-labels"]
    assert hospital.main([*given, "2,3"]) == 2
    assert "--mask-labels 2,3: no mask holds 3; they hold 0, 1, 2" in capsys.readouterr().err
    assert not (tumours / "out").exists()
    assert hospital.main([*given, "2"]) == 0
    # the masks of a few new patients need not hold each of the training cohort's
    assert prepare(tumours, "--mask-labels", "2,3") == 0
    assert "look at --mask-labels 2,3: no mask holds 3; they hold 0, 1, 2" in capsys.readouterr().out


def test_masks_of_one_form_with_some_and_another_label_with_others_are_refused(tumours, capsys):
    box = [(2, 4), (2, 4), (2, 4)]
    paint(tumours / "patients/P0/mask.nii.gz", v1=box)
    paint(tumours / "patients/P1/mask.nii.gz", v2=box)
    assert prepare(tumours) == 2
    said = capsys.readouterr().err
    assert "the tumour is 1 in the masks of P0, 2 in those of P1; name the values that are tumour" in said
    assert prepare(tumours, "--mask-labels", "1,2") == 0
    paint(tumours / "patients/P1/mask.nii.gz", v255=box)
    assert prepare(tumours) == 0
    assert "tumours: 2 masks, median 8.0 ml (8.0 to 8.0 ml)" in capsys.readouterr().out


def test_a_mask_of_another_shape_is_told_with_its_volume_on_the_image(tumours, capsys):
    for name, drawn in (("P0", slice(4, 10)), ("P1", slice(4, 9))):
        array = np.zeros((24, 10, 6), np.uint8)
        array[drawn, 2:4, 2:4] = 1
        nib.save(nib.Nifti1Image(array, np.diag([5.0, 10, 10, 1])), tumours / f"patients/{name}/mask.nii.gz")
    assert prepare(tumours) == 0
    said = capsys.readouterr().out
    assert "masks on another grid than the image's, to be resampled: 2 (manifest.json)" in said
    assert "look at P1: the mask has 10.0 ml, 12.0 ml on the grid of T1.nii.gz\n" in said
    assert "look at P0" not in said  # 12 ml on either grid
    manifest = json.loads((tumours / "out" / "manifest.json").read_text())
    assert manifest["tumour_ml_on_image_grid"] == {"P0": 12.0, "P1": 12.0}
    # the loader's masks have the volumes that were told
    assert [int(LoadCased()(case)["mask"].sum()) for case in cases_for_inference(tumours / "out")] == [12, 12]
    away = np.diag([5.0, 10, 10, 1])
    away[0, 3] = 500
    nib.save(nib.Nifti1Image(array, away), tumours / "patients/P1/mask.nii.gz")
    assert prepare(tumours) == 2
    assert "P1/mask.nii.gz: no voxel of the tumour lies in" in capsys.readouterr().err


def test_preparation_and_loader_resample_a_mask_alike_where_voxels_lie_half_way(tumours):
    affine = np.diag([20.0, 10, 10, 1])
    for name, drawn, moved in (("P0", slice(1, 3), 0), ("P1", slice(0, 2), 4)):
        array = np.zeros((6, 10, 6), np.uint8)
        array[drawn, 2:4, 2:4] = 1
        affine[0, 3] = moved
        nib.save(nib.Nifti1Image(array, affine), tumours / f"patients/{name}/mask.nii.gz")
    assert prepare(tumours) == 0
    told = json.loads((tumours / "out" / "manifest.json").read_text())["tumour_ml_on_image_grid"]
    masks = [LoadCased()(case)["mask"][0] for case in cases_for_inference(tumours / "out")]
    assert told == {"P0": 16.0, "P1": 16.0} and [int(mask.sum()) for mask in masks] == [16, 16]
    # in P0 the voxels at 10 and 50 mm lie between two of the mask's; in P1 that at 0 mm in half a voxel at the edge
    assert [sorted({int(x) for x in mask.nonzero()[:, 0]}) for mask in masks] == [[1, 2, 3, 4], [0, 1, 2, 3]]


def test_an_image_or_mask_without_orientation_is_refused(tumours, capsys):
    for file in ("P0/T1.nii.gz", "P1/mask.nii.gz"):
        image = nib.load(tumours / "patients" / file)
        image = nib.Nifti1Image(np.asarray(image.dataobj), None)
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        nib.save(image, tumours / "patients" / file)
    assert prepare(tumours, "--mask-labels", "2") == 2
    said = capsys.readouterr().err
    for file in ("P0/T1.nii.gz", "P1/mask.nii.gz"):
        assert f"{file}: has no affine (sform and qform codes are 0)" in said


def test_what_is_not_read_is_told_and_no_masks_must_be_said(tumours, capsys):
    for name in ("P0", "P1"):
        (tumours / "patients" / name / "mask.nii.gz").rename(tumours / "patients" / name / "mask.nrrd")
        (tumours / "patients" / name / "report.txt").write_text("x")
    assert prepare(tumours) == 2
    assert "P1: has no tumour mask that is recognised, and P1/mask.nrrd may be one" in capsys.readouterr().err
    assert prepare(tumours, "--mask-pattern", "none") == 0
    said = capsys.readouterr().out
    assert "4 files are not read: mask.nrrd (2 times), report.txt (2 times)" in said and "no masks: the whole" in said
    manifest = json.loads((tumours / "out" / "manifest.json").read_text())
    assert manifest["not_read"] == ["P0/mask.nrrd", "P0/report.txt", "P1/mask.nrrd", "P1/report.txt"]


@pytest.mark.parametrize("lacking", ["P1-t1d.nii", "Tumor_Seg.nii.gz"])
def test_a_patient_without_a_modality_or_mask_is_left_out_when_told(cohort, capsys, lacking):
    (cohort.folder / "P1" / lacking).unlink()
    assert cohort.run(*LABELS) == 2
    said = capsys.readouterr().err
    assert "P1: no file matches modality T1D" in said or "P1: has no mask, other patients have one" in said
    assert "--skip-missing leaves such patients out" in said
    assert cohort.run(*LABELS, "--skip-missing") == 0
    assert "left out: P1: " in capsys.readouterr().out
    assert sorted(case["patient"] for case in Datalist(cohort.output).training) == [
        "P0",
        *(f"P{n}" for n in range(2, 8)),
    ]
    assert json.loads((cohort.output / "manifest.json").read_text())["left_out"][0].startswith("P1: ")


def test_folders_that_were_exchanged_are_copied_anew(cohort):
    for number in range(8):
        save(cohort.folder / f"P{number}" / f"P{number}_T1.nii.gz", value=number)
        for path in (cohort.folder / f"P{number}").iterdir():
            os.utime(path, (1e9, 1e9))
    assert cohort.run(*LABELS) == 0
    for old, new in (("P0", "X"), ("P1", "P0"), ("X", "P1")):
        (cohort.folder / old).rename(cohort.folder / new)
    for old, new in (("P1", "P0"), ("P0", "P1")):
        for path in (cohort.folder / new).glob(f"{old}*"):
            path.rename(path.with_name(path.name.replace(old, new)))
    assert cohort.run(*LABELS) == 0
    values = [
        int(np.asarray(nib.load(cohort.output / name / "t1.nii.gz").dataobj).max()) for name in ("P0", "P1", "P2")
    ]
    assert values == [1, 0, 2]


def spoil(path, how):
    """An image as exports, transfers and programs leave it."""
    image = nib.load(path)
    values, affine = np.asarray(image.dataobj).astype(np.float32), image.affine
    if how in ("cut off", "flipped bit"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0 if how == "cut off" else 1
        path.write_bytes(content[:-40] if how == "cut off" else content)
        return
    if how == "check sum":  # all voxels are there, and are not those that were written
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
        path.write_bytes(content)
        return
    if how == "NaN":
        values[1, 2, 3] = np.nan
    elif how == "beyond float32":
        values = values.astype(np.float64) * 1e300
    elif how == "constant":
        values[:] = 3
    elif how == "mask":
        values = (values > 150).astype(np.uint8)
    elif how == "metres":
        affine = np.diag([0.001, 0.001, 0.001, 1]) @ affine
    elif how == "micrometres":
        affine = np.diag([1000, 1000, 1000, 1]) @ affine
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units({"metres": "meter", "micrometres": "micron"}.get(how, "mm"))
    if how == "constant":
        image.header["xyzt_units"] = 61  # codes that nibabel does not know
    nib.save(image, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut off", r"its voxels cannot be read \(\w+: .*\); copy or export it again"),
        ("flipped bit", r"its voxels cannot be read \(\w+: .*\); copy or export it again"),
        ("check sum", r"its voxels cannot be read \(BadGzipFile: CRC check failed"),
        ("NaN", "holds 1 NaN or Inf voxels"),
        ("beyond float32", r"holds \d+ NaN or Inf voxels"),
        ("constant", "every voxel is 3, an image must vary"),
        ("mask", "has the values 0 and 1 alone, as a mask does"),
        ("metres", "has voxels of 0.01 x 0.01 x 0.01 mm; its header says meter: its affine must be in millimetres"),
        ("micrometres", r"has voxels of 1e\+04 x 1e\+04 x 1e\+04 mm; its header says micron"),
    ],
)
def test_an_image_that_cannot_be_meant_is_refused_before_anything_is_written(tumours, capsys, how, message):
    spoil(tumours / "patients/P1/T1.nii.gz", how)
    assert prepare(tumours, "--mask-labels", "2") == 2
    said = capsys.readouterr().err
    assert re.search(rf"P1: \S*/P1/T1.nii.gz: {message}", said) and "P0" not in said
    assert not (tumours / "out").exists()


def test_a_size_without_a_unit_is_refused_too(tumours, capsys):
    path = tumours / "patients/P1/T1.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.diag([1e4, 1e4, 1e4, 1])), path)
    assert prepare(tumours, "--mask-pattern", "none") == 2
    assert "has voxels of 1e+04 x 1e+04 x 1e+04 mm: its affine must be" in capsys.readouterr().err


def test_values_at_the_ends_of_16_bits_are_told(tumours, capsys):
    for name, values in (("P0", np.linspace(0, 50000, 720).astype(np.int64)), ("P1", np.linspace(0, 40000, 720))):
        path = tumours / "patients" / name / "T1.nii.gz"
        stored = values.astype(np.int16) if name == "P0" else values.clip(max=32767).astype(np.int16)
        nib.save(nib.Nifti1Image(stored.reshape(12, 10, 6), nib.load(path).affine), path)
    assert prepare(tumours, "--mask-labels", "2") == 0
    said = capsys.readouterr().out
    assert "look at P0: T1.nii.gz holds values from -32" in said and "did its values overflow?" in said
    assert f"look at P1: T1.nii.gz has {(stored == 32767).mean():.1%} of its voxels at 32767" in said


def test_one_image_for_two_modalities_is_refused(cohort, capsys):
    image = nib.load(cohort.folder / "P3/P3_T1.nii.gz")  # stored anew, so that the files differ
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), cohort.folder / "P3/P3-t1d.nii")
    assert cohort.run(*LABELS) == 2
    said = capsys.readouterr().err
    assert "P3: " in said and "P3-t1d.nii: is T1's image again; give T1D its own" in said and "P2" not in said


def test_one_image_of_two_patients_belongs_to_one_group(cohort, capsys):
    shutil.copy(cohort.folder / "P1/P1_T1.nii.gz", cohort.folder / "P4/P4_T1.nii.gz")
    for row in cohort.rows:
        row["person"] = {"P1": "A", "P4": "A"}.get(row["patient"], row["patient"])
    assert cohort.run(*LABELS) == 2
    assert "P1 and P4 have the same image; give them one group (--group-column)" in capsys.readouterr().err
    assert not cohort.output.exists()
    assert cohort.run(*LABELS, "--group-column", "person") == 0
    capsys.readouterr()
    assert cohort.run("--inference", labels=False) == 0
    assert "look at P1 and P4 have the same image" in capsys.readouterr().out
