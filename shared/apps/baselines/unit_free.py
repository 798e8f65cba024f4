"""First-order features without a unit, of a published PyRadiomics table and of a prepared cohort's images alike.

PyRadiomics 3.1's definitions (first order class; van Griethuysen et al., Cancer Research 2017). A gain or an offset of
the intensities changes none of these features. Left out: minimum and maximum, which follow the number of voxels;
energy, entropy and uniformity, which need the unit of the intensities; shapes, which need all slices and their spacing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.apps.baselines.population_table import PopulationTable
from shared.errors import DataError

PREFIX = "original_firstorder_"
_PERCENTILES = {"10Percentile": 10, "Median": 50, "90Percentile": 90}
_COLUMNS = (
    *_PERCENTILES,
    *("InterquartileRange", "Kurtosis", "MeanAbsoluteDeviation", "Mean"),
    *("RobustMeanAbsoluteDeviation", "Skewness", "Variance"),
)


def first_order(inside: np.ndarray) -> dict[str, float]:
    """PyRadiomics' first-order columns of the voxels ``[V]`` of a tumour, in the unit of the intensities.

    Example:
        >>> found = first_order(np.arange(11.0))
        >>> found["10Percentile"], found["Variance"], round(found["Kurtosis"], 2)
        (1.0, 10.0, 1.78)
    """
    from scipy.stats import kurtosis, skew

    percentiles = {name: np.percentile(inside, q) for name, q in _PERCENTILES.items()}
    middle = inside[(inside >= percentiles["10Percentile"]) & (inside <= percentiles["90Percentile"])]
    found = percentiles | {
        "InterquartileRange": np.subtract(*np.percentile(inside, (75, 25))),
        "Kurtosis": kurtosis(inside, fisher=False),
        "MeanAbsoluteDeviation": np.abs(inside - inside.mean()).mean(),
        "Mean": inside.mean(),
        "RobustMeanAbsoluteDeviation": np.abs(middle - middle.mean()).mean(),
        "Skewness": skew(inside),
        "Variance": inside.var(),
    }
    return {name: float(value) for name, value in found.items()}


def unit_free(values: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray | float]:
    """First-order columns as distances from the median, or widths, in standard deviations; and both shapes.

    Example:
        >>> one, other = (unit_free(first_order(x)) for x in (np.arange(11.0), 5 * np.arange(11.0) + 40))
        >>> all(np.isclose(one[name], other[name]) for name in one), round(float(one["90Percentile"]), 2)
        (True, 1.26)
    """
    sd = np.sqrt(values["Variance"])
    found = {name: (values[name] - values["Median"]) / sd for name in ("10Percentile", "90Percentile", "Mean")}
    widths = ("InterquartileRange", "MeanAbsoluteDeviation", "RobustMeanAbsoluteDeviation")
    return found | {name: values[name] / sd for name in widths} | {n: values[n] for n in ("Skewness", "Kurtosis")}


def published(table: PopulationTable) -> PopulationTable:
    """A table of PyRadiomics' features with those of :func:`unit_free` in their place.

    Raises:
        DataError: columns that it lacks.
    """
    columns = dict(zip(table.feature_names, table.features.T, strict=True))
    if lacking := [PREFIX + name for name in _COLUMNS if PREFIX + name not in columns]:
        raise DataError(f"the feature table lacks {', '.join(lacking)}, which --external needs")
    found = unit_free({name: columns[PREFIX + name] for name in _COLUMNS})
    return replace(table, features=np.stack([*found.values()], axis=1), feature_names=tuple(found))


def measured(dataset_dir: Path, image: int, covariates: Sequence[str], slices: int) -> PopulationTable:
    """The same features of a prepared cohort's labelled patients, of both sections: one of their images, in the slices
    of largest tumour; grades unknown.

    Args:
        dataset_dir: with datalist.json.
        image: which of each case's images, from 0.
        covariates: NaN where a case has none.
        slices: how many.

    Raises:
        DataError: every case that cannot be measured, at once.
    """
    from shared.apps.baselines.roi_features import largest_slices
    from shared.apps.experiments.training_rows import TrainingRows
    from shared.transforms.load import LoadCased

    load, rows, problems = LoadCased(), {}, []
    datalist = TrainingRows.read(dataset_dir / "datalist.json", dataset_dir).datalist
    cases = datalist["training"] + [case for case in datalist.get("testing") or [] if case.get("label") in (0, 1)]
    for case in cases:
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        if image >= len(images) or not case.get("mask"):
            problems.append(f"{case['patient']}: image {image} (from 0) and a mask are needed, it has {len(images)}")
            continue
        paths = {"patient": case["patient"], "image": [str(dataset_dir / images[image])]}
        paths |= {key: case[key] for key in ("tumour_labels", "trust_affines") if key in case}
        try:
            loaded = load({**paths, "mask": str(dataset_dir / case["mask"])})
        except DataError as error:
            problems += error.problems
            continue
        cut, tumour, _ = largest_slices(
            loaded["image"].numpy(), loaded["mask"][0].numpy() > 0, loaded["affine"], slices
        )
        rows[case["patient"]] = unit_free(first_order(cut[0][tumour].astype(float)))
        if not np.isfinite([*rows[case["patient"]].values()]).all():
            problems.append(f"{case['patient']}: all voxels of the tumour are alike")
    if problems:
        raise DataError(problems)
    known = [[(case.get("covariates") or {}).get(name, np.nan) for name in covariates] for case in cases]
    return PopulationTable(
        tuple(rows),
        np.array([[*row.values()] for row in rows.values()], dtype=float),
        tuple(next(iter(rows.values()))),
        np.array([case["label"] for case in cases]),
        np.array(known, dtype=float).reshape(len(cases), len(covariates)),
        tuple(covariates),
        np.full(len(cases), np.nan),
    )
