"""The glioma networks' benchmark: every part runs, and what it times is equal to what it is compared with."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "_glioma_networks.py"


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    specification = importlib.util.spec_from_file_location("benchmark_glioma_networks", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["gat", "nnconv", "cnn", "fps"])
def test_a_part_runs_and_agrees_with_its_peer(parts, name, capsys, monkeypatch):
    monkeypatch.setattr(parts, "peak", lambda *arguments: 1.0)
    findings = getattr(parts, name)(tiny=True)
    text = capsys.readouterr().out
    assert findings and all(finding.quantity and finding.found for finding in findings) and " GEMM " in text
    differences = [float(value) for value in re.findall(r"differ by ([\d.e+-]+)", text)]
    assert len(differences) == {"gat": 1, "nnconv": 2}.get(name, 0) and all(value < 1e-5 for value in differences)


def test_memory_is_measured_in_a_process_of_its_own(parts):
    assert parts.peak("ours", 0, True) >= 0
