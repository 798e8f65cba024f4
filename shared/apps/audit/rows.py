"""What an audit looks at: the rows of a datalist as they stand, also where a training would refuse them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import DataError

LABELLED = ("training", "validation", "testing")
SECTIONS = (*LABELLED, "unlabelled")


@dataclass(frozen=True)
class AuditRow:
    """A patient, or a patch of one.

    ``part`` is the section, of a training row with a fold ``fold <k>``; ``unit`` is the group, else the patient:
    what must stay together; ``place`` is the row's number in its section.
    """

    name: str
    patient: str
    unit: str
    part: str
    section: str
    label: int | None
    images: tuple[Path, ...]
    mask: Path | None
    place: int
    covariates: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditCohort:
    """The rows of a datalist; ``patches``: whether they are patches of patients."""

    root: Path
    file: Path
    rows: tuple[AuditRow, ...]
    patches: bool
    folds: bool
    modalities: tuple[str, ...] = ()

    @property
    def labelled(self) -> list[AuditRow]:
        """Rows with a label, of all parts."""
        return [row for row in self.rows if row.label is not None]


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    check: str
    item: str
    status: str
    found: str
    auc: float | None = None
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    positives: int | None = None


def read_cohort(dataset_dir: str | os.PathLike, file: str | os.PathLike = "datalist.json") -> AuditCohort:
    """Read a datalist; nothing but its form is checked, since what breaks the rules is what an audit is after.

    Args:
        dataset_dir: the prepared folder.
        file: the datalist, relative to it or absolute.

    Raises:
        DataError: no folder or datalist; rows without patient or image, labels that are not 0 or 1, files that are not
            there; nothing to look at. All of it at once.
    """
    from shared.apps.experiments.training_rows import is_patch_list
    from shared.data.checks import read_datalist
    from shared.data.names import nfc
    from shared.reports.predictions import patch_name

    root = Path(dataset_dir).resolve()
    content = read_datalist(dataset_dir, file)
    patches = is_patch_list(content) or is_patch_list({"training": content.get("testing")})
    rows: list[AuditRow] = []
    problems: list[str] = []
    for section in SECTIONS:
        entries = content.get(section) or []
        if not isinstance(entries, list):
            problems.append(f"{section}: must be a list of cases, got a {type(entries).__name__}")
            continue
        for place, case in enumerate(entries):
            found = case.get("image") if isinstance(case, Mapping) else None
            images = [found] if isinstance(found, str) else found
            named = isinstance(images, list) and images and all(isinstance(path, str) for path in images)
            if not named or not str(case.get("patient") or "").strip():
                problems.append(f"{section}[{place}]: a case needs a patient and an image, got {str(case)[:80]}")
                continue
            assert isinstance(images, list)
            paths = tuple(root / path for path in images)
            problems += [f"{case['patient']}: {path}: file not found" for path in paths if not path.is_file()]
            label = case.get("label")
            if label not in (0, 1, None):
                problems.append(f"{case['patient']}: label must be 0 or 1, got {label!r}")
                label = None
            fold = case.get("fold")
            patient = nfc(str(case["patient"]))
            rows.append(
                AuditRow(
                    patch_name(paths[0], root) if patches else patient,
                    patient,
                    nfc(str(case.get("group") or patient)),
                    f"fold {fold}" if section == "training" and fold is not None else section,
                    section,
                    label,
                    paths,
                    root / case["mask"] if isinstance(case.get("mask"), str) else None,
                    place,
                    case.get("covariates") if isinstance(case.get("covariates"), Mapping) else {},
                )
            )
    if not rows and not problems:
        problems.append(f"{root / file}: lists no case; prepare the data first")
    if problems:
        more = f"and {len(problems) - 20} more problems" if len(problems) > 20 else ""
        raise DataError([*problems[:20], *([more] if more else [])])
    modalities = content.get("modalities")
    names = tuple(map(str, modalities)) if isinstance(modalities, list) else ()
    folds = any(row.part.startswith("fold ") for row in rows)
    return AuditCohort(root, root / file, tuple(rows), patches, folds, names)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names, each once, in order."""
    from shared.data.tables import some

    return some(sorted(dict.fromkeys(names)), most)
