"""Networks against their metadata, and their exports, on toy bundles."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.bundle.exports import ExportChecks, fill_empty_buffers, random_inputs
from shared.bundle.verify import main, table

ROOT = Path(__file__).parents[3]
FORMAT = {"type": "feature", "format": "rows", "spatial_shape": [4], "dtype": "float32", "value_range": [0, 1]}


class TwoInputs(nn.Module):
    """An image and the rows of a table that it looks up, as a multi-input network."""

    def __init__(self, num_classes=2, state=False):
        super().__init__()
        self.register_buffer("bank", torch.zeros(6, 4))
        self.register_buffer("calls", torch.zeros(1))
        self.head = nn.Linear(8, num_classes)
        self.state = state

    def forward(self, image: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        found = self.bank[rows.clamp(min=0)].mean(dim=1)
        if self.state:
            self.calls += 1
        return self.head(torch.cat([image.mean(dim=1), found], dim=1)) + self.calls


@pytest.fixture
def toy(tmp_path):
    """A bundle of that network; ``edit`` changes arguments of the network or the metadata."""

    def make(network=None, **metadata):
        folder = tmp_path / "toy"
        (folder / "configs").mkdir(parents=True)
        definition = {"_target_": f"{__name__}.TwoInputs", **(network or {})}
        (folder / "configs/train.json").write_text(json.dumps({"network_def": definition}))
        inputs = {"image": {**FORMAT, "num_channels": 3}}
        inputs["rows"] = {**FORMAT, "num_channels": 5, "spatial_shape": [], "dtype": "int64", "value_range": [-1, 5]}
        content = {"network_data_format": {"inputs": inputs, "outputs": {"pred": {**FORMAT, "num_channels": 2}}}}
        (folder / "configs/metadata.json").write_text(json.dumps({"version": "0.1.0", **content, **metadata}))
        (tmp_path / "out").mkdir()
        return ExportChecks(folder, tmp_path / "out")

    return make


def test_all_inputs_of_a_network_go_through_all_exports(toy):
    results = list(toy().run())
    assert [each.problems for each in results] == [[]] * 4
    assert [each.status for each in results[:3]] == ["ok"] * 3
    assert results[0].note.startswith("image, rows -> [2, 2]") and "scripted" in results[1].note


def test_another_number_of_outputs_than_described_is_found(toy):
    result = next(toy({"num_classes": 3}).run())
    assert "3" in result.problems[0] and "doesn't match" in result.problems[0]


def test_an_export_that_answers_otherwise_is_found(toy):
    """A network that changes with every call cannot agree with a copy made of it before."""
    results = {each.check: each for each in toy({"state": True}).run()}
    assert "more than 1e-04" in results["TorchScript"].problems[0]


def test_random_inputs_keep_to_their_range():
    rows = {**FORMAT, "num_channels": 500, "spatial_shape": [2], "dtype": "int64", "value_range": [-1, 3]}
    made = random_inputs({"rows": rows, "image": {**FORMAT, "num_channels": 2}}, batch=3)
    assert made["rows"].shape == (3, 500, 2) and made["rows"].unique().tolist() == [-1, 0, 1, 2, 3]
    assert made["image"].shape == (3, 2, 4) and 0 <= made["image"].min() <= made["image"].max() < 1


def test_buffers_that_training_fills_are_filled_and_statistics_left():
    net = nn.Sequential(nn.BatchNorm1d(4), TwoInputs())
    fill_empty_buffers(net)
    assert net[1].bank.std() > 0.5 and net[0].running_mean.abs().max() == 0 and net[0].running_var.min() == 1


def test_problems_stand_in_the_table_and_fail_the_command(tmp_path, capsys):
    (tmp_path / "broken/configs").mkdir(parents=True)
    (tmp_path / "broken/configs/metadata.json").write_text("{}")
    assert main([str(tmp_path / "broken"), "--quick", "--no-schema"]) == 1
    found = capsys.readouterr().out
    assert "LICENSE is missing" in found and "FAILED" in found and found.rstrip().endswith("skipped")
    assert main(["nosuch"]) == 2


def test_help_imports_no_torch():
    for script in ("verify_bundles", "package_bundle"):
        code = (
            "import sys, runpy\nsys.argv = ['x', '--help']\n"
            f"try: runpy.run_path(r'{ROOT / f'scripts/{script}.py'}', run_name='__main__')\n"
            "except SystemExit: pass\nassert not {'torch', 'monai', 'numpy'} & set(sys.modules), 'heavy'"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_empty_table_has_its_head():
    assert table([]).startswith("bundle")
