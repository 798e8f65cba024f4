import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import EnsureTyped
from torch.utils.data import DataLoader

from shared.data import CaseDataset, collate_cases
from shared.errors import DataError
from shared.transforms import LoadCased, ROISlicesd
from tests.support.tiny import affine_of, ball, cohort, lively_images, texture, write_case


def load(cases, num_slices=3, **settings):
    return CaseDataset(cases, [LoadCased(), ROISlicesd(num_slices, size=16)], progress=False, **settings)


def test_cases_are_loaded_once_with_their_covariates(tmp_path):
    data = [
        {**write_case(tmp_path, name, modalities=2, seed=seed), "covariates": {"age": 40 + seed, "afp": 3.5}}
        for seed, name in enumerate(("P1", "P2"))
    ]
    before = [dict(case) for case in data]
    cases = load(data, covariates=("afp", "age"))
    assert len(cases) == 2 and cases[0]["image"].shape == (6, 16, 16)
    assert cases[1]["covariates"].tolist() == [3.5, 41.0]
    for path in data[0]["image"]:
        nib.save(nib.Nifti1Image(texture(seed=9), affine_of()), path)
    torch.testing.assert_close(cases[0]["image"], cases.stack("image")[0])
    assert load(before[:1])[0]["image"].shape == cases[0]["image"].shape
    assert not torch.allclose(load(before[:1])[0]["image"], cases[0]["image"])  # the file did change
    assert data == before  # the datalist's own cases are not written to


def test_no_covariates_are_an_empty_tensor(tmp_path):
    assert load([write_case(tmp_path)])[0]["covariates"].shape == (0,)


def test_all_unusable_cases_are_reported_at_once(tmp_path):
    cases = [write_case(tmp_path, f"P{i}") for i in range(1, 6)]
    empty = np.zeros((24, 20, 7), dtype=bool)
    thin = empty.copy()
    thin[:, :, 3] = ball()[:, :, 3]
    cases[1] = write_case(tmp_path, "P2", mask=empty)
    cases[2] = write_case(tmp_path, "P3", mask=thin)
    values = texture()
    values[0, 0, 0] = np.inf
    nib.save(nib.Nifti1Image(values, affine_of()), cases[4]["image"][0])
    with pytest.raises(DataError) as caught:
        load(cases)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["P2", "P3", "P5"]
    text = str(caught.value)
    assert text.startswith("3 problems:\n- P2: the tumour mask") and "3 slices with tumour are needed" in text
    assert "holds 1 NaN or Inf voxels" in text and "P1" not in text and "P4" not in text


def test_one_unusable_case_is_its_own_message(tmp_path):
    case = write_case(tmp_path, mask=np.zeros((24, 20, 7), dtype=bool))
    with pytest.raises(DataError, match=r"^P1: the tumour mask .* is empty"):
        load([case])


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_data(tmp_path):
    case = write_case(tmp_path)
    del case["image"]
    with pytest.raises(RuntimeError) as caught:
        load([case])
    assert not isinstance(caught.value, DataError) and isinstance(caught.value.__cause__, KeyError)


def test_stack_refuses_cases_of_different_shapes():
    with pytest.raises(DataError, match=r"must give image of one shape, got \[\(4, 16, 16\), \(5, 16, 16\)\]"):
        cohort([lively_images(1)[0], lively_images(1, 5)[0]]).stack("image")


def test_batches_are_what_the_network_and_the_table_need():
    images = lively_images(3)
    cases = cohort(images, [1, 0, 1], [[1.0], [2.0], [3.0]], names=("age",))
    for item in cases._cache:
        item["geometry"] = {"axis": 2}  # a dictionary per case would be taken apart by MONAI's decollation
    batch = next(iter(DataLoader(cases, batch_size=3, collate_fn=collate_cases)))
    assert torch.equal(batch["image"], images) and batch["covariates"].tolist() == [[1.0], [2.0], [3.0]]
    assert batch["label"].tolist() == [1, 0, 1] and batch["patient"] == ["P0", "P1", "P2"]
    assert set(batch) == {"image", "covariates", "label", "patient"}
    grouped = [{**case, "group": group} for case, group in zip(cases, "ghg", strict=True)]
    assert collate_cases(grouped)["group"] == ["g", "h", "g"]
    assert "group" not in collate_cases([*grouped[:2], cases[2]])


@pytest.mark.parametrize("labels", [(None, None), (1, None), (None, 0)])
def test_a_batch_has_labels_only_where_all_are_known(labels):
    cases = [
        {"image": torch.zeros(2, 4, 4), "covariates": torch.zeros(0), "patient": name, "label": label}
        for name, label in zip("ab", labels, strict=True)
    ]
    batch = collate_cases(cases)
    assert "label" not in batch and batch["patient"] == ["a", "b"]
    del cases[0]["label"]
    assert "label" not in collate_cases(cases)


def test_covariates_come_in_the_order_asked_for():
    data = [{"patient": "P1", "image": lively_images(1)[0], "covariates": {"age": 50.0, "grade": 4.0, "sex": 1.0}}]
    for names in (("grade", "age"), ("age", "sex", "grade"), ()):
        cases = CaseDataset(data, EnsureTyped("image", track_meta=False), covariates=names, progress=False)
        assert cases.stack("covariates").tolist() == [[data[0]["covariates"][name] for name in names]]
