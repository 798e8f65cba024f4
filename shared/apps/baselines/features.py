"""The controls that need no network, in the same folds: covariates, size, shape, intensities, a forest, radiomics.

Every control is a folder that ``cross_validate.py --report`` reads beside the bundles' experiments. Nothing is fitted,
not even a mean, outside the patients that train.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError
from shared.io import write_csv

if TYPE_CHECKING:
    from shared.apps.baselines.given import Given

CONTROLS = (
    *("covariates", "size", "size_covariates", "shape", "shape_covariates", "intensity"),
    *("roi_forest", "roi_forest_covariates", "radiomics"),
)
TREES = 500


def controls(columns: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, list[str], str]]:
    """Return name -> (title, columns, model) of every control these columns allow."""
    groups = ("size", "shape", "intensity", "roi", "radiomics", "covariates")
    size, shape, intensity, roi, radiomics, covariates = (list(columns[group]) for group in groups)
    names = " + ".join(covariates)
    found = {
        "covariates": (f"{names} alone (logistic regression)", covariates, "logistic"),
        "size": ("tumour size alone (logistic regression)", size, "logistic"),
        "size_covariates": (f"tumour size + {names} (logistic regression)", size + covariates, "logistic"),
        "shape": ("tumour shape alone (logistic regression)", shape, "logistic"),
        "shape_covariates": (f"tumour shape + {names} (logistic regression)", shape + covariates, "logistic"),
        "intensity": ("intensities in the tumour alone (logistic regression)", intensity, "logistic"),
        "roi_forest": ("ROI features (random forest)", roi, "forest"),
        "roi_forest_covariates": (f"ROI features + {names} (random forest)", roi + covariates, "forest"),
        "radiomics": ("radiomics (logistic regression)", radiomics, "logistic_many"),
    }
    return {name: control for name, control in found.items() if covariates or "covariates" not in name}


def measure(datalist: Mapping, dataset_dir: Path, num_slices: int) -> tuple[list[dict], dict[str, list[str]]]:
    """Return one row of features a patient, and which columns are size, shape, intensities, ROI features, covariates.

    Covariates that ``prepare_patients.py --shape-covariates`` wrote are left out: the shape is measured here.

    Raises:
        DataError: every case that cannot be measured, at once.
    """
    from tqdm import tqdm

    from shared.apps.baselines.radiomics import radiomics_features
    from shared.apps.baselines.roi_features import OUTLINE, covariate_names, roi_features, size_features
    from shared.apps.preparation.shape import SHAPE, shape_features
    from shared.transforms.load import LoadCased

    load, rows, problems = LoadCased(), {}, []
    names = [name for name in covariate_names(datalist["training"]) if name not in SHAPE]
    # One number for size: area and its share are nearly collinear, and the share needs no trust in the voxel size.
    groups: dict[str, list[str]] = {"size": ["log_area_share"], "shape": [*SHAPE], "covariates": names}
    for case in tqdm(datalist["training"], desc="measuring", unit="patient", dynamic_ncols=True):
        patient = str(case["patient"])
        if patient in rows:
            problems.append(f"{patient}: stands in the datalist twice; one case a patient is measured")
            continue
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        paths = {"patient": patient, "image": [str(dataset_dir / path) for path in images]}
        if case.get("mask"):
            paths["mask"] = str(dataset_dir / case["mask"])
        paths |= {key: case[key] for key in ("tumour_labels", "trust_affines") if key in case}
        try:
            loaded = load(paths)
        except DataError as error:
            problems += error.problems
            continue
        volumes, mask = loaded["image"].numpy(), loaded["mask"][0].numpy()
        size = size_features(volumes, mask, loaded["affine"], num_slices)
        roi = roi_features(volumes, mask, loaded["affine"], num_slices, datalist.get("modalities"))
        shape = shape_features(mask, loaded["affine"])
        radiomics = radiomics_features(volumes, mask, loaded["affine"], num_slices, datalist.get("modalities"))
        groups |= {"roi": [*size, *roi], "intensity": [name for name in roi if name not in OUTLINE]}
        groups["radiomics"] = list(radiomics)
        covariates = {name: (case.get("covariates") or {}).get(name) for name in names}
        row = {"patient": patient, "label": case["label"]}
        rows[patient] = {**row, **size, **roi, **shape, **radiomics, **covariates}
    if problems:
        raise DataError(problems)
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        raise DataError("patients have different numbers of images; every patient needs all modalities")
    return [rows[patient] for patient in sorted(rows)], groups


def out_of_fold(
    rows: Sequence[Mapping],
    columns: Sequence[str],
    kind: str,
    folds: Mapping[int, Mapping[str, int]],
    bar: Any,
    groups: Mapping[str, str] | None = None,
) -> list[dict]:
    """Return rows of seed, fold, patient, label, probability: each patient predicted by a model that never saw it.

    ``folds`` are the folds of the patients, by seed; patients of some ``groups`` have that column, too.
    """
    import numpy as np

    from shared.metrics.classifiers import classifier

    patients, labels = [row["patient"] for row in rows], np.array([row["label"] for row in rows])
    table = np.array([[np.nan if row[name] is None else row[name] for name in columns] for row in rows], dtype=float)
    predictions = []
    for seed, fold_of in folds.items():
        fold = np.array([fold_of[patient] for patient in patients])
        for number in range(1 + max(fold_of.values())):
            inside = fold == number
            inner = max(2, min(5, np.bincount(labels[~inside]).min()))
            model = classifier(kind, seed, trees=TREES, folds=inner).fit(table[~inside], labels[~inside])
            probability = model.predict_proba(table[inside])[:, 1]
            for i, p in zip(np.flatnonzero(inside), probability, strict=True):
                row = {"seed": seed, "fold": number, "patient": patients[i]}
                row |= {"group": groups[patients[i]]} if groups else {}
                predictions.append({**row, "label": int(labels[i]), "probability": float(p)})
            bar.update()
    return predictions


def run(names: Sequence[str], given: Given) -> None:
    """Measure every patient, then cross-validate these controls in the folds of ``scripts/cross_validate.py``.

    Raises:
        DataError: every case that cannot be measured; too few patients; no covariates for a control of them.
    """
    from tqdm import tqdm

    from shared.apps.experiments.folder import write_experiment, write_results
    from shared.apps.experiments.training_rows import TrainingRows
    from shared.metrics.repeated import RepeatedPredictions

    patients = TrainingRows.read(given.datalist_file, given.dataset_dir)
    # too few patients: said before any work
    folds = {seed: patients.folds(given.folds, seed) for seed in given.seeds}
    rows, columns = measure(patients.datalist, given.dataset_dir, given.config.get("num_slices", 3))
    write_csv(given.output / "features.csv", rows)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    found = controls(columns)
    if lacking := [name for name in names if name not in found]:
        raise DataError(f"{' '.join(lacking)}: the datalist has no covariates")
    with tqdm(total=len(names) * len(folds) * given.folds, desc="controls", unit="fold", dynamic_ncols=True) as bar:
        for name in names:
            title, used, kind = found[name]
            settings = {"control": name, "folds": given.folds, "columns": used, "features": digest}
            settings |= {"trees": TREES} if kind == "forest" else {}
            write_experiment(given.output / name, title=title, command=given.command, settings=settings)
            predictions = out_of_fold(rows, used, kind, folds, bar, patients.groups)
            results = RepeatedPredictions.from_rows(predictions)
            write_results(given.output / name, results, bootstrap=given.bootstrap)
