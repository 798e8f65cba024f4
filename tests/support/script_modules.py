"""Scripts and benchmarks as modules: their folders are no packages."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def load_script(name, folder="scripts"):
    """``<folder>/<name>.py``, run anew as a module; of a thin script, the module in ``shared.apps`` that it calls."""
    path = ROOT / folder / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    called = getattr(module, "main", None)
    return sys.modules[called.__module__] if folder == "scripts" and called else module


@contextmanager
def benchmark(name, monkeypatch):
    """``benchmarks/<name>.py``; threads and the module path are as they were afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield load_script(name, "benchmarks")
    torch.set_num_threads(threads)
