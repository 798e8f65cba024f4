"""MONAI's evaluator for classes: probabilities, one-hot labels, AUC, all on one device."""

import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from sklearn.metrics import roc_auc_score

from shared.engines import ClassEvaluator
from shared.engines.evaluator import class_postprocessing


def evaluator(device, items, **settings):
    loader = DataLoader(Dataset(items), batch_size=2, num_workers=0)
    return ClassEvaluator(device, loader, network=torch.nn.Identity(), **settings)


def test_probabilities_sum_to_one_and_the_auc_is_scikit_learns():
    logits = torch.tensor([[0.2, 1.0], [1.5, -0.5], [0.0, 0.1], [0.3, 0.0], [2.0, 2.2]])
    labels = [1, 0, 0, 1, 1]
    engine = evaluator("cpu", [{"image": x, "label": y} for x, y in zip(logits, labels, strict=True)])
    engine.run()
    expected = roc_auc_score(labels, logits.softmax(1)[:, 1])
    assert engine.state.metrics["AUC"] == pytest.approx(expected) and 0 < expected < 1
    last = engine.state.output[-1]
    torch.testing.assert_close(torch.as_tensor(last["pred"]), logits[-1].softmax(0))
    assert last["label"].tolist() == [0, 1]


def test_predictions_and_labels_meet_on_the_device_that_predicts():
    # on a GPU the AUC met labels on the CPU; the meta device stands for one here, and refuses to mix as one does
    given = decollate_batch({"pred": torch.zeros(2, 3, device="meta"), "label": torch.tensor([0, 1])})
    for case in map(class_postprocessing("meta", 3), given):
        assert case["pred"].device.type == case["label"].device.type == "meta" and case["label"].shape == (3,)
