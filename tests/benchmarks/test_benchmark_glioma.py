"""The glioma benchmarks: the script starts fast, its parts run, what it times equals what it is compared with."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "glioma.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; threads and the module path are as they were afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    specification = importlib.util.spec_from_file_location("benchmark_glioma", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_help_needs_no_torch(tmp_path):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'monai', 'numpy', 'torch_geometric'))); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, SCRIPT, "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(word in ended.stdout for word in ("--only", "nnconv", "gather", "population"))


def test_parts_run_and_agree_with_what_they_are_compared_with(script, capsys, monkeypatch):
    monkeypatch.setattr(script, "PARTS", ("gat", "gather", "fps"))
    assert script.main(["--tiny", "--device", "cpu", "--only", "gat", "gather", "fps"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("torch ") and "CPU, one thread" in text.splitlines()[0]
    assert float(re.search(r"differ by ([\d.e+-]+)", text)[1]) < 1e-5
    assert "same points as the loop's 1\n" in text and text.count("   GEMM ") == 3
    table = text[text.index("quantity ") :]
    assert re.search(r"same values +yes +yes", table) and "brain GAT" in table and "torch-cluster" in table
    assert "met" not in table.split() and "MISSED" not in table


def test_memory_of_a_patient_is_what_its_tensors_hold(script, monkeypatch):
    cases = importlib.import_module("_glioma_cases")
    patient, held = cases.made_patient(tiny=True), cases.held_by_a_patient(tiny=True)
    tensors = [value for value in patient.values() if isinstance(value, torch.Tensor)]
    tensors += [patient["image"].values, patient["region_rows"].voxels]  # which the tracts' rows share
    tensors += [*patient["graph"][3:], *(part for parts in patient["graph"][:3] for part in parts)]
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
    wanted += 128 / 2**20  # the crop's affine
    box = 9 * 11 * 9  # of the tumour, in the crop of 16
    assert sum(held.values()) == pytest.approx(wanted, rel=1e-3) and held["image"] == pytest.approx(4 * box * 4 / 2**20)
    monkeypatch.setattr(cases, "_peak", lambda kind, batch, tiny: 100 + 7.0 * batch)
    findings = cases.memory(tiny=True)
    assert len(findings) == 5 and findings[2].found == "7"


def test_an_explanation_is_the_same_with_attributes_made_once(script):
    findings = importlib.import_module("_glioma_explain").explain(tiny=True)
    assert [finding.found for finding in findings if finding.quantity == "  same explanation"] == ["yes"]
    assert float(findings[-1].found) > 1


@pytest.mark.slow
def test_peak_of_a_step_is_measured_in_a_process_of_its_own(script):
    assert importlib.import_module("_glioma_cases")._peak("fp32", 2, True) > 0
