"""The glioma cohort's parts: who trains the brain network's encoders, the embeddings, the population graph, who tests.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 4.1: the graph is
trained on features of patients that the encoders did not see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.data.checks import DatalistCheck, image_header_problem
from shared.data.datalist import Datalist, InferenceDatalist
from shared.data.splits import assign_folds
from shared.errors import DataError

logger = logging.getLogger(__name__)

PARTS = ("self_supervised", "contrastive", "population")
LEAST = 2  # patients of each label in a part that is trained with labels


def stratified_parts(
    patients: Sequence[str], labels: Sequence[Hashable], shares: Mapping[str, float], seed: int = 0
) -> dict[str, str]:
    """Deal patients out to parts, each label in the same shares, with a seed; their order does not matter.

    Example:
        >>> parts = stratified_parts(list("abcdefgh"), [0, 1] * 4, {"first": 1, "second": 3})
        >>> sorted(parts.values()).count("first")
        2
    """
    import numpy as np

    total, names = sum(shares.values()), list(shares)
    if min(shares.values()) < 0 or total <= 0:
        raise DataError(f"shares of the parts must be at least 0 and one of them above, got {dict(shares)}")
    bounds = np.cumsum([shares[name] / total for name in names])
    found, offset = {}, 0.0
    for label in sorted(set(labels), key=str):
        group = sorted(patient for patient, other in zip(patients, labels, strict=True) if other == label)
        order = np.random.default_rng([seed, len(group)]).permutation(len(group))
        # one label's rounding is carried to the next, so that the parts' sizes come out right, too
        cuts = np.floor(bounds * len(group) + offset + 1e-9).astype(int)
        cuts[-1] = len(group)
        offset = (offset + 0.5) % 1.0
        for place, row in enumerate(order):
            found[group[row]] = names[int(np.searchsorted(cuts, place, side="right"))]
    return found


class GliomaCheck(DatalistCheck):
    """The rules of a datalist of volumes, with the glioma bundle's way to come by one."""

    remedy = (
        "prepare one with scripts/prepare_glioma.py (folders of NIfTI and a CSV), or make phantoms with "
        "scripts/make_phantom_brains.py, as `bash scripts/demo.sh glioma_idh` does"
    )


class GliomaDatalist(Datalist):
    """A :class:`Datalist` whose training patients are dealt out to the stages, stratified by label.

    A patient of the datalist may carry its ``part`` itself; the others are drawn.

    Args:
        dataset_dir: the prepared folder.
        file: the datalist.
        shares: of ``self_supervised``, ``contrastive`` and ``population``; where the first is 0, the contrastive part
            trains the brain network's encoders, too (they see no label).
        fold: see :class:`Datalist`.
        num_modalities: sequences.
        covariates: names every patient must have.
        seed: of the draw.
        folds: 0, or of cross-fitting (:class:`shared.engines.CrossFit`): then there are no parts, all training patients
            train every stage, and are dealt out to so many folds, by label and with their groups whole.
        held_out: of cross-fitting, a fold whose patients train nothing; -1: none.
        trained: ``modalities`` and ``classes`` of a trained model, see :class:`Datalist`.

    Attributes:
        fold_of: fold of each training patient; empty without cross-fitting.
        self_supervised: patients of the stages ``nodes`` and ``edges``; contrastive: of ``contrast``; population: of
            ``train``; each beside ``training`` (all three), ``validation`` and ``testing``.
        with_fa: those of ``self_supervised`` that have an FA map; all_fa: whether all of them do. Where some do, a
            warning says so: a few maps decide nothing.

    Raises:
        DataError: what :class:`Datalist` finds, patients without mask, FA maps that cannot be read, parts too small.
    """

    rules = GliomaCheck

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        file: str | os.PathLike = "datalist.json",
        *,
        shares: Mapping[str, float],
        fold: int = -1,
        num_modalities: int | None = None,
        covariates: Sequence[str] = (),
        seed: int = 0,
        folds: int = 0,
        held_out: int = -1,
        **trained: Any,
    ):
        given = {"num_modalities": num_modalities, "covariates": covariates, **trained}
        super().__init__(dataset_dir, file, fold=fold, **given)
        if set(shares) != set(PARTS):
            raise DataError(f"shares must name the parts {', '.join(PARTS)}, got {', '.join(map(str, shares))}")
        everybody = {case["patient"]: case for case in [*self.training, *self.validation, *self.testing]}
        problems = complete_cases(everybody.values(), Path(dataset_dir))
        wrong = [c for c in self.training if c.get("part", PARTS[0]) not in PARTS]
        problems += [f"{c['patient']}: part must be one of {', '.join(PARTS)}, got {c['part']!r}" for c in wrong]
        self.folds, self.fold_of = folds, self._dealt_folds(folds, held_out, seed)
        seen = [case for case in self.training if not folds or self.fold_of[case["patient"]] != held_out]
        free = [case for case in self.training if "part" not in case]
        ordered = {part: shares[part] for part in PARTS}
        dealt = (
            stratified_parts([c["patient"] for c in free], [c["label"] for c in free], ordered, seed)
            if free and not folds
            else dict.fromkeys((c["patient"] for c in free), PARTS[-1])
        )
        self.part_of = {c["patient"]: c["part"] if "part" in c else dealt[c["patient"]] for c in self.training}
        own, self.contrastive, self.population = (
            seen if folds else [case for case in self.training if self.part_of[case["patient"]] == part]
            for part in PARTS
        )
        self.self_supervised: list[dict[str, Any]] = own or self.contrastive
        for part in PARTS[1:]:
            counts = [sum(case["label"] == label for case in getattr(self, part)) for label in (0, 1)]
            if min(counts) < LEAST:
                problems.append(
                    f"{self.file}: the part {part!r} has {counts[0]} and {counts[1]} patients of the two labels, at "
                    f"least {LEAST} of each are needed; change shares, or add patients"
                )
        if problems:
            raise DataError(problems)
        self.with_fa = [case for case in self.self_supervised if case.get("fa")]
        # of cross-fitting all folds learn alike, whoever is held out
        asked = self.training if folds else self.self_supervised
        lacking = sorted(case["patient"] for case in asked if not case.get("fa"))
        self.all_fa = not lacking and len(self.with_fa) > 1  # Eq. 1 contrasts patients
        if self.with_fa and lacking:
            logger.warning(
                "%s: %d of the %d patients who train the brain network's encoders have an FA map, so none is used (the "
                "others: %s%s); prepare all, or give --edges#use_fa True to learn from those who have one alone",
                *(self.file, len(self.with_fa), len(asked)),
                *(", ".join(lacking[:5]), ", ..." if lacking[5:] else ""),
            )
        logger.info(
            "%s: %d patients train the brain network's encoders (%d with FA), %d the embeddings, %d the population "
            "graph; %d validate, %d test",
            *(self.file, len(self.self_supervised), len(self.with_fa), len(self.contrastive), len(self.population)),
            *(len(self.validation), len(self.testing)),
        )

    def _dealt_folds(self, folds: int, held_out: int, seed: int) -> dict[str, int]:
        if not folds:
            return {}
        if not -1 <= held_out < folds:
            raise DataError(f"the fold held out must be -1 (none) to {folds - 1}, got {held_out}")
        if named := [case["patient"] for case in self.training if "part" in case]:
            raise DataError(
                f"{self.file}: {named[0]} names its part ({len(named)} patients do), and cross-fitting has no parts; "
                "remove 'part' from the datalist, or give --cross_fit#folds 0"
            )
        return {case["patient"]: case["fold"] for case in assign_folds(self.training, folds, seed)}

    def parts(self) -> dict[str, list[str]]:
        """Patients' names by part, for the record."""
        groups = {part: getattr(self, part) for part in (*PARTS, "validation", "testing")}
        return {part: sorted(case["patient"] for case in cases) for part, cases in groups.items()}


class GliomaInferenceDatalist(InferenceDatalist):
    """An :class:`InferenceDatalist` whose patients all have a tumour mask."""

    rules = GliomaCheck

    def __init__(self, dataset_dir: str | os.PathLike, file: str | os.PathLike = "datalist.json", *args, **kwargs):
        super().__init__(dataset_dir, file, *args, **kwargs)
        if problems := complete_cases(self.cases, Path(dataset_dir)):
            raise DataError(problems)


def complete_cases(cases: Any, root: Path) -> list[str]:
    """Make paths of FA maps and of places in MNI152 absolute; what is wrong with them and with masks."""
    problems = []
    for case in cases:
        if not case.get("mask"):
            problems.append(f"{case['patient']}: has no tumour mask; add it to the datalist, or leave the patient out")
        for key in ("fa", "mni_places"):
            if case.get(key):
                case[key] = str(root.resolve() / case[key])
        if case.get("fa") and (problem := image_header_problem(case["fa"])[0]):
            problems.append(f"{case['patient']}: {case['fa']}: {problem}")
        if case.get("mni_places") and not Path(case["mni_places"]).is_file():
            problems.append(
                f"{case['patient']}: {case['mni_places']}: file not found; prepare the patient again, or take "
                "'mni_places' out of the datalist (maps are then written in MNI152 alone)"
            )
    return problems
