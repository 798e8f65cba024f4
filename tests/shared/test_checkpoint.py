import resource

import pytest
import torch
from torch import nn

from shared.checkpoint import load_checkpoint, load_weights, save_checkpoint
from shared.errors import CheckpointError


class Surprise:
    """What must never be unpickled."""

    def __reduce__(self):
        return (print, ("run by the checkpoint",))


def test_a_checkpoint_comes_back_with_its_tensors_and_numbers(tmp_path):
    state = {"network": nn.Linear(2, 3).state_dict(), "epoch": 4, "generators": {"torch": torch.get_rng_state()}}
    save_checkpoint(tmp_path / "new" / "c.pt", state)
    found = load_checkpoint(tmp_path / "new" / "c.pt")
    assert found["epoch"] == 4 and torch.equal(found["generators"]["torch"], state["generators"]["torch"])
    assert torch.equal(found["network"]["weight"], state["network"]["weight"])


# --- disk full ----------------------------------------------------------------------------------------------------


def fill(monkeypatch, how):
    """Let writing a checkpoint fail on the way, after some bytes are on the disk."""
    if how == "OSError":

        def save(state, path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", save)
        return lambda: None
    # a real failure inside PyTorch's own writer: the kernel refuses files beyond this size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", ["OSError", "kernel"])
@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path, monkeypatch, how, older):
    path = tmp_path / "model.pt"
    if older:
        save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes() if older else None
    empty_again = fill(monkeypatch, how)
    try:
        with pytest.raises(CheckpointError, match=r"model.pt could not be written .*older file of that name is unt"):
            save_checkpoint(path, {"weight": torch.rand(10_000)})
    finally:
        empty_again()
    assert [p.name for p in tmp_path.iterdir()] == (["model.pt"] if older else [])
    assert not older or path.read_bytes() == before


def test_the_message_of_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    fill(monkeypatch, "OSError")
    with pytest.raises(CheckpointError, match=r"No space left on device.*Free disk space.*--resume true"):
        save_checkpoint(tmp_path / "model.pt", {})


# --- files that are none ------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*a.pt\. Run stage I first"):
        load_checkpoint(tmp_path / "a.pt", hint="Run stage I first.")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):  # a folder is none
        load_checkpoint(tmp_path)


def write_broken(path, how):
    if how == "truncated":
        torch.save({"weight": torch.rand(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif how == "code":
        torch.save({"weight": Surprise()}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"patient,label\nP1,0\n", "noise": bytes(range(256))}[how])


@pytest.mark.parametrize("how", ["empty", "text", "noise", "truncated", "code"])
def test_what_is_no_checkpoint_is_refused_without_being_run(tmp_path, how, capsys):
    write_broken(tmp_path / "c.pt", how)
    with pytest.raises(CheckpointError, match=r"c.pt cannot be read as a checkpoint \(\w+.*copy the file once more"):
        load_checkpoint(tmp_path / "c.pt")
    assert "run by the checkpoint" not in capsys.readouterr().out


# --- weights that do not fit --------------------------------------------------------------------------------------


def test_weights_that_fit_are_loaded():
    network, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_weights(network, other.state_dict(), "model.pt")
    assert torch.equal(network.weight, other.weight)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (nn.Linear(5, 3).state_dict(), r"weight: \(3, 5\) in the file, \(3, 2\) in the network\. Use the config overl"),
        ({"weight": torch.rand(3, 2)}, "bias: not in the file"),
        ({**nn.Linear(2, 3).state_dict(), "head.weight": torch.rand(1)}, "head.weight: only in the file"),
        ([1, 2], "model.pt holds a list, not a state dict"),
        ({"weight": 1, "bias": torch.rand(3)}, "weight: int in the file"),
        (nn.ModuleList(nn.Linear(1, 1) for _ in range(4)).state_dict(), "and 6 more"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(state, message):
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        load_weights(network, state, "model.pt")
    assert torch.equal(network.weight, before)
