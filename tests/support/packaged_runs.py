"""What somebody does with a downloaded bundle, in processes that do not see the repository; run as a script.

    python -P tests/support/packaged_runs.py RUNS.json

Each run is a fork of one process that has imported MONAI and nothing of ours. It writes a report: the steps done, where
``shared`` came from, its error if there was one.
"""

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import runpy
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path


def allowed_distributions(requirements):
    """What ``pip install -r`` of these lines brings: the packages named, and all that they ask for."""
    waiting = [line.split("==")[0] for line in requirements.splitlines() if "==" in line]
    found = set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[\s\[<>=!~;(]", each)[0] for each in asked if "extra ==" not in each]
    return found


class Installed:
    """The usual finder of modules, but for packages that the bundle does not ask for: those are not found."""

    def __init__(self, requirements):
        allowed = allowed_distributions(requirements)
        owners = importlib.metadata.packages_distributions()
        owners = {top: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for top, names in owners.items()}
        self.hidden = {top for top, names in owners.items() if not names & allowed} - {"setuptools", "pkg_resources"}

    def find_spec(self, name, path=None, target=None):
        """As Python's own."""
        return None if name in self.hidden else PathFinder.find_spec(name, path, target)


def act(step):
    """One call of MONAI's Python functions, one of its commands as typed in a shell, or a module as a command."""
    import monai.bundle

    name, given = step
    if name == "command":
        sys.argv = ["monai.bundle", *given]
        return runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)
    if name == "module":
        sys.argv = given
        sys.path.insert(0, str(Path.cwd()))  # as python -m does
        try:
            return runpy.run_module(given[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, f"{' '.join(given)} ended with {end.code}"
            return None
    if name == "crop":  # prepared images to the grid of a tiny atlas
        import nibabel as nib

        for path in Path(given["folder"]).glob("*/*.nii.gz"):
            box = [slice(a, a + n) for a, n in zip(given["start"], given["shape"], strict=True)]
            image = nib.load(path).slicer[tuple(box)]
            nib.save(nib.Nifti1Image(image.get_fdata().astype(image.get_data_dtype()), image.affine), path)
        return None
    found = getattr(monai.bundle, name)(**given)
    if name == "load":
        import torch

        folder = Path(given["bundle_dir"], given["name"])
        weights, state = torch.load(folder / "models/model.pt", weights_only=True), found.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights.items()), "load lost weights"
    return found


def main(path):
    """Fork a process for each run, one after another."""
    runs = json.loads(Path(path).read_text(encoding="utf-8"))
    import ignite.handlers  # noqa: F401
    import monai.bundle  # noqa: F401

    for run in runs:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        report, log = {"importable": importlib.util.find_spec("shared") is not None, "done": []}, io.StringIO()
        try:
            os.chdir(run["cwd"])
            if run["requirements"]:
                sys.meta_path[sys.meta_path.index(PathFinder)] = Installed(Path(run["requirements"]).read_text())
            with warnings.catch_warnings(), redirect_stdout(log), redirect_stderr(log):
                warnings.simplefilter("ignore")
                for step in run["steps"]:
                    act(step)
                    report["done"].append(step[0])
        except BaseException as error:
            report["error"] = traceback.format_exc()[-3000:] + log.getvalue()[-1000:]
            while error.__cause__ is not None:
                error = error.__cause__
            report["cause"] = str(error)
        used = sys.modules.get("shared")
        report["shared"] = used and used.__file__
        Path(run["report"]).write_text(json.dumps(report), encoding="utf-8")
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
