"""What a MONAI Label server needs around IRCL's transforms: from its request to a case, from a case to its answer.

MONAI Label hands the pre-processing one dictionary, with the path of one image under ``image``, and takes from the
post-processing a label map under ``pred`` and plain values under ``result``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch
from monai.utils import optional_import

from shared.bundle.model import load_model
from shared.data.checks import DatalistCheck, image_header_problem
from shared.data.grids import same_grid
from shared.data.masks import LABELS_KEY
from shared.errors import CheckpointError, DataError
from shared.explain.ircl.patient import PatientExplainer
from shared.explain.ircl.shapley import no_biomarkers
from shared.io import DATALIST
from shared.transforms.roi_slices import masks_to_volume

if TYPE_CHECKING:
    from shared.handlers.abstention import Abstention


class TellClient:
    """Transforms whose refusals reach the client as a message, with status 422.

    A server of starlette, which MONAI Label is, answers every other error with "Internal Server Error". Without
    starlette the errors stay as they are.

    Args:
        transforms: run one after the other.

    Raises:
        DataError: what they refuse, in a server also a starlette ``HTTPException``.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = list(transforms)

    def __call__(self, data: Any) -> Any:
        """Run them on one request."""
        try:
            for transform in self.transforms:
                data = transform(data)
            return data
        except (DataError, CheckpointError) as error:
            raise _for_client(error) from error


def _for_client(error: Exception) -> Exception:
    exception, installed = optional_import("starlette.exceptions", name="HTTPException")
    if not installed:
        return error
    kind = type("Refused", (exception, type(error)), {"__str__": lambda _: str(error)})
    refused = kind(422, detail=str(error))
    refused.__dict__.update(error.__dict__)  # a DataError's problems
    return refused


class RequestedCased(MapTransform):
    """From a request for one image to the patient's case: all modalities, tumour mask and covariates.

    The case is looked up in the ``datalist.json`` of the image's folder or of the nearest one above it (links are
    followed); the request may name any of the patient's modalities. An image that no datalist lists is a case by
    itself, enough for a model of one modality. What the request gives wins: the file of a tumour mask under ``label``
    (MONAI Label's form field), ``covariates`` as an object.

    Args:
        num_modalities: images the model takes.
        covariates: names of the covariates it takes.
        modalities: their names; of a datalist's case these are taken, in this order, and one without them is refused.
        datalist: name of the datalist file.

    Shape:
        - ``data["image"]`` becomes the list of the modalities' paths
        - ``mask``, ``patient``, ``covariates`` ``[C]`` and ``requested`` (path and modality asked for) are set

    Raises:
        DataError: no such image; an image without the modalities or covariates the model needs; a mask asked for, or an
            image of another modality than the model's.

    Example:
        >>> RequestedCased(1)({"image": "no_such.nii.gz"})
        Traceback (most recent call last):
            ...
        shared.errors.DataError: no_such.nii.gz: file not found
    """

    def __init__(
        self,
        num_modalities: int,
        *,
        covariates: Sequence[str] = (),
        modalities: Sequence[str] = (),
        datalist: str = DATALIST,
    ):
        super().__init__(["image"])
        self.num_modalities, self.covariates, self.datalist = num_modalities, tuple(covariates), datalist
        self.modalities = tuple(modalities)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Find the case of one request."""
        out = dict(data)
        path, label, given = out["image"], out.pop("label", None), out.pop("covariates", None) or {}
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(f"A request names one image file, got {path!r}; the patient's others are looked up.")
        if not str(path):
            # what the server makes of an id it does not know
            raise DataError("The request's image is not in the studies folder; ask for one that is listed there.")
        problem, _ = image_header_problem(path)
        if problem:
            raise DataError(f"{path}: {problem}")
        if not isinstance(given, Mapping):
            raise DataError(f"{path}: 'covariates' must be an object of names and numbers, got {given!r}.")
        asked = Path(path).resolve()
        case = self._listed(asked, given) or self._alone(path, given)
        if label and not Path(label).is_file():
            raise DataError(f"{case['patient']}: 'label' must be the file of a tumour mask, got {label!r}.")
        taken = [Path(image).resolve() for image in case["image"]]
        if asked not in taken:
            raise DataError(f"{path}: the model takes {', '.join(self.modalities)} only; ask for one of these images.")
        modality = taken.index(asked)
        out |= {"image": case["image"], "patient": case["patient"], "mask": label or case.get("mask")}
        how = ("trust_affines",) if label else ("trust_affines", LABELS_KEY)  # the datalist's mask is read
        out |= {key: case[key] for key in how if key in case}
        out["requested"] = {"path": str(path), "modality": modality}
        out["covariates"] = torch.tensor([float(case["covariates"][name]) for name in self.covariates])
        return out

    def _listed(self, path: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """The case that lists the image, its paths absolute; None: no datalist, or not in it."""
        folder = next((parent for parent in path.parents if (parent / self.datalist).is_file()), None)
        if folder is None:
            return None
        check = DatalistCheck(folder, self.datalist, 2, self.num_modalities, self.covariates)
        check.match_modalities(self.modalities)
        for entry in [*check.entries("training"), *check.entries("testing")]:
            names = dict(entry) if isinstance(entry, Mapping) else {}
            if any(_is_file(folder, names.get(key), path) for key in ("mask", "planted")):
                raise DataError(f"{path}: is a mask of {names.get('patient')}; ask for one of the patient's images.")
            if _is_file(folder, names.get("image"), path):
                # this case alone is checked: what is wrong with others is none of the request's business
                known = names.get("covariates") or {}
                check.content["testing"] = [names | {"label": None, "covariates": {**known, **given}}]
                cases = check.section("testing")
                if check.problems:
                    raise DataError(check.problems)
                return cases[0]
        return None

    def _alone(self, path: str | os.PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
        if self.num_modalities != 1:
            raise DataError(
                f"{path}: the model takes {self.num_modalities} images of a patient, and no {self.datalist} in the "
                "image's folder or above lists this one with its others. Serve a prepared folder "
                "(scripts/monailabel_studies.py), or a model of one modality."
            )
        missing = [name for name in self.covariates if not isinstance(given.get(name), int | float)]
        if missing:
            raise DataError(
                f"{path}: the model needs a number for {', '.join(missing)}; list the patient in a {self.datalist}, "
                'or give {"covariates": {...}} in the request\'s params.'
            )
        return {"patient": Path(path).name.split(".")[0], "image": [str(path)], "covariates": dict(given)}


def _is_file(folder: Path, listed: Any, path: Path) -> bool:
    """Whether the path, or a list of them, that a datalist gives names the file."""
    return any((folder / str(name)).resolve() == path for name in (listed if isinstance(listed, list) else [listed]))


class BiomarkerAnswerd(MapTransform):
    """Explain a case and answer with a map of its biomarkers and the figures.

    Under ``pred`` (and ``biomarkers``), on the file's own grid: of the additive predictor the biomarker of every place
    of the tumour, of the prototype transformer the regions that make the slices of the image asked for look like their
    biomarkers; value k + 1 is biomarker k (of the image's modality), 0 none. Under ``result``:
    :meth:`shared.explain.PatientExplainer.summary`, the values' names, and whether to believe it. The weights are read
    anew for each request, strictly: a retrained model needs no restart, and a file that does not fit is refused.

    Args:
        explainer: explains a case, with masks.
        ckpt_dir: folder of the weights.
        model_file: the weights; ``model_filename`` of a request wins.
        threshold: a pixel belongs to the region from this value of its mask on.
        abstention: of the same network: adds ``set``, ``out_of_cohort``, ``cohort_distance`` and ``reason``, None where
            the model lacks what they need.

    Shape:
        - ``data["image"]``: ``[C * k, H, W]``, with what ``LoadCased`` and ``ROISlicesd`` set
        - ``data["pred"]``: ``[X, Y, Z]`` uint8 of the requested file's shape and affine

    Raises:
        DataError: no biomarkers, or more than a label map holds.
        CheckpointError: weights that cannot be read or do not fit.
    """

    def __init__(
        self,
        explainer: PatientExplainer,
        *,
        ckpt_dir: str | os.PathLike,
        model_file: str = "model.pt",
        threshold: float = 0.5,
        abstention: Abstention | None = None,
    ):
        super().__init__(["image"])
        if not hasattr(explainer.network, "biomarkers"):
            raise DataError(f"MONAI Label is answered with biomarkers; {no_biomarkers(explainer.network)}.")
        if explainer.answer == "additive":
            count, where = explainer.network.additive.num_biomarkers, " of a modality"
        else:
            count, where = len(explainer.network.biomarkers), ""
        if count > 255:
            raise DataError(f"A label map holds 255 biomarkers, the model has {count}{where}.")
        self.explainer, self.ckpt_dir, self.model_file = explainer, Path(ckpt_dir), model_file
        self.threshold, self.abstention = threshold, abstention
        self._lock = threading.Lock()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Answer one request."""
        out = dict(data)
        chosen = out.get("model_filename") or self.model_file
        chosen = chosen if isinstance(chosen, str) else chosen[0]
        explainer = self.explainer
        # a server may answer several requests at once, of this one network
        with self._lock, torch.enable_grad():
            explainer.device = torch.device(out.get("device") or explainer.device)
            # the name alone: a request must not reach other folders
            load_model(self.ckpt_dir / Path(chosen).name, explainer.network)
            found = explainer({**out, "image": torch.as_tensor(out["image"])})
            # cohort.npz and conformal.json are of the folder's own model
            own_model = Path(chosen).name == self.model_file
            flags = self._flags(out, found) if own_model else {}
        path, modality = out["requested"]["path"], out["requested"]["modality"]
        count = len(found["images"]) // out["geometry"]["num_modalities"]
        own = slice(modality * count, (modality + 1) * count)
        rows = found["images"][own]
        one = {**out["geometry"], "num_modalities": 1}
        if found["places"] is not None:
            first = modality * explainer.network.additive.num_biomarkers
            codes = (found["places"]["biomarkers"][own] + 1 - first).clamp(min=0)
            volume = masks_to_volume(codes, one, mode="nearest")
            labels = self._on_file(np.asarray(volume.dataobj), volume.affine, path)
            names = {int(k): int(k) - 1 for k in labels.unique() if k > 0}
        else:
            labels = self._labels(found["masks"].mask[own, 0].detach().cpu(), rows, one, path)
            names = {row["biomarker"] + 1: row["biomarker"] for row in rows}
        out |= {"pred": labels, "biomarkers": labels}
        out["result"] = (
            explainer.summary(found)
            | flags
            | {
                "requested": {"file": Path(path).name, "modality": rows[0]["modality"]},
                "regions": {
                    str(code): {"biomarker": names[code], "voxels": int((labels == code).sum())}
                    for code in sorted(names)
                },
            }
        )
        return out

    @torch.no_grad()
    def _flags(self, case: Mapping[Hashable, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of predictions.csv, from the pass that an inference makes."""
        if self.abstention is None:
            return {}
        network, device = self.explainer.network, self.explainer.device
        with self.abstention.watching():
            network(torch.as_tensor(case["image"])[None].to(device), case["covariates"][None].to(device))
            known = [case["covariates"]]
            row = self.abstention.columns([found["probability"]], self.explainer.class_names, covariates=known)[0]
        return {key: None if value == "" else value for key, value in row.items()}

    def _labels(
        self, masks: torch.Tensor, rows: Sequence[Mapping[str, Any]], geometry: Mapping[str, Any], path: str
    ) -> MetaTensor:
        """Label map of one modality's masks ``[k, H, W]`` on the grid of the file ``path``."""
        codes = torch.tensor([row["biomarker"] + 1.0 for row in rows])
        kept = masks_to_volume(masks, geometry)
        # constant images stay constant through the resize: no value lies between two biomarkers
        values = masks_to_volume(codes[:, None, None].expand_as(masks), geometry)
        volume = np.where(np.asarray(kept.dataobj) >= self.threshold, np.asarray(values.dataobj).round(), 0.0)
        return self._on_file(volume, kept.affine, path)

    def _on_file(self, labels: np.ndarray, where: np.ndarray, path: str) -> MetaTensor:
        """A label map of the grid ``where`` on that of the file ``path``."""
        volume = MetaTensor(torch.as_tensor(labels, dtype=torch.float32)[None], affine=torch.as_tensor(where))
        asked = nib.load(path)
        affine = torch.as_tensor(asked.affine)
        if not same_grid((volume.shape[1:], volume.affine), (asked.shape, affine)):
            grid = MetaTensor(torch.zeros(1, *asked.shape[:3]), affine=affine)
            resample = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=torch.float32)
            volume = resample(volume, img_dst=grid)
        return MetaTensor(volume[0].as_tensor().to(torch.uint8), affine=affine)
