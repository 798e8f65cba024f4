"""Embeddings of a fold's encoders, brought into the space of another training's."""

from types import SimpleNamespace

import pytest
import torch

from shared.checkpoint import save_checkpoint
from shared.engines.cross_fit import aligned
from shared.errors import CheckpointError
from shared.networks.glioma.embeddings import FrozenEmbeddings


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_a_turned_scaled_and_moved_space_is_brought_back_by_the_fitted_patients_alone(scale):
    random = torch.Generator().manual_seed(0)
    other = torch.randn(12, 4, generator=random)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=random, dtype=torch.float64))[0].float()
    own = scale * other @ turn + torch.tensor([5.0, -3.0, 1.0, 0.0])
    fitted = torch.arange(12) % 3 > 0
    # the others' embeddings there are of encoders that saw them, and say nothing of where they belong
    seen = torch.where(fitted[:, None], other, 100.0)
    found = aligned(own, seen, fitted)
    assert found.dtype == own.dtype
    torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-5)


def test_embeddings_that_do_not_vary_become_the_others_mean():
    other = torch.arange(8.0).reshape(4, 2)
    found = aligned(torch.ones(4, 2), other, torch.tensor([True, True, True, False]))
    torch.testing.assert_close(found, other[:3].mean(dim=0).expand(4, 2))


def test_crossed_embeddings_are_found_by_the_patients_names(tmp_path):
    kept = {"u_image": torch.arange(6.0).reshape(3, 2), "scores": torch.tensor([[0.1], [0.2], [0.3]])}
    save_checkpoint(tmp_path / "cross_fit.pt", {"patients": ["A", "B", "C"], **kept})

    def outputs(*patients):
        return FrozenEmbeddings(SimpleNamespace(patients=patients), None, crossed=tmp_path / "cross_fit.pt").outputs()

    found = outputs("C", "A")
    assert found.u_image.tolist() == [[4.0, 5.0], [0.0, 1.0]] and found.u_brain is None
    torch.testing.assert_close(found.unimodal_logits, torch.tensor([[0.3], [0.1]]))
    with pytest.raises(CheckpointError, match=r"of other patients \(D is not there\)"):
        outputs("A", "D")
