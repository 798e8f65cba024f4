import torch

from shared.data import ContrastiveRows, MixupTable, collate_cases
from shared.engines import PrepareCases, PrepareFeatures, PrepareImages, PrepareRows
from shared.transforms import BatchedAugmentation
from tests.support.tiny import lively_images

CPU = torch.device("cpu")


def test_rows_become_their_images_with_the_target_beside():
    rows = ContrastiveRows(lively_images(), MixupTable(5, ratio=1))
    row = torch.tensor([3, 0, 21])
    image, target = PrepareRows(rows)({"row": row}, CPU, False)
    assert torch.equal(image, rows.batch(row)) and target["image"] is image and torch.equal(target["row"], row)


def test_what_is_reconstructed_is_the_augmented_image():
    rows = ContrastiveRows(lively_images(), MixupTable(5, ratio=1))
    row = torch.tensor([3, 0, 21])
    image, target = PrepareRows(rows, BatchedAugmentation(rotation=90, seed=1), channels_last=True)({"row": row}, CPU)
    assert torch.equal(image, BatchedAugmentation(rotation=90, seed=1)(rows.batch(row)))
    assert torch.equal(target["image"], image) and not torch.equal(image, rows.batch(row))
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_features_become_the_predictors_arguments():
    names = ("image", "assignment", "label", "covariates")
    batch = {name: torch.full((2, 1), float(i)) for i, name in enumerate(names)}
    h, label, arguments, named = PrepareFeatures()(batch, CPU)
    assert (h[0, 0], label[0, 0]) == (0, 2) and [a[0, 0].item() for a in arguments] == [1, 3] and named == {}


def test_cases_become_the_classifiers_arguments_with_or_without_labels():
    cases = [
        {"image": image, "covariates": torch.tensor([float(i)]), "label": 1 - i, "patient": f"P{i}"}
        for i, image in enumerate(lively_images(2))
    ]
    image, label, (covariates,), named = PrepareCases()(collate_cases(cases), CPU)
    assert image.shape == (2, 4, 16, 16) and label.tolist() == [1, 0] and covariates.tolist() == [[0.0], [1.0]]
    assert named == {}
    del cases[0]["label"]
    assert PrepareCases()(collate_cases(cases), CPU)[1] is None
    assert PrepareCases(torch.nn.Identity())(collate_cases(cases), CPU)[2:] == ((), {}), "it takes no covariates"


def test_images_become_channels_augmented_alike():
    case = {"image": lively_images(1, 1)[0].expand(3, 16, 16), "covariates": torch.zeros(0), "label": 1, "patient": "P"}
    batch = collate_cases([case, case])
    image, label = PrepareImages()(batch, CPU)
    assert torch.equal(image, batch["image"]) and label.tolist() == [1, 1]
    known = [{**case, "patient": name} for name in ("Q", "P", 7)]
    _, target = PrepareImages(cases=known)(collate_cases([known[2], known[0]]), CPU)
    assert target["label"].tolist() == [1, 1] and target["row"].tolist() == [2, 0]
    image, _ = PrepareImages(BatchedAugmentation(rotation=180, gain=0.3))(batch, CPU)
    torch.testing.assert_close(image[:, 0], image[:, 2])
    assert not torch.allclose(image[0], image[1]) and not torch.allclose(image[0], batch["image"][0])
