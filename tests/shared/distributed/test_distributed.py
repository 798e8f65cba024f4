"""Shares of batches and cases, and BatchNorm over processes; in two processes: tests/bundles/test_multi_gpu.py."""

from itertools import chain

import pytest
import torch
from monai.data import DataLoader
from torch import nn

from shared.distributed import processes as distributed
from shared.distributed.batch_norm import GatheredBatchNorm
from shared.errors import CheckpointError, DataError
from shared.handlers import StageCheckpoint


def as_process(monkeypatch, rank, count):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    monkeypatch.setattr(distributed, "rank", lambda: rank)


def loader(size=23, batch=6, **settings):
    generator = torch.Generator().manual_seed(3)
    options = {"batch_size": batch, "shuffle": True, "generator": generator} | settings
    return DataLoader(torch.arange(size), num_workers=0, **options)


@pytest.mark.parametrize("size, drop_last", [(24, False), (23, False), (20, False), (19, True), (19, False)])
def test_parts_of_a_batch_make_up_the_batch_of_one_process(monkeypatch, size, drop_last):
    whole = [batch.tolist() for batch in loader(size, drop_last=drop_last)]
    parts = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        own = distributed.share_batches(loader(size, drop_last=drop_last))
        parts.append([batch.tolist() for batch in own])
        assert len(own) == len(parts[-1])
    whole = [batch[: len(batch) // 3 * 3] for batch in whole if len(batch) >= 3]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole


def test_a_batch_the_processes_do_not_divide_is_refused_with_one_that_fits(monkeypatch):
    as_process(monkeypatch, 0, 4)
    with pytest.raises(DataError, match=r"4 processes do not divide 6; set batch_size to 8"):
        distributed.share_batches(loader())


@pytest.mark.parametrize("size", [3, 7, 12])
def test_every_case_is_evaluated_in_one_process(monkeypatch, size):
    found = []
    for rank in range(3):
        as_process(monkeypatch, rank, 3)
        shared = distributed.share_cases(loader(size, batch=2, shuffle=False))
        found += [case for batch in shared for case in batch.tolist()]
    assert found == list(range(size))


def test_fewer_cases_than_processes_are_refused(monkeypatch):
    as_process(monkeypatch, 0, 4)
    with pytest.raises(DataError, match="3 cases cannot be evaluated in 4 processes"):
        distributed.share_cases(loader(3, shuffle=False))


def test_in_one_process_nothing_changes():
    given, network = loader(), nn.Sequential(nn.BatchNorm2d(2))
    assert distributed.share_batches(given) is given and distributed.share_cases(given) is given
    assert distributed.sync_batch_norm(network) is network and type(network[0]) is nn.BatchNorm2d


def test_without_torchrun_the_error_names_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DataError, match="torchrun --nproc_per_node"):
        distributed.start("gloo")


def test_batch_norm_keeps_weights_and_buffers_when_it_is_converted():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    parameters = list(network.parameters())
    converted = GatheredBatchNorm.convert(network)
    assert isinstance(converted[1], GatheredBatchNorm)
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    assert all(torch.equal(value, converted.state_dict()[key]) for key, value in state.items())


def test_processes_draw_apart_but_for_the_batches(monkeypatch, tmp_path):
    from shared.handlers import checkpoint

    generators = {name: torch.Generator().manual_seed(5) for name in ("shuffle", "augmentation")}
    handler = StageCheckpoint(tmp_path / "a.pt", nn.Linear(1, 1), generators=generators)
    monkeypatch.setattr(checkpoint, "is_main", lambda: False)
    monkeypatch.setattr(checkpoint, "rank", lambda: 1)
    state = torch.get_rng_state()
    handler._draw_apart()
    torch.set_rng_state(state)
    reference = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(3, generator=generators["shuffle"]), reference)
    assert not torch.equal(torch.rand(3, generator=generators["augmentation"]), reference)


def test_a_run_of_other_processes_is_not_continued(tmp_path):
    drawn = {"torch": torch.get_rng_state()}
    network = nn.Linear(1, 1)
    torch.save({"network": network.state_dict(), "epoch": 1, "generators": [drawn] * 4}, tmp_path / "a.pt.resume")
    handler = StageCheckpoint(tmp_path / "a.pt", network, resume=True)
    with pytest.raises(CheckpointError, match="written by 4 processes, and 1 would go on"):
        handler._restore(None)
