"""The benchmarks' script: it starts fast, every part runs, and what it times is equal to what it is compared with."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.script_modules import benchmark

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ircl.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; threads and the module path are as they were afterwards."""
    with benchmark("ircl", monkeypatch) as module:
        yield module


def values(text, name):
    """All numbers printed after a column's name."""
    return [float(found) for found in re.findall(rf"(?<![\w,/] ){re.escape(name)} ([\d.e+-]+|nan)(?=   |\n)", text)]


def test_help_needs_no_torch(tmp_path):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'monai', 'numpy', 'shap'))); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(word in ended.stdout for word in ("--only", "--paper-size", "stage1", "shapley"))
    assert "--measure-memory" not in ended.stdout.split("options:")[1]


def test_all_parts_run_and_agree_with_what_they_are_compared_with(script, capsys):
    assert script.main(["--tiny", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("torch ") and "CPU, one thread" in text.splitlines()[0]
    # the fast ways and the plain ones are the same
    assert len(values(text, "entropy differs by")) == 2 and max(values(text, "entropy differs by")) < 1e-4
    assert values(text, "same neighbours") == [1, 1]
    assert len(values(text, "losses differ by")) == 2 and max(values(text, "losses differ by")) < 1e-4
    assert len(values(text, "differ by")) >= 2 and max(values(text, "differ by")) <= 1e-12
    # every part has its line in the closing table, without a verdict at these sizes
    table = text[text.index("quantity ") :]
    for quantity in ("bank update", "MiB", "Eq. 5", "growth", "stage II epoch", "stage I step", "masks", "Shapley"):
        assert quantity in table
    assert "met" not in table.split() and "MISSED" not in table
    # a yardstick beside every part
    assert text.count(" GEMM ") >= 6 and text.count("   product ") == 2 and text.count("   two products ") == 2
    # encoding the images costs more than reading their features
    assert min(values(text, "re-encoding / cached")) > 1


def test_only_runs_what_is_asked_for(script, capsys):
    script.main(["--tiny", "--only", "eq5"])
    text = capsys.readouterr().out
    assert "Eq. 5" in text and "stage II" not in text and "Algorithm 1" not in text
    with pytest.raises(SystemExit):
        script.main(["--only", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_calls_take_turns_and_a_missed_target_is_said(script, capsys):
    import _timing

    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    assert set(_timing.interleaved(calls, 3)) == {"a", "b"} and order == list("ababab")
    _timing.summary([_timing.Finding("one", "<= 1", "2", False), _timing.Finding("two", "<= 1", "0", True)])
    lines = capsys.readouterr().out.split("\n")
    assert lines[2].split() == ["one", "<=", "1", "2", "MISSED"] and lines[3].split() == ["two", "<=", "1", "0", "met"]
