"""Grad-CAM's benchmark: it runs, the maps it times are the same, and a peer that is missing is said to be."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.script_modules import benchmark

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "grad_cam.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; threads and the module path are as they were afterwards."""
    with benchmark("grad_cam", monkeypatch) as module:
        yield module


def test_the_maps_it_times_are_the_same(script, capsys):
    assert script.main(["--tiny", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("torch ") and "not all zero 2" in text and " GEMM " in text
    table = text[text.index("quantity ") :]
    found = re.findall(r"the same map, up to polarity +<= 1e-4 +(\S+)", table)
    assert found and all(float(value) < 1e-4 for value in found)
    # sizes this small give no verdict
    assert "met" not in table.split() and "MISSED" not in table


def test_a_missing_peer_is_said_to_be(script, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytorch_grad_cam" else find(name))
    script.main(["--tiny", "--device", "cpu"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Grad-CAM / pytorch-grad-cam"))
    assert line.endswith("not installed")
