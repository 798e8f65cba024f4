"""The population graph's part of the benchmarks runs, and what it times is equal to torch_geometric's."""

import importlib
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def test_dense_and_sparse_are_the_same(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    part = importlib.import_module("_glioma_population")
    findings = part.population(tiny=True)
    text = capsys.readouterr().out
    found = [float(value) for value in re.findall(r"differ by ([\d.e+-]+)", text)]
    assert len(found) == 2 and max(found) < 1e-5
    assert len(re.findall(r" {3}GEMM \d", text)) == 2 and len(findings) == 2
    density = [float(value) for value in re.findall(r"density ([\d.e+-]+)", text)]
    assert all(0.05 < value < 0.3 for value in density)
    sys.modules.pop("_glioma_population")
