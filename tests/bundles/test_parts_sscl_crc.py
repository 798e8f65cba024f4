"""What each part of sscl_crc's configs is made of: whose patches, drawn how often."""

import pytest
import torch

from tests.support.parsed_bundles import Parsed, names


@pytest.fixture(scope="module")
def sscl(tmp_path_factory):
    return Parsed("sscl_crc", tmp_path_factory.mktemp("sscl_crc"))


def test_patches_that_are_left_out_are_neither_pretrained_on_nor_trained_on(sscl):
    training = {case["image"].rpartition("/")[2] for case in sscl.training}
    free = {case["image"].rpartition("/")[2] for case in sscl.unlabelled if case["patient"] not in names(sscl.testing)}
    assert 0 < len(free) < len(sscl.unlabelled)

    def seen(place):
        return {entry["image"].rpartition("/")[2] for entry in sscl.get(place).entries}

    assert seen("train#preprocessing") == training and seen("pretrain#cache") == training | free
    assert sscl.get("train#dataset").cache is sscl.get("train#preprocessing")
    assert sscl.get("pretrain#dataset").cache is sscl.get("pretrain#cache")
    found = {entry["image"].rpartition("/")[2] for entry in sscl.evaluate("validate#preprocessing").entries}
    assert found == {case["image"].rpartition("/")[2] for case in sscl.validation}


def test_classes_are_drawn_equally_often_and_fine_tuning_begins_with_the_pretrained_encoder(sscl):
    sampler = sscl.get("train#dataloader").sampler
    labels = torch.tensor([case["label"] for case in sscl.training])
    weights = torch.as_tensor(sampler.weights)
    assert (labels == 0).sum() != (labels == 1).sum()
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum().item())
    assert sscl.handler("train#handlers", "LoadEncoder").path == sscl.get("pretrain#trainer").checkpoint.path
    assert sscl.get("validate#inferer").views == 2  # as asked for
    augmentation = sscl.get("pretrain#trainer").prepare_batch.augmentation
    assert sscl.get("pretrain#trainer").checkpoint.generators["augmentation"] is augmentation.generator
