import pytest
import torch

from shared.losses import NTXentLoss, ViewsLoss


def test_the_stack_of_views_gives_the_loss_of_the_pair():
    torch.manual_seed(0)
    z = torch.randn(10, 6)
    loss = NTXentLoss(0.5)
    torch.testing.assert_close(ViewsLoss(loss)(z, torch.arange(5).repeat(2)), loss(z[:5], z[5:]))


def test_an_odd_number_of_views_is_refused():
    with pytest.raises(ValueError, match="got 3 views"):
        ViewsLoss(NTXentLoss(0.5))(torch.randn(3, 6), None)
