"""Which file is which patient's, modality's and mask's: what is taken, what is refused, what is told."""

import pytest

from shared.apps.preparation.matching import (
    Lacking,
    describe_unread,
    files_of_patients,
    match_files,
    taken_for_another,
    unread_files,
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def matched(folder, modalities, *, patient="P1", pattern=None, known=("P1",), words=None):
    """Names of the files taken for modalities and mask, and the problems."""
    files = files_of_patients(folder, list(known), modalities)[patient]
    images, mask, problems = match_files(patient, files, folder, dict.fromkeys(modalities), pattern, words=words)
    return {key: path.name for key, path in images.items()}, mask and mask.name, problems


@pytest.mark.parametrize(
    "name",
    [
        *("label", "T1-label", "segm", "T1_Segmentation", "gt", "contour", "annotation", "Segmentation-label"),
        *("liver_tumors", "tumormask", "brain_tumor_seg", "P1_masks", "ground-truth", "GTV"),
    ],
)
def test_masks_as_people_call_them(tmp_path, name):
    touch(tmp_path / "P1", "T1.nii.gz", f"{name}.nii.gz")
    assert matched(tmp_path, ["T1"]) == ({"T1": "T1.nii.gz"}, f"{name}.nii.gz", [])


@pytest.mark.parametrize("name", ["liver_mask", "brain_mask", "brainmask", "LiverSeg", "body-label"])
def test_an_organs_mask_is_not_the_tumours(tmp_path, name):
    touch(tmp_path / "P1", "T1.nii.gz", f"{name}.nii.gz", "seg.nii.gz")
    assert matched(tmp_path, ["T1"]) == ({"T1": "T1.nii.gz"}, "seg.nii.gz", [])
    (tmp_path / "P1" / "seg.nii.gz").unlink()
    images, mask, problems = matched(tmp_path, ["T1"])
    assert mask is None and len(problems) == 1 and not isinstance(problems[0], Lacking)
    assert f"P1: has no tumour mask that is recognised, and P1/{name}.nii.gz may be one" in problems[0]
    assert matched(tmp_path, ["T1"], pattern=f"{name}*") == (images, f"{name}.nii.gz", [])


@pytest.mark.parametrize("name", ["mask.nrrd", "tumour.mha", "Segmentation.seg.nrrd", "labelmap2.nii.gz", "roi1.nii"])
def test_no_masks_must_be_said_where_something_like_a_mask_lies(tmp_path, name):
    touch(tmp_path / "P1", "T1.nii.gz", name, "labels.csv", "about_mask.txt")
    _, mask, problems = matched(tmp_path, ["T1"])
    assert mask is None and f"P1/{name} may be one; give --mask-pattern" in problems[0] and len(problems) == 1
    assert matched(tmp_path, ["T1"], pattern="none") == ({"T1": "T1.nii.gz"}, None, [])


def test_two_masks_and_a_pattern_without_any_are_told(tmp_path):
    touch(tmp_path / "P1", "T1.nii.gz", "seg.nii.gz", "other_mask.nii.gz")
    assert "2 files may be the mask (P1/other_mask.nii.gz, P1/seg.nii.gz)" in matched(tmp_path, ["T1"])[2][0]
    problems = matched(tmp_path, ["T1"], pattern="*roi*")[2]
    assert "P1: no file matches --mask-pattern '*roi*'; its files are" in problems[0] and isinstance(
        problems[0], Lacking
    )


@pytest.mark.parametrize(
    ("modalities", "files", "taken"),
    [
        (["T1", "T2"], ["T1", "T2", "T2_FLAIR"], {"T1": "T1", "T2": "T2"}),
        (["T2", "FLAIR"], ["ax_T2", "T2_FLAIR"], {"T2": "ax_T2", "FLAIR": "T2_FLAIR"}),
        (["T1", "T1 post"], ["t1_vibe", "t1-post"], {"T1": "t1_vibe", "T1 post": "t1-post"}),
        (["T1", "ART", "PV"], ["T1_pre", "T1_ART", "T1_ce_PV"], {"T1": "T1_pre", "ART": "T1_ART", "PV": "T1_ce_PV"}),
        (["ADC", "DWI"], ["dwi_b800", "DWI_ADC_map"], {"ADC": "DWI_ADC_map", "DWI": "dwi_b800"}),
    ],
)
def test_words_of_another_sequence_make_another_modality(tmp_path, modalities, files, taken):
    touch(tmp_path / "P1", *(f"{name}.nii.gz" for name in files))
    assert matched(tmp_path, modalities) == ({key: f"{name}.nii.gz" for key, name in taken.items()}, None, [])


@pytest.mark.parametrize(
    ("modalities", "file", "beside"),
    [(["T1", "T2"], "T2_FLAIR", "flair"), (["T1"], "T1_late", "late"), (["T2"], "T2_FLAIR", "flair")],
)
def test_a_longer_name_does_not_stand_in_for_a_missing_modality(tmp_path, modalities, file, beside):
    touch(tmp_path / "P1", *(f"{name}.nii.gz" for name in ("T1", file) if name != modalities[-1]))
    images, _, problems = matched(tmp_path, modalities)
    assert modalities[-1] not in images and len(problems) == 1 and isinstance(problems[0], Lacking)
    assert f"P1/{file}.nii.gz holds {beside}, too" in problems[0] and f'--pattern {modalities[-1]}="..."' in problems[0]


def test_one_modality_takes_what_is_there_but_not_another_sequence(tmp_path):
    touch(tmp_path / "P1", "scan.nii.gz")
    touch(tmp_path / "P2", "FLAIR.nii.gz")
    known = ["P1", "P2"]
    assert matched(tmp_path, ["T2"], known=known)[0] == {"T2": "scan.nii.gz"}
    assert matched(tmp_path, ["T2"], known=known, patient="P2")[0] == {}
    assert matched(tmp_path, ["image"], known=known, patient="P2")[0] == {"image": "FLAIR.nii.gz"}


def test_the_files_own_name_comes_before_its_folders(tmp_path):
    touch(tmp_path / "P1", "T1/im.nii", "T1D/ax_T1D.nii")
    assert matched(tmp_path, ["T1", "T1D"])[0] == {"T1": "im.nii", "T1D": "ax_T1D.nii"}
    touch(tmp_path / "P2", "post/T1.nii.gz")
    images, _, problems = matched(tmp_path, ["T1", "T1D"], patient="P2", known=["P2"])
    assert images == {} and "P2/post/T1.nii.gz holds post, too" in problems[0]


@pytest.mark.parametrize("study", ["liver tumor MRI", "2024 lesion protocol", "roi"])
def test_a_folder_makes_no_mask_of_an_image_where_a_files_own_name_does(tmp_path, study):
    touch(tmp_path / "P1" / study, "T1.nii.gz", "mask.nii.gz")
    assert matched(tmp_path, ["T1"]) == ({"T1": "T1.nii.gz"}, "mask.nii.gz", [])
    (tmp_path / "P1" / study / "mask.nii.gz").unlink()
    assert matched(tmp_path, ["T1"]) == ({"T1": "T1.nii.gz"}, None, [])
    # a folder that tells masks from images counts
    (tmp_path / "P1" / study / "T1.nii.gz").unlink()
    touch(tmp_path / "P1", "masks/1.nii.gz", "images/T1.nii.gz")
    assert matched(tmp_path, ["T1"]) == ({"T1": "T1.nii.gz"}, "1.nii.gz", [])
    # nothing but a mask is no image
    (tmp_path / "P1" / "images/T1.nii.gz").unlink()
    assert matched(tmp_path, ["T1"])[:2] == ({}, "1.nii.gz")


@pytest.mark.parametrize(
    ("modality", "file", "beside"),
    [
        ("FLAIR", "ax_T1_FLAIR", "t1"),
        ("T2", "T2_GRE", "gre"),
        ("T1", "T1_localizer", "localizer"),
        ("T1", "scout_T1", "scout"),
    ],
)
def test_what_is_no_such_sequence_is_not_taken_for_it(tmp_path, modality, file, beside):
    touch(tmp_path / "P1", "DWI.nii.gz", f"{file}.nii.gz", "mask.nii.gz")
    images, _, problems = matched(tmp_path, [modality, "DWI"])
    assert images == {"DWI": "DWI.nii.gz"} and f"P1/{file}.nii.gz holds {beside}, too" in problems[0]
    touch(tmp_path / "P1", f"{modality}.nii.gz")
    assert matched(tmp_path, [modality, "DWI"])[0][modality] == f"{modality}.nii.gz"


@pytest.mark.parametrize(("modality", "file"), [("FLAIR", "T2_FLAIR"), ("T1", "T1_GRE"), ("T2", "T2_TSE")])
def test_words_that_say_how_a_sequence_is_made_change_nothing(tmp_path, modality, file):
    touch(tmp_path / "P1", "DWI.nii.gz", f"{file}.nii.gz", "mask.nii.gz")
    assert matched(tmp_path, [modality, "DWI"])[0][modality] == f"{file}.nii.gz"


def test_a_number_after_the_name_is_another_patients(tmp_path):
    touch(
        tmp_path, "P001-2_t1.nii.gz", "P001-2_mask.nii.gz", "P001_0000.nii.gz", "P001_20190304_t2.nii.gz", "P0011.nii"
    )
    touch(tmp_path, "P001_mask.nrrd", "P002_flair.nii", "readme.txt", "P001-2_mask.nrrd")
    found = files_of_patients(tmp_path, ["P001", "P002"], ["T1", "T2"])
    names = {patient: [path.name for path in paths] for patient, paths in found.items()}
    assert names == {
        "P001-2": ["P001-2_mask.nii.gz", "P001-2_t1.nii.gz", "P001-2_mask.nrrd"],
        "P001": ["P001_0000.nii.gz", "P001_20190304_t2.nii.gz", "P001_mask.nrrd"],
        "P0011": ["P0011.nii"],
        "P002": ["P002_flair.nii"],
    }


def test_clutter_is_no_file_at_any_depth_and_links_are_followed(tmp_path):
    real = touch(tmp_path / "elsewhere", "t1.nii.gz", "anat/mask.nii.gz")
    folder = touch(tmp_path / "in", "__MACOSX/P1/._t1.nii.gz", "P1/._t1.nii.gz", "P1/@eaDir/t1.nii.gz", "P1/.x/t1.nii")
    (folder / "P2").symlink_to(real)
    (folder / "P1" / "t1.nii.gz").symlink_to(real / "t1.nii.gz")
    found = files_of_patients(folder, None, ["T1"])
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "P1": ["t1.nii.gz"],
        "P2": ["mask.nii.gz", "t1.nii.gz"],
    }
    assert unread_files(folder, [folder / "P1" / "t1.nii.gz"]) == ["P2/anat/mask.nii.gz", "P2/t1.nii.gz"]


def test_a_name_that_is_anothers_unread_file_is_suspect(tmp_path):
    def patient(name, file, *others):
        paths = [tmp_path / name / f"{other}.nii" for other in others]
        return {"files": {"T1": tmp_path / name / f"{file}.nii"}, "mask_file": None, "others": paths}

    lines = taken_for_another({"P1": patient("P1", "T1", "T1_x"), "P2": patient("P2", "T1_x")}, tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("P2: P2/T1_x.nii is the only file for T1, with P1 a file of that name lies beside")
    assert taken_for_another({"P1": patient("P1", "T1"), "P2": patient("P2", "T1_x")}, tmp_path) == []


def test_files_that_are_not_read_are_told_by_name():
    files = [f"P{n}/{name}" for n in range(40) for name in ("adc.nii.gz", f"IM{n}.dcm")]
    line = describe_unread(files, [f"P{n}" for n in range(40)], most=3)
    assert line == (
        "80 files are not read: adc.nii.gz (40 times), P0/IM0.dcm, P1/IM1.dcm, and 38 more (manifest.json lists all)"
    )
