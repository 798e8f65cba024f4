import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import normalize

from shared.data import ContrastiveRows, MixupTable
from shared.losses import (
    IRCLPretrainLoss,
    MemoryBank,
    MemoryBankContrastiveLoss,
    PerceptualReconstructionLoss,
    balanced_class_weights,
)
from tests.references import ircl_losses as reference


def unit(count, dim=6, *, seed=0):
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def rows():
    return ContrastiveRows(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)), MixupTable(4, ratio=1))


def loss_of(rows, **weights):
    bank = MemoryBank(len(rows), 6)
    bank.seed(torch.arange(len(rows)), unit(len(rows)))
    return IRCLPretrainLoss(PerceptualReconstructionLoss(), MemoryBankContrastiveLoss(bank), rows, **weights)


def batch_of(rows, row):
    image = rows.batch(row)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(4))
    return (image + 0.2 * noise).requires_grad_(), unit(len(row), seed=5).requires_grad_(), {"image": image, "row": row}


@pytest.mark.parametrize("weights", [{}, {"reconstruction_weight": 0.25, "contrastive_weight": 3.0}])
def test_it_is_equation_1_with_both_kinds_of_positives(rows, weights):
    loss, row = loss_of(rows, **weights), torch.tensor([7, 0, 20])
    reconstruction, z, target = batch_of(rows, row)
    loss.inter_positives = torch.full((24, 2), -1)
    loss.inter_positives[7] = torch.tensor([12, 1])
    positives = [[6, 7, 8, 12, 1], [0, 1, 2, -1, -1], [18, 19, 20, -1, -1]]
    bank = loss.contrastive.bank.embeddings.tolist()
    contrastive = reference.contrastive_loss(z.tolist(), bank, row.tolist(), positives, 0.07)
    pixels = reference.reconstruction_loss(target["image"][:, 0].tolist(), reconstruction[:, 0].tolist())
    expected = weights.get("reconstruction_weight", 1) * pixels + weights.get("contrastive_weight", 1) * contrastive
    assert loss((reconstruction, None, z), target).item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms()["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert loss.terms()["reconstruction"].item() == pytest.approx(pixels, rel=1e-5)
    loss.inter_positives = None
    fewer = reference.contrastive_loss(z.tolist(), bank, row.tolist(), [p[:3] for p in positives], 0.07)
    loss((reconstruction, None, z), target)
    assert loss.terms()["contrastive"].item() == pytest.approx(fewer, rel=1e-5) and fewer > contrastive


@pytest.mark.parametrize("left", ["reconstruction", "contrastive"])
def test_a_term_of_weight_0_gives_no_gradient(rows, left):
    gone = "contrastive" if left == "reconstruction" else "reconstruction"
    loss = loss_of(rows, **{f"{gone}_weight": 0.0})
    reconstruction, z, target = batch_of(rows, torch.tensor([7, 0]))
    value = loss((reconstruction, None, z), target)
    value.backward()
    assert value.item() == pytest.approx(loss.terms()[left].item()) and loss.terms()[gone].item() > 0
    own, other = (reconstruction, z) if left == "reconstruction" else (z, reconstruction)
    assert (own.grad != 0).any() and (other.grad == 0).all()


def test_without_any_positive_an_image_is_its_own(rows):
    alone = ContrastiveRows(rows.images, rows.table, intra_positives="none")
    loss, row = loss_of(alone), torch.tensor([7, 0, 20])
    reconstruction, z, target = batch_of(alone, row)
    bank = loss.contrastive.bank.embeddings.tolist()
    expected = reference.contrastive_loss(z.tolist(), bank, row.tolist(), [[7], [0], [20]], 0.07)
    loss((reconstruction, None, z), target)
    assert loss.terms()["contrastive"].item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_network_and_not_the_logged_terms(rows):
    loss = loss_of(rows)
    reconstruction, z, target = batch_of(rows, torch.tensor([7, 0]))
    loss((reconstruction, None, z), target).backward()
    assert (reconstruction.grad != 0).any() and (z.grad != 0).any()
    assert not any(term.requires_grad for term in loss.terms().values())


def test_a_reconstruction_in_bf16_is_compared_in_float32(rows):
    loss = loss_of(rows)
    reconstruction, z, target = batch_of(rows, torch.tensor([7, 0]))
    half = reconstruction.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss((half, None, z), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss((half.float(), None, z), target))


@pytest.mark.parametrize("labels", [[0, 1, 1, 1, 0, 1, 1], [0, 2, 1, 2, 2]])
def test_class_weights_equal_sklearn(labels):
    classes = sorted(set(labels))
    expected = compute_class_weight("balanced", classes=torch.tensor(classes).numpy(), y=labels)
    assert balanced_class_weights(torch.tensor(labels), len(classes)).tolist() == pytest.approx(expected.tolist())


def test_a_class_nobody_has_gets_a_finite_weight():
    assert balanced_class_weights(torch.tensor([1, 1, 1])).tolist() == [1.5, 0.5]
