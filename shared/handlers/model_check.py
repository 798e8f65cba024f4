"""Before a trained model is evaluated, explained or asked: used as it was trained, on patients it has not seen?"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.bundle.record import MODEL_FILE, SPLIT_FILE, cache_folder, read_model, read_split, seen_patients
from shared.bundle.settings import refuse_others
from shared.digests import Digests
from shared.distributed.processes import from_main
from shared.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from shared.data import PatchDatalist, PatchInferenceDatalist, SlideDatalist

logger = logging.getLogger(__name__)

OF_THE_ANSWER = ("views", "average")  # they change no weight: what of an image's views is averaged
OLDER = {"average": "probabilities"}  # of a model.json without them
WIDER = 0.05  # by which the tissue of a patch may be wider or narrower than of the training's


class ModelCheck:
    """Compare what is used now with what ``model.json`` and ``split.json`` say of the training.

    Args:
        ckpt_dir: folder of ``model.pt``.
        used: settings now in use, by section of ``model.json``.
        cases: the cases to evaluate or explain; None: to predict, where patients of the training are told, not refused.
        split: which part of the datalist they are; of ``training`` the caller knows that they were trained on.
        cohort: name of their data set.
        dataset_dir: where digests of files are cached.
        patches: the datalist, where it is one of patches: they must show as much tissue as the training's did.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        *,
        used: Mapping[str, Any] | None = None,
        cases: Sequence[Mapping[str, Any]] = (),
        split: str | None = None,
        cohort: str | None = None,
        dataset_dir: str | os.PathLike | None = None,
        patches: PatchDatalist | PatchInferenceDatalist | SlideDatalist | None = None,
    ):
        self.ckpt_dir, self.used, self.cases = Path(ckpt_dir), dict(used or {}), cases
        self.split, self.cohort, self.patches = split, cohort, patches
        self.digests = Digests(cache_folder(dataset_dir))
        self._seen: dict[str, str] | None = None

    @property
    def switched(self) -> dict[str, Any]:
        """Settings of the answer in use that are not the model's own, which change no weight."""
        model = {**OLDER, **read_model(self.ckpt_dir)}
        if "tiles" in model:  # a model of slides was trained on features that were averaged so
            return {}
        compared = [key for key in OF_THE_ANSWER if key in model and key in self.used]
        return {key: self.used[key] for key in compared if self.used[key] != model[key]}

    def run(self) -> None:
        """Refuse what is not the model's; call it before anything is computed.

        Raises:
            CheckpointError: no ``model.json`` beside ``model.pt``, or other settings than the model's, but for those of
                its answer (``OF_THE_ANSWER``).
            DataError: patients to evaluate whom the model was trained on; patches of another width.
        """
        from_main(self._run)

    def _run(self) -> None:
        if not (self.ckpt_dir / "model.pt").is_file():
            return  # whoever loads it says how to train one
        path = self.ckpt_dir / MODEL_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: it says what model.pt was trained with; copy it from the training's folder, or "
                "run the last stage again (--run_id train_run)."
            )
        model = read_model(self.ckpt_dir)
        switched = self.switched
        refuse_others(path, model, {key: value for key, value in self.used.items() if key not in switched})
        for key, value in switched.items():
            logger.warning(
                "%s is %s, the model's own is %s: sets and thresholds, which are of its own, are left out.",
                key,
                value,
                {**OLDER, **model}[key],
            )
        self._compare_width(model)
        if self.split is None:
            self.seen()
        elif self.split == "training":
            logger.warning("These are the patients the model was trained on: the figures say nothing about new ones.")
        else:
            self._refuse_seen()

    def _compare_width(self, model: Mapping[str, Any]) -> None:
        """All patches are resized to one number of pixels, so that another width is another magnification."""
        side = model.get("patch_size")
        if self.patches is None or self.patches.patch_size is None or side is None:
            return
        (now, _), mpp, trained_mpp = self.patches.patch_size, self.patches.mpp, model.get("mpp")
        if mpp is None or trained_mpp is None:
            if now != side:
                whose = "these patches'" if mpp is None else "the training's"
                logger.warning(
                    "The patches have %d pixels a side, the training's had %d, and the size of %s pixels is not known: "
                    "the model is right only where both show the same width of tissue (mpp in datalist.json).",
                    now,
                    side,
                    whose,
                )
        elif abs(now * mpp - side * trained_mpp) > WIDER * side * trained_mpp:
            raise DataError(
                f"the patches are {now * mpp:g} micrometres wide ({now} pixels of {mpp:g}), the model was trained on "
                f"{side * trained_mpp:g} ({side} pixels of {trained_mpp:g}), another magnification: cut them anew, or "
                "correct mpp in the datalist where it is wrong"
            )

    def _refuse_seen(self) -> None:
        content = read_split(self.ckpt_dir)
        names = self._names()
        if not content.get("images"):
            # glioma_idh's former versions wrote the names by part
            parts = [part for key, part in content.items() if key not in ("validation", "testing", "cohort")]
            if again := sorted(names & {str(name) for part in parts if isinstance(part, list) for name in part}):
                raise DataError(
                    f"{len(again)} of the {len(names)} patients to evaluate trained this model by name "
                    f"({', '.join(again[:5])}): their figures would say nothing about new patients. Give the "
                    "training's own --fold, --seed and datalist, other patients, or --split training to look at them "
                    "knowingly."
                )
            logger.warning(
                "%s does not say on whose images the model was trained (packaged models come without it): whether it "
                "was trained on these patients cannot be checked.",
                self.ckpt_dir / SPLIT_FILE,
            )
            return
        seen = self.seen()
        if seen:
            told = ", ".join(f"{now} (then {then})" if now != then else now for now, then in list(seen.items())[:5])
            raise DataError(
                f"{len(seen)} of the {len(names)} patients to evaluate trained this model ({told}): their figures "
                "would say nothing about new patients. Give the training's own --fold, --seed and datalist, other "
                "patients, or --split training to look at them knowingly."
            )
        known = {name for stage in content.get("images", {}).values() for name in stage}
        again = sorted(known & names)
        if again and self.cohort and self.cohort == content.get("cohort"):
            raise DataError(
                f"{len(again)} of the {len(names)} patients to evaluate trained this model by name "
                f"({', '.join(again[:5])}), with other images of the same data set ({self.cohort}): give the "
                "training's own --fold, --seed and datalist, or --split training to look at them knowingly."
            )
        if again:
            logger.warning(
                "%d patients have names that were trained on, too (%s), with other images: taken for other people.",
                len(again),
                ", ".join(again[:5]),
            )

    def seen(self) -> dict[str, str]:
        """Of the cases, the patients whose images were trained on, each with the name it then had; they are told."""
        if self._seen is not None:
            return self._seen
        found = self._seen = seen_patients(self.ckpt_dir, self.cases, self.digests)
        self.digests.save()
        if found and self.split is None:
            logger.warning(
                "The model was trained on %d of the %d patients to predict (%s): column trained_on.",
                len(found),
                len(self._names()),
                ", ".join(list(found)[:5]),
            )
        return found

    def known(self) -> bool:
        """Whether it is known here who was trained on."""
        return bool(read_split(self.ckpt_dir).get("images"))

    def _names(self) -> set[str]:
        return {str(case["patient"]) for case in self.cases}
