"""What a datalist offers for training, and its copies with other folds or labels; rows are patients or patches."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError
from shared.io import read_json_object
from shared.reports.predictions import patch_name

DOUBT = (1.0, 4.0)  # of the beta distribution of a row's probability that an annotator errs


@dataclass(frozen=True)
class TrainingRows:
    """What a datalist offers for training: patients, or patches of patients, with their labels.

    ``labels`` is by patient or, of patches, by image; ``patients`` says whose the images are, None where rows are
    patients; ``groups`` says which patients belong together, None where each stands alone.
    """

    datalist: Mapping
    labels: Mapping[str, int]
    patients: Mapping[str, str] | None
    dataset_dir: Path
    groups: Mapping[str, str] | None = None

    @classmethod
    def read(cls, path: Path, dataset_dir: Path) -> TrainingRows:
        """Read a datalist; a validation section of patches joins the training section, to be left out in turn.

        Raises:
            DataError: no such file, no datalist, or all that is wrong with the labels at once.
        """
        from shared.data.splits import groups_of

        datalist = read_json_datalist(path)
        if not is_patch_list(datalist):
            datalist, labels = read_datalist(path)
            return cls(datalist, labels, None, dataset_dir, groups_of(datalist["training"]))
        joined = {key: value for key, value in datalist.items() if key != "validation"}
        joined["training"] = datalist["training"] + datalist.get("validation", [])
        return cls(joined, *patch_truth(joined["training"], dataset_dir, str(path)), dataset_dir)

    def name_of(self, case: Mapping) -> str:
        """The row of a case."""
        if self.patients is None:
            return str(case["patient"])
        return patch_name(self.dataset_dir / case["image"], self.dataset_dir)

    def folds(self, count: int, seed: int) -> dict[str, int]:
        """Fold of each row, stratified by label; a patient's patches share one, and so do a group's patients."""
        from shared.data.splits import grouped_folds, stratified_folds

        names, values = list(self.labels), list(self.labels.values())
        owner = self.groups if self.patients is None else self.patients
        if owner is None:
            return stratified_folds(names, values, count, seed)
        fold_of = grouped_folds([owner[name] for name in names], values, count, seed)
        return {name: fold_of[owner[name]] for name in names}

    def split(
        self,
        fold_of: Mapping[str, int],
        labels: Mapping[str, int] | None = None,
        votes: Mapping[str, float] | None = None,
    ) -> dict:
        """The datalist with these folds, and with these labels and votes instead of the true ones; the rest is kept."""
        cases = []
        for case in self.datalist["training"]:
            name = self.name_of(case)
            cases.append({**case, "label": (labels or self.labels)[name], "fold": fold_of[name]})
            if labels:
                cases[-1].pop("soft_label", None)  # the votes are the true label
            if votes and name in votes:
                cases[-1]["soft_label"] = votes[name]
        return {**self.datalist, "training": cases}


def is_patch_list(datalist: Mapping) -> bool:
    """Whether the cases are patches (one PNG, JPEG or TIFF each) and not volumes.

    Example:
        >>> is_patch_list({"training": [{"image": "SSA/a.png"}]}), is_patch_list({"training": [{"image": "a.nii.gz"}]})
        (True, False)
    """
    suffixes = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
    cases = datalist.get("training")
    images = [case.get("image") for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    return bool(images) and all(isinstance(image, str) and image.lower().endswith(suffixes) for image in images)


def patch_truth(
    cases: Iterable[Mapping], dataset_dir: Path, source: str = "datalist"
) -> tuple[dict[str, int], dict[str, str]]:
    """Label and patient of each patch, by its name.

    Raises:
        DataError: all patches without a patient or with a label that is not 0 or 1, and all that stand there twice.
    """
    labels: dict[str, int] = {}
    patients: dict[str, str] = {}
    problems = []
    for case in cases:
        name = patch_name(dataset_dir / str(case.get("image")), dataset_dir)
        if name in labels:
            problems.append(f"{source}: {name} stands in it twice")
        if case.get("label") not in (0, 1):
            problems.append(f"{source}: {name} has label {case.get('label')!r}, must be 0 or 1")
        if not case.get("patient"):
            problems.append(f"{source}: {name} has no patient")
        labels[name], patients[name] = case.get("label"), str(case.get("patient"))
    if problems:
        raise DataError(problems)
    return labels, patients


def read_json_datalist(path: Path) -> dict:
    """Read a datalist, whatever it lists.

    Raises:
        DataError: no such file (with the scripts that make one), or not a JSON object.
    """
    if not path.is_file():
        raise DataError(
            f"no datalist at {path}: make one with scripts/prepare_patients.py, scripts/prepare_tcga_lgg.py, "
            "scripts/prepare_mhist.py, scripts/prepare_image_folder.py or bash scripts/demo.sh"
        )
    return read_json_object(path, "datalist")


def read_datalist(path: Path) -> tuple[dict, dict[str, int]]:
    """Return the datalist and the label of every training patient.

    Raises:
        DataError: no such file, no datalist, or all that is wrong with the labels at once.
    """
    datalist = read_json_datalist(path)
    try:
        pairs = [(str(case["patient"]), case["label"]) for case in datalist["training"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no datalist: a 'training' list of patient and label is needed ({error!r})"
        ) from error
    problems = [f"{path}: {p} has label {label!r}, must be 0 or 1" for p, label in pairs if label not in (0, 1)]
    labels: dict[str, int] = {}
    for patient, label in pairs:
        if labels.setdefault(patient, label) != label:
            problems.append(f"{path}: {patient} has two labels")
    if problems:
        raise DataError(problems)
    return datalist, labels


def simulate_votes(labels: Mapping[str, int], annotators: int, seed: int) -> dict[str, float]:
    """Share of annotators that call each row positive, where each errs with the row's own probability, Beta(1, 4).

    Rows are unlike: most are clear, one in sixteen misleads more than half of the annotators. With seven of them, 0.10
    of the majorities are wrong and 0.17 are of four to three, about as many as MHIST has (Wei et al., A Petri Dish for
    Histopathology Image Analysis, 2021).

    Args:
        labels: true ones, 0 or 1.
        annotators: an odd number, so that there is a majority.
        seed: of the errors; a row's do not depend on which fold leaves it out.

    Example:
        >>> simulate_votes({"a": 1, "b": 1, "c": 0}, 5, seed=4)
        {'a': 0.8, 'b': 1.0, 'c': 0.2}
    """
    draw, shares = random.Random(f"votes {seed}"), {}
    for name in sorted(labels):
        doubt = draw.betavariate(*DOUBT)
        wrong = sum(draw.random() < doubt for _ in range(annotators))
        shares[name] = (annotators - wrong if labels[name] else wrong) / annotators
    return shares


def shuffle_labels(labels: Mapping[str, int], fold_of: Mapping[str, int], *, fold: int, seed: int) -> dict[str, int]:
    """Permute the labels among the patients that train; those of the validation fold stay true.

    Example:
        >>> labels = {"a": 0, "b": 1, "c": 0, "d": 1}
        >>> shuffled = shuffle_labels(labels, {"a": 0, "b": 0, "c": 1, "d": 1}, fold=1, seed=1)
        >>> [shuffled[name] for name in "cd"], sorted(shuffled[name] for name in "ab")
        ([0, 1], [0, 1])
    """
    training = [patient for patient in sorted(labels) if fold_of[patient] != fold]
    values = [labels[patient] for patient in training]
    random.Random(f"{seed}/{fold}").shuffle(values)
    return {**labels, **dict(zip(training, values, strict=True))}
