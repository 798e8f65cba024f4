"""BatchNorm over processes, here of one that is told it is two; in two: tests/bundles/test_multi_gpu.py."""

import pytest
import torch
from torch import nn

from shared.distributed import batch_norm
from shared.distributed.batch_norm import GatheredBatchNorm


@pytest.fixture
def told(monkeypatch):
    """Two processes, of which the other one brings the very same batch: mean and biased variance stay."""
    monkeypatch.setattr(batch_norm.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm.dist, "all_reduce", lambda count: count.mul_(2))
    monkeypatch.setattr(batch_norm, "all_reduce", lambda x: 2 * x)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_processes_normalise_as_one_with_both_batches(told, momentum):
    generator = torch.Generator().manual_seed(0)
    own, plain = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    own = GatheredBatchNorm.convert(own)
    for _ in range(3):
        x = 3 + 2 * torch.randn(4, 3, 5, 2, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(own(x), plain(torch.cat([x, x]))[:4])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(own, name), getattr(plain, name))
    assert (own.running_var > 1.2).all()
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x))
