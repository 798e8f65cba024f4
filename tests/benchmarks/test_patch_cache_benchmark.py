"""The benchmark of many patches: it starts fast, runs, and its rows say what was seen and what it took."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "patch_cache.py"


def run(*options, before="pass", cwd):
    code = f"import runpy, sys; {before}; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT, *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_help_needs_no_torch(tmp_path):
    before = "sys.modules.update(dict.fromkeys(('torch', 'monai', 'numpy')))"
    ended = run("--help", before=before, cwd=tmp_path)
    assert ended.returncode == 0 and "--counts" in ended.stdout, ended.stderr


def test_it_runs_and_judges_nothing_at_tiny_sizes(tmp_path):
    ended = run("--tiny", "--folder", str(tmp_path), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    seen = re.findall(r"patches (\d+)   start (\w+) .* seen (\d+)", ended.stdout)
    assert seen == [("20", "first", "20"), ("20", "second", "20"), ("40", "first", "40"), ("40", "second", "40")]
    table = ended.stdout[ended.stdout.index("quantity ") :]
    assert "resident memory" in table and "met" not in table.split() and "MISSED" not in table
    assert not list(tmp_path.iterdir())
