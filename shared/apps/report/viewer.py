"""Volumes of a patient packed into a page, and the viewer that shows them: niivue, from a package that is installed."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from shared.apps.report.blocks import read_object
from shared.errors import DataError
from shared.io import read_json_object
from shared.reports.trace import TRACE

HOW = (
    "No viewer is in this page: install nilearn, which brings niivue (pip install -r requirements-glioma.txt), or give "
    "dist/niivue.umd.js of npm's @niivue/niivue with --niivue FILE."
)
MAPS = {
    "contributions": ("contributions", "signed"),
    "biomarkers": ("biomarkers", "labels"),
    "mask": ("mask", "map"),
    "cam": ("Grad-CAM", "map"),
    "contribution": ("contribution", "signed"),
    "tracts": ("tracts kept", "map"),
}
"""By the end of a file's name what it shows, and whether values have a sign or are labels."""


def niivue_source(file: str | Path | None = None) -> str | None:
    """The text of niivue's browser file: of ``file``, else of the installed nilearn, else None.

    Raises:
        DataError: ``file`` is none.
    """
    if file is None:
        found = find_spec("nilearn")
        path = Path(str(found.origin)).parent / "_assets" / "js" / "niivue.umd.js" if found and found.origin else None
        if path is None or not path.is_file():
            return None
    else:
        path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"--niivue {path} cannot be read: {error}") from error
    if "niivue" not in text or "exports" not in text:
        raise DataError(f"--niivue {path} is not niivue's dist/niivue.umd.js")
    return text.replace("</script", "<\\/script")  # the page's own script would end there


def find_inputs(folder: Path, dataset_dir: Path | None) -> dict[str, list[Path]]:
    """By patient the images that were predicted, as ``trace.json`` or a datalist names them; empty where none does.

    Args:
        folder: output folder of an inference or explanation.
        dataset_dir: where the data are; None: where the trace says.
    """
    found: dict[str, list[Path]] = {}
    if (folder / TRACE).is_file():
        content = read_json_object(folder / TRACE, "trace")
        root = Path(dataset_dir or content.get("places", {}).get("dataset_dir", "."))
        for case in content.get("cases", []):
            images = [root / part["file"] for part in case["inputs"] if part["of"] == "image"]
            found.setdefault(str(case["patient"]), []).extend(images)
        return found
    if dataset_dir is None or not (dataset_dir / "datalist.json").is_file():
        return found
    content = read_json_object(dataset_dir / "datalist.json", "datalist")
    for cases in content.values():
        for case in cases if isinstance(cases, list) else []:
            if isinstance(case, Mapping) and "patient" in case and case.get("image"):
                images = case["image"] if isinstance(case["image"], list) else [case["image"]]
                found.setdefault(str(case["patient"]), []).extend(dataset_dir / str(image) for image in images)
    return found


def packed_volumes(
    images: Sequence[tuple[str, Path]], maps: Sequence[tuple[str, Path]], budget: list[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Images and maps as gzipped NIfTI in base64; what does not fit or cannot be read is told.

    Grey values of images become 8 bit between the percentiles 0.5 and 99.5; an image that does not fit is thinned to
    every second voxel. A map with a fourth axis is one map for each image, in their order.

    Args:
        images: name and NIfTI file, such as a modality.
        maps: key of ``MAPS`` and NIfTI file.
        budget: characters that are left, changed in place.
    """
    volumes: list[dict[str, Any]] = []
    told: list[str] = []
    for key, path in maps:
        title, kind = MAPS[key]
        try:
            volume = _load(path)
            values = np.asanyarray(volume.dataobj)
            parts = [values] if values.ndim == 3 else list(np.moveaxis(values, 3, 0))
        except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
            told.append(f"{title} cannot be shown ({type(error).__name__}).")
            continue
        strong = np.abs(values[values != 0])
        if not strong.size or not np.isfinite(strong).all():
            continue  # nothing in it
        # single voxels stick out: full colour is what one in a hundred exceeds, the same for all images of the map
        most = float(np.quantile(strong, 0.99)) if kind != "labels" else float(strong.max())
        for number, part in enumerate(parts):
            top = float(np.abs(part).max())
            if top == 0:
                continue
            name = f"{title}, {images[number][0]}" if len(parts) > 1 and number < len(images) else title
            signed = kind == "signed"
            data = _packed(part, volume.affine, np.uint8 if kind == "labels" and top < 256 else np.int16)
            entry = {"name": name, "kind": kind, "most": most, "data": data, "image": number if len(parts) > 1 else 0}
            strongest = np.unravel_index(np.abs(part).argmax(), part.shape)
            place = nib.affines.apply_affine(volume.affine, strongest).tolist()
            _add(volumes, told, entry | {"signed": signed, "place": place, "top": top}, budget)
    for number, (name, path) in enumerate(images):
        try:
            volume = _load(path)
            for step in (1, 2):
                thinned = volume.slicer[::step, ::step, ::step] if step > 1 else volume
                data = _packed(_eight_bit(np.asanyarray(thinned.dataobj)), thinned.affine, np.uint8)
                if len(data) <= budget[0]:
                    break
        except (OSError, ValueError, nib.filebasedimages.ImageFileError) as error:
            told.append(f"{name} cannot be shown ({type(error).__name__}).")
            continue
        _add(volumes, told, {"name": name, "kind": "image", "data": data, "image": number}, budget)
    return volumes, told


def _load(path: Path) -> Any:
    volume = nib.load(path)
    if len(volume.shape) not in (3, 4):
        raise ValueError(f"{len(volume.shape)} axes")
    return volume.slicer[..., 0] if len(volume.shape) == 4 and volume.shape[3] == 1 else volume


def _eight_bit(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(np.asarray(values[..., 0] if values.ndim == 4 else values, np.float32))
    inside = values[values != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    low = min(float(low), 0.0) if values.min() < 0 else 0.0
    scaled = (values - low) / (high - low if high > low else 1.0)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def _packed(values: np.ndarray, affine: np.ndarray, kind: Any) -> str:
    """A NIfTI of these values and nothing else: no header of the source, which may name a patient, is kept."""
    volume = nib.Nifti1Image(np.ascontiguousarray(values, np.float32 if kind is np.int16 else kind), affine)
    volume.set_data_dtype(kind)  # int16 is scaled by nibabel
    return base64.b64encode(gzip.compress(volume.to_bytes(), 9, mtime=0)).decode()


def _add(volumes: list[dict[str, Any]], told: list[str], entry: dict[str, Any], budget: list[int]) -> None:
    if len(entry["data"]) > budget[0]:
        told.append(f"{entry['name']} is left out of the viewer: the page would be too large.")
        return
    budget[0] -= len(entry["data"])
    volumes.append(entry)


def viewer_script() -> str:
    """The script that shows the volumes of a page."""
    return (Path(__file__).parent / "templates" / "viewer.js").read_text(encoding="utf-8")


def modality_names(folder: Path, dataset_dir: Path | None, summary: Mapping[str, Any], count: int) -> list[str]:
    """Names of a patient's images: of its explanation, else of the datalist, else numbers."""
    told = list(dict.fromkeys(str(row["modality"]) for row in summary.get("images", []) if "modality" in row))
    if len(told) == count:
        return told
    place = dataset_dir
    if place is None and (folder / TRACE).is_file():
        given = read_json_object(folder / TRACE, "trace").get("places", {}).get("dataset_dir")
        place = Path(given) if given else None
    datalist = read_object(place / "datalist.json") if place else None
    names = (datalist or {}).get("modalities") or []
    if len(names) == count:
        return [str(name) for name in names]
    return [f"image {number}" for number in range(1, count + 1)]
