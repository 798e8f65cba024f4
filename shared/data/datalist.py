"""The datalist of a prepared folder, checked whole (headers only, no voxel read) before anything runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.checks import DatalistCheck
from shared.errors import DataError

logger = logging.getLogger(__name__)


class Datalist:
    """Cases of a dataset folder, with absolute paths, split into training, validation and testing.

    All rules are checked at once: files exist and have 3D NIfTI headers, every case has the same number of modalities,
    labels are integers in range and of more than one class, no patient is named twice, shared between sections or
    folds, no image is shared by two patients, covariates are finite numbers. Modalities of different grids are accepted
    and logged: the transforms resample them to the first modality.

    Args:
        dataset_dir: the prepared folder; paths in the datalist are relative to it.
        file: the datalist, relative to ``dataset_dir`` or absolute.
        fold: training cases with this ``fold`` become the validation part; -1: train on all of them, validate on
            ``testing`` (or, where no testing case has a label, on the training cases, with a warning).
        num_classes: labels lie in ``range(num_classes)``.
        num_modalities: images per case; None: as many as the first case has.
        covariates: names of covariates every case must have.
        labels_required: False for cases to predict: a label may be missing, one class is enough.
        modalities: of a trained model: of each case these are taken, in this order; a datalist without one of them is
            refused.
        classes: of a trained model: other names, or another order, are refused.
        use_modalities: names of the modalities that are taken of each case, in this order; None: all.

    Raises:
        DataError: with every problem found.

    Example:
        >>> Datalist("no/such/folder")
        Traceback (most recent call last):
            ...
        shared.errors.DataError: no/such/folder: no such dataset folder; prepare one with ...
    """

    rules = DatalistCheck

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        *,
        fold: int = -1,
        num_classes: int = 2,
        num_modalities: int | None = None,
        covariates: Sequence[str] = (),
        labels_required: bool = True,
        modalities: Sequence[str] = (),
        classes: Sequence[str] = (),
        use_modalities: Sequence[str] | None = None,
    ):
        check = self.rules(dataset_dir, file, num_classes, num_modalities, covariates, use_modalities)
        check.match_modalities(modalities)
        check.match_classes(classes)
        content = check.content
        training = check.section("training")
        testing = check.section("testing")
        unlabelled = all(case.get("label") is None for case in testing)
        if labels_required:
            check.labels_present(training)
            if not unlabelled:
                check.labels_present(testing)
        if not training and labels_required and not check.problems:
            check.problems.append(f"{check.file}: the training section is empty; it needs labelled cases")
        check.across(training, testing)
        kept, held = training, []
        if fold >= 0:
            kept, held = check.split(training, fold)
        elif fold != -1:
            check.problems.append(f"fold must be -1 (no validation fold) or a fold of the datalist, got {fold}")
        if labels_required and kept:
            check.one_class(kept, f"the training part of fold {fold}" if fold >= 0 else "the training section")
        if check.problems:
            raise DataError(check.problems)
        self.file = check.file
        self.name = content.get("name", Path(dataset_dir).name)
        self.modalities: list[str] = check.modalities
        # of phantoms: modality to the codes of planted patterns that can be seen in it
        self.planted_visible: dict[str, list[int]] = content.get("planted_visible") or {}
        self.classes: list[str] = check.classes
        self.training: list[dict[str, Any]] = kept
        self.validation: list[dict[str, Any]] = held
        self.testing: list[dict[str, Any]] = testing
        if fold < 0:
            self.validation = [] if unlabelled and labels_required else testing
            if not self.validation:
                logger.warning(
                    "%s: no fold asked for and no labelled testing case: validating on the training cases; "
                    "these figures are optimistic",
                    self.file,
                )
                self.validation = kept


class InferenceDatalist:
    """Cases to predict, with absolute paths; they need no label, and files of other sections are not looked at.

    Args:
        dataset_dir: the prepared folder.
        file: the datalist, relative to ``dataset_dir`` or absolute.
        split: ``testing`` or ``training``; training cases are taken, too, where ``testing`` is empty and they have
            no labels.
        num_classes: labels that are there lie in ``range(num_classes)``.
        num_modalities: images per case.
        covariates: names of covariates every case must have.
        modalities: of the model: of each case these are taken, in this order; a datalist without one of them is
            refused.
        classes: of the model: other names, or another order, are refused.
        may_lack: a case may have null in the place of some images: another image of it then stands there, and its
            ``lacking`` has their names and places.

    Attributes:
        cases: the cases.
        modalities: names of the modalities.
        classes: names of the classes, the model's where the datalist has none.

    Raises:
        DataError: with every problem found, or when there is nothing to predict.
    """

    rules = DatalistCheck

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        split: str = "testing",
        *,
        num_classes: int = 2,
        num_modalities: int | None = None,
        covariates: Sequence[str] = (),
        modalities: Sequence[str] = (),
        classes: Sequence[str] = (),
        may_lack: bool = False,
    ):
        check = self.rules(dataset_dir, file, num_classes, num_modalities, covariates)
        check.may_lack = may_lack
        check.match_modalities(modalities)
        check.match_classes(classes)
        content = check.content
        if split not in ("training", "testing"):
            raise DataError(f"split must be 'training' or 'testing', got {split!r}")
        entries = content.get(split) or []
        if not entries and split == "testing":
            others = content.get("training")
            without = isinstance(others, list) and all(isinstance(c, dict) and c.get("label") is None for c in others)
            if others and without:
                split, entries = "training", others
        if not entries:
            raise DataError(
                f"{check.file}: nothing to predict, split {split!r} is empty; list the patients there "
                "(the preparing script does with --inference), or predict those of 'training': --split training"
            )
        self.cases = check.section(split)
        check.across(*((self.cases, []) if split == "training" else ([], self.cases)))
        if check.problems:
            raise DataError(check.problems)
        for case in self.cases:
            for row in case.get("lacking", {}).values():
                case["image"].insert(row, case["image"][0])
        self.modalities: list[str] = check.modalities
        self.classes: list[str] = list(classes) if classes and not content.get("classes") else check.classes


def cases_for_inference(
    dataset_dir: str | os.PathLike, file: str | os.PathLike = "datalist.json", split: str = "testing", **options: Any
) -> list[dict[str, Any]]:
    """The cases of an :class:`InferenceDatalist`, which takes the same arguments."""
    return InferenceDatalist(dataset_dir, file, split, **options).cases
