"""Table 1 of a report: who the patients are, by class, with what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def patients_table(datalist: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: numbers of patients, images and groups, and each covariate, for all and for each label.

    A covariate of 0 and 1 is counted, another is given as mean (standard deviation) and median [quartiles]; patients
    without a value are counted in a row of their own. A patient with images of both labels counts for either.

    Args:
        datalist: with a ``training`` list.

    Example:
        >>> cases = [{"patient": f"P{i}", "label": i % 2, "covariates": {"age": 40 + i} if i else {}} for i in range(5)]
        >>> for row in patients_table({"training": cases})[1]:
        ...     print(row)
        ['patients', '5', '3', '2']
        ['age: mean (sd)', '42.5 (1.3)', '43.0 (1.4)', '42.0 (1.4)']
        ['age: median [quartiles]', '42.5 [41.8, 43.2]', '43.0 [42.5, 43.5]', '42.0 [41.5, 42.5]']
        ['age: missing', '1', '1', '0']
    """
    cases = list(datalist["training"])
    patches = any("image" in case and isinstance(case["image"], str) and case["image"].count("/") for case in cases)
    patients: dict[str, Mapping] = {}
    labels: dict[str, set] = {}
    for case in cases:
        patients.setdefault(str(case["patient"]), case)
        labels.setdefault(str(case["patient"]), set()).add(case.get("label"))
    classes = [str(name) for name in datalist.get("classes") or ()] or ["label 0", "label 1"]
    parts = [list(patients.values()), *([c for name, c in patients.items() if k in labels[name]] for k in (0, 1))]
    rows = [["patients", *(str(len(part)) for part in parts)]]
    if patches and len(cases) > len(patients):
        counts = [len(cases), *(sum(case.get("label") == k for case in cases) for k in (0, 1))]
        rows.append(["images", *map(str, counts)])
    if any("group" in case for case in cases):
        rows.append(["groups", *(str(len({case.get("group") for case in part})) for part in parts)])
    if datalist.get("modalities"):
        rows.append(["modalities", ", ".join(map(str, datalist["modalities"])), "", ""])
    names = sorted({name for case in cases for name in case.get("covariates") or {}})
    for name in names:
        values = [[(case.get("covariates") or {}).get(name) for case in part] for part in parts]
        known = [[float(value) for value in part if value is not None] for part in values]
        rows += _described(name, known)
        rows.append([f"{name}: missing", *(str(sum(value is None for value in part)) for part in values)])
    return ["", "all", *classes[:2]], rows


def _described(name: str, parts: Sequence[Sequence[float]]) -> list[list[str]]:
    if set(parts[0]) <= {0.0, 1.0}:
        cells = [f"{sum(part):.0f} ({sum(part) / len(part):.0%})" if part else "-" for part in parts]
        return [[f"{name}: 1", *cells]]
    means = [f"{np.mean(p):.1f} ({np.std(p, ddof=1):.1f})" if len(p) > 1 else "-" for p in parts]
    quartiles = [np.percentile(p, (50, 25, 75)) if len(p) else None for p in parts]
    medians = ["-" if q is None else f"{q[0]:.1f} [{q[1]:.1f}, {q[2]:.1f}]" for q in quartiles]
    return [[f"{name}: mean (sd)", *means], [f"{name}: median [quartiles]", *medians]]
