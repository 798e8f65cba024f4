"""The left-out fold: trained with and without the left-out patients' own data, a model must be bitwise the same."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.apps.audit.rows import Finding, listed
from shared.errors import DataError
from shared.io import write_json

FOLD = 0
FILES = ("image", "mask", "fa")
KINDS = ("*.pt", "*.npz")  # also the cohort that a model knows, and its atlas


@dataclass(frozen=True)
class Training:
    """One training below the folder; complete where it left ``model.pt``."""

    folder: Path

    @property
    def name(self) -> str:
        """What was trained on."""
        return self.folder.name

    def rows(self) -> list[dict]:
        """Its checkpoints.

        Raises:
            DataError: there is no ``model.pt``.
        """
        found = [{"path": path} for path in sorted((self.folder / "models").rglob("*.pt"))]
        if not (self.folder / "models" / "model.pt").is_file():
            raise DataError(f"{self.folder / 'models'} holds no model.pt")
        return found


def left_out_finding(args: argparse.Namespace, output: Path) -> Finding:
    """Train fold 0 on the data as they are, and with the left-out patients' images, masks, labels and covariates
    exchanged; compare every checkpoint bit by bit.

    Where they differ, the first training is repeated: if that differs, too, nothing can be said.

    Args:
        args: of the audit; ``config``, ``set``, ``folds``, ``seeds`` (the first one), ``threads``.
        output: folder for the trainings; what it holds of an earlier call is replaced.

    Raises:
        DataError: the bundle or the data cannot be trained on.
    """
    import shutil

    from shared.apps.experiments.cross_validate import Experiment
    from shared.apps.experiments.cross_validate import arguments as experiment_arguments

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [args.bundle, "--dataset_dir", args.dataset_dir, "--output", str(output / "experiment")]
    command += ["--datalist_file", args.datalist_file] if args.datalist_file else []
    command += ["--folds", str(args.folds), "--seeds", str(args.seeds[0]), "--threads", str(args.threads)]
    command += ["--config", *args.config] if args.config else []
    command += ["--set", *args.set] if args.set else []
    experiment = Experiment(experiment_arguments(command))
    seed = args.seeds[0]
    content = experiment.rows.split(experiment.fold_of[seed])
    write_json(output / "plain.json", content)
    changed, names = exchanged(content, experiment.dataset_dir, output / "exchanged_files")
    write_json(output / "exchanged.json", changed)
    item = f"fold {FOLD} of {args.folds}, trained twice"
    train(experiment, output, ("plain", "exchanged"), seed)
    found = differing(output / "plain" / "models", output / "exchanged" / "models")
    count = len(Training(output / "plain").rows())
    what = f"{count} checkpoints; images, masks, labels and covariates of {len(names)} left-out patients exchanged"
    if not found:
        return Finding("left-out fold", item, "green", f"bitwise the same: {what}")
    (output / "again.json").write_text((output / "plain.json").read_text(encoding="utf-8"), encoding="utf-8")
    train(experiment, output, ("again",), seed)
    if unsure := differing(output / "plain" / "models", output / "again" / "models"):
        why = "two trainings on the same data differ here, too: use one thread on a CPU to tell"
        return Finding("left-out fold", item, "amber", f"{why} ({listed(unsure)})")
    return Finding("left-out fold", item, "red", f"depends on who is left out: {listed(found)}; {what}")


def train(experiment: Any, output: Path, names: Sequence[str], seed: int) -> None:
    """Train on each ``NAME.json`` of the folder, one after another, into ``NAME/models``."""
    from shared.apps.experiments import cross_validate
    from shared.apps.experiments.processes import FoldRun, bundle_arguments, run_environment, run_folds

    def runs() -> Iterator[FoldRun]:
        for name in names:
            folder = output / name
            folder.mkdir(exist_ok=True)
            # one path for all: a checkpoint's record may hold it
            (output / "datalist.json").write_text((output / f"{name}.json").read_text("utf-8"), "utf-8")
            values = {"dataset_dir": experiment.dataset_dir, "datalist_file": output / "datalist.json", "fold": FOLD}
            values |= {"seed": seed, "ckpt_dir": folder / "models", "output_dir": folder, "resume": False}
            values |= experiment.overrides
            arguments = bundle_arguments(experiment.configs["train"], values, cwd=experiment.cwd)
            command = [*cross_validate.RUN_BUNDLE, *arguments]
            environment = run_environment(experiment.args.threads)
            yield FoldRun(Training(folder), [("train", command)], cwd=experiment.cwd, environment=environment)

    run_folds(runs(), total=len(names), name="left-out fold", unit="training")


def exchanged(content: Mapping[str, Any], root: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The datalist with other data of all who are left out, and their names; files go to ``folder``.

    Images are inverted, masks turned round, labels changed, covariates set to 1,000; who trains keeps all.

    Args:
        content: a datalist with folds.
        root: what its paths are relative to.
        folder: for the changed files.
    """
    content = json.loads(json.dumps(content))
    apart = [case for case in content["training"] if case["fold"] == FOLD]
    apart += [case for section in ("validation", "testing") for case in content.get(section) or ()]
    names = {str(case["patient"]) for case in apart}
    apart += [case for case in content.get("unlabelled") or () if str(case["patient"]) in names]
    for number, case in enumerate(apart):
        for key in FILES:
            value = case.get(key)
            if not value:
                continue
            paths = [value] if isinstance(value, str) else value
            new = [str(_exchange(root / path, folder / f"{number}_{key}_{k}", key)) for k, path in enumerate(paths)]
            case[key] = new[0] if isinstance(value, str) else new
        if case.get("label") is not None:
            case["label"] = 1 - case["label"]
        case.pop("soft_label", None)
        if case.get("covariates"):
            case["covariates"] = dict.fromkeys(case["covariates"], 1000.0)
    return content, sorted(names)


def _exchange(source: Path, target: Path, key: str) -> Path:
    """A file with other content of the same kind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name.endswith((".nii", ".nii.gz")):
        import nibabel as nib

        image = nib.load(source)
        array = np.asarray(image.dataobj)
        array = array[::-1, ::-1, ::-1] if key == "mask" else (array.max() + array.min() - array)
        path = target.with_name(f"{target.name}.nii.gz")
        # the header's affine is kept, so that image and mask lie on one grid
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array).astype(image.get_data_dtype()), image.affine), path)
        return path
    from PIL import Image

    from shared.data.patches.reading import read_patch, read_patch_mask

    path = target.with_name(f"{target.name}.png")
    if key == "mask":
        Image.fromarray(read_patch_mask(source)[::-1, ::-1].astype(np.uint8) * 255).save(path)
    else:
        Image.fromarray(255 - read_patch(source).transpose(1, 2, 0)).save(path)
    return path


def differing(first: Path, other: Path) -> list[str]:
    """Checkpoints below two folders that differ, and what lies beside them, each with the first value that does."""
    folders = (first, other)
    names = sorted({path.relative_to(f) for f in folders for kind in KINDS for path in f.rglob(kind)})
    found = []
    for name in names:
        if not (first / name).is_file() or not (other / name).is_file():
            found.append(f"{name} (one training only)")
            continue
        one, two = (_values(_loaded(folder / name)) for folder in (first, other))
        places = [place for place in {**one, **two} if not _same(one.get(place), two.get(place))]
        # what a checkpoint tells of its making (files, settings) is no part of the model
        places = [place for place in places if "/record/" not in place]
        found += [f"{name} ({places[0].lstrip('/')})"] if places else []
    return found


def _loaded(path: Path) -> Any:
    import torch

    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name].tobytes() for name in file.files}
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds
        raise DataError(f"{path} cannot be read as a checkpoint ({type(error).__name__})") from error


def _values(value: Any, place: str = "") -> dict[str, Any]:
    """All tensors and numbers of a checkpoint, by their place in it."""
    value = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    if isinstance(value, Mapping):
        return {key: x for name, part in value.items() for key, x in _values(part, f"{place}/{name}").items()}
    return {place: value}


def _same(one: Any, other: Any) -> bool:
    import torch

    both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if both and one.dtype == other.dtype and one.shape == other.shape:
        return one.numpy().tobytes() == other.numpy().tobytes()
    return not both and type(one) is type(other) and one == other
