"""The flow of patients from the folder to the folds, as counts and as the boxes of a diagram."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_WIDE, _LINE, _GAP = 250, 18, 26  # pixels of a box, of a line of text, between boxes
_REASONS = 6  # told by name


def flow_counts(
    datalist: Mapping[str, Any], manifest: Mapping[str, Any] | None = None, folds: int = 0
) -> dict[str, Any]:
    """Patients by part and class, and how many were left out by reason, as plain values.

    A patient with images of both labels counts for either class.

    Args:
        datalist: of the cohort.
        manifest: what the preparation wrote; its ``left_out`` are lines ``<patient>: <reason>``.
        folds: into which the training patients are dealt.

    Example:
        >>> cases = [{"patient": f"P{i}", "label": i % 2} for i in range(4)]
        >>> found = flow_counts({"training": cases, "testing": cases[:1]}, {"left_out": ["P9: no mask"]}, 2)
        >>> found["parts"][0], found["left_out"]
        ({'name': 'cross-validated in 2 folds', 'patients': 4, 'classes': {'label 0': 2, 'label 1': 2}}, {'no mask': 1})
    """
    classes = [str(name) for name in datalist.get("classes") or ()] or ["label 0", "label 1"]
    trained = [*(datalist.get("training") or ()), *(datalist.get("validation") or ())]
    name = f"cross-validated in {folds} folds" if folds else "training"
    parts = [_part(name, trained, classes)]
    for key, title in (("testing", "kept apart for testing"), ("unlabelled", "without a label")):
        if datalist.get(key):
            parts.append(_part(title, datalist[key], classes))
    lines = [str(line) for line in (manifest or {}).get("left_out") or ()]
    reasons = Counter(line.partition(": ")[2] or line for line in lines)
    told = dict(reasons.most_common(_REASONS))
    if other := sum(reasons.values()) - sum(told.values()):
        told["other reasons"] = other
    return {"left_out": told, "parts": parts}


def _part(name: str, cases: Sequence[Mapping], classes: Sequence[str]) -> dict[str, Any]:
    labels: dict[str, set] = {}
    for case in cases:
        labels.setdefault(str(case["patient"]), set()).add(case.get("label"))
    counts = {title: sum(k in found for found in labels.values()) for k, title in enumerate(classes)}
    return {"name": name, "patients": len(labels), "classes": counts if any(counts.values()) else {}}


def flow_diagram(counts: Mapping[str, Any], file: str, *, reasons: bool = True) -> dict[str, Any]:
    """Boxes and lines of the diagram in pixels, and the same as a table for those who cannot see it.

    Args:
        counts: of :func:`flow_counts`.
        file: where they stand.
        reasons: name the reasons, which may hold patients' ids.
    """
    parts, left_out = counts["parts"], counts["left_out"]
    kept, gone = sum(part["patients"] for part in parts), sum(left_out.values())
    told = [f"{reason}: {number}" for reason, number in left_out.items()] if reasons else []
    boxes, lines = [], []
    middle = (_WIDE + _GAP) * len(parts) / 2 - _GAP / 2
    top = 8.0
    if gone:
        found = _box([f"found: {kept + gone}"], middle - _WIDE / 2, top)
        out = _box([f"left out: {gone}", *told], middle + _WIDE / 2 + _GAP, top, out=True)
        boxes += [found, out]
        lines.append([found["x"] + _WIDE, found["y"] + 17, out["x"], found["y"] + 17])
        below = max(found["y"] + found["height"], out["y"] + out["height"] - _GAP) + _GAP
        lines.append([middle, found["y"] + found["height"], middle, below])
        top = below
    whole = _box([f"in the datalist: {kept}"], middle - _WIDE / 2, top)
    boxes.append(whole)
    top += whole["height"] + _GAP
    for number, part in enumerate(parts):
        texts = [f"{part['name']}: {part['patients']}", *(f"{name}: {n}" for name, n in part["classes"].items())]
        box = _box(texts, number * (_WIDE + _GAP), top)
        boxes.append(box)
        lines.append([middle, whole["y"] + whole["height"], box["x"] + _WIDE / 2, top])
    rows = [
        ["found", str(kept + gone), ""],
        *(["left out", str(n), reason] for reason, n in left_out.items() if reasons),
    ]
    rows += [["left out", str(gone), ""]] if gone and not reasons else []
    for part in parts:
        rows.append([part["name"], str(part["patients"]), ", ".join(f"{k}: {n}" for k, n in part["classes"].items())])
    width = max(box["x"] + _WIDE for box in boxes) + 2
    height = max(box["y"] + box["height"] for box in boxes) + 2
    header = ["patients", "number", "of them"]
    return {
        "boxes": boxes,
        "lines": lines,
        "width": width,
        "height": height,
        "file": file,
        "header": header,
        "rows": rows,
    }


def _box(texts: Sequence[str], x: float, y: float, *, out: bool = False) -> dict[str, Any]:
    wrapped = [line for text in texts for line in textwrap.wrap(text, 34)]
    return {"x": x + 1, "y": y, "lines": wrapped, "width": _WIDE, "height": _LINE * len(wrapped) + 16, "out": out}
