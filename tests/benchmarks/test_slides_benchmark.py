"""The benchmark of whole slides: it starts fast, runs, and its rows say what was predicted and what it took."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "slides.py"


def test_it_runs_and_judges_nothing_at_tiny_sizes(tmp_path):
    pytest.importorskip("openslide")
    ended = subprocess.run(
        [sys.executable, SCRIPT, "--tiny"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert len(re.findall(r"tiles/s [\d.e+]+", ended.stdout)) == 4
    assert int(re.search(r"tiles (\d+)   tissue mm2", ended.stdout)[1]) > 0
    table = ended.stdout[ended.stdout.index("quantity ") :]
    assert "resident memory" in table and "met" not in table.split() and "MISSED" not in table
