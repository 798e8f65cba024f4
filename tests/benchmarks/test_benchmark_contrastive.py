"""NT-Xent's benchmark: it starts fast, runs with and without the peers, and what it compares is equal."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.script_modules import benchmark

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "contrastive.py"
PEER = """
from lightly.models import utils
from lightly.models.modules.memory_bank import NAME

class NTXentLoss:
    def __init__(self, temperature):
        self.temperature = temperature

    def __call__(self, a, b):
        import torch
        z = torch.nn.functional.normalize(torch.cat((a, b)), dim=1)
        scores = z @ z.t() / self.temperature - 1e9 * torch.eye(len(z))
        return torch.nn.functional.cross_entropy(scores, torch.arange(len(z)).roll(len(a)))
"""


@pytest.fixture
def script(monkeypatch):
    """The script as a module; threads and the module path are as they were afterwards."""
    with benchmark("contrastive", monkeypatch) as module:
        yield module


@pytest.fixture
def without_peers(monkeypatch):
    """As where neither is installed."""
    find = importlib.util.find_spec
    hidden = ("lightly", "pytorch_metric_learning")
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))


@pytest.fixture
def lightly(tmp_path, monkeypatch):
    """A package laid out like lightly, all of whose packages need torchvision."""
    for folder in ("loss", "models", "models/modules"):
        (tmp_path / "lightly" / folder).mkdir(parents=True)
        (tmp_path / "lightly" / folder / "__init__.py").write_text("import torchvision_that_is_not_here")
    (tmp_path / "lightly" / "__init__.py").write_text("")
    (tmp_path / "lightly" / "models" / "utils.py").write_text("import torchvision_that_is_not_here")
    (tmp_path / "lightly" / "models" / "modules" / "memory_bank.py").write_text("NAME = 'bank'")
    (tmp_path / "lightly" / "loss" / "ntx_ent_loss.py").write_text(PEER)
    for name in [name for name in sys.modules if name.split(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lightly"]:
        del sys.modules[name]


def test_help_needs_no_torch(tmp_path):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'monai', 'numpy'))); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(word in ended.stdout for word in ("--sizes", "--temperatures", "pip install", "two products"))


def test_without_peers_it_says_what_to_install(script, without_peers, capsys):
    assert script.main(["--tiny", "--device", "cpu", "--temperatures", "0.7"]) == 0
    text = capsys.readouterr().out
    assert "(pip install --no-deps lightly pytorch-metric-learning)" in text
    for word in ("matmul + cross_entropy", "two products", "MONAI", "MiB"):
        assert word in text
    assert "time / lightly" not in text and "met" not in text.split() and "MISSED" not in text


def test_with_lightly_times_and_memory_are_set_beside_it(script, lightly, capsys):
    assert script.main(["--tiny", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    differences = re.findall(r"of (lightly|matmul \+ cross_entropy)   loss ([\d.e-]+)   gradient ([\d.e-]+)", text)
    assert len(differences) == 8 and all(float(loss) < 1e-5 for _, loss, _ in differences)
    table = text[text.index("quantity ") :]
    assert table.count("time / lightly") == 4 and table.count("memory / lightly") == 4
    assert {name for name in sys.modules if name.startswith("lightly")} <= {"lightly"}


def test_memory_counts_every_tensor_held_at_once(script):
    def call():
        first = torch.empty(1 << 18)
        del first
        second = torch.empty(1 << 18)
        return second + 1, second

    assert script.added_memory(call, torch.device("cpu")) == pytest.approx(2.0, abs=0.01)


def test_what_would_take_gigabytes_is_left_out(script, without_peers, monkeypatch):
    monkeypatch.setitem(script.LARGEST, "MONAI", 6)
    for batch, timed in ((6, True), (8, False)):
        seconds, differs = script.measure_time(batch, 0.7, torch.device("cpu"), tiny=True)
        assert ("MONAI" in seconds) == ("MONAI" in differs) == timed
        assert {"ours", "two products", "matmul + cross_entropy"} <= set(seconds) and min(seconds.values()) > 0
