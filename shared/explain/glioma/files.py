"""The files of a glioma's explanation: NIfTI on the MNI grid and the patient's own, PLY, CSV, JSON and pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.data.brain.atlas import TractAtlas
from shared.explain.glioma.explainer import GliomaExplanation
from shared.explain.glioma.volumes import BrainVolumes, uncrop
from shared.io import write_csv, write_json, write_text
from shared.metrics.classification import to_numpy

# the surface has no map of its own answer, only its attention
ENCODER_NAMES = {"image": "the image", "brain": "the brain network"}


def write_ply(
    path: str | os.PathLike, points: np.ndarray, values: Mapping[str, np.ndarray], colours: np.ndarray
) -> None:
    """A point cloud as ASCII PLY: position, colour, and a float property for each value.

    Args:
        path: the file.
        points: ``[P, 3]``, mm.
        values: by name of the property, ``[P]`` each.
        colours: ``[P, 3]`` uint8.
    """
    header = ["ply", "format ascii 1.0", "comment mm, MNI152 (RAS)", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    header += [f"property float {name}" for name in values] + ["end_header"]
    lines = [
        " ".join([*(f"{x:.4f}" for x in point), *map(str, colour), *(f"{x:.6g}" for x in value)])
        for point, colour, value in zip(points, colours.tolist(), np.stack([*values.values()], axis=1), strict=True)
    ]
    write_text(path, "\n".join(header + lines) + "\n")


def tract_rows(atlas: TractAtlas, found: GliomaExplanation, crossing: np.ndarray) -> list[dict[str, Any]]:
    """All tracts, the kept ones first, by their mask."""
    mask, kept = to_numpy(found.edges.mask), to_numpy(found.edges.kept)
    return [
        {
            "tract": int(edge),
            "region_a": atlas.names[atlas.pairs[edge, 0]],
            "region_b": atlas.names[atlas.pairs[edge, 1]],
            "mask": round(float(mask[edge]), 6),
            "kept": int(kept[edge]),
            "crosses_tumour": int(crossing[edge]),
            "edge_factor": "" if found.edge_factor is None else round(float(found.edge_factor[edge]), 6),
            "streamlines": int(atlas.counts[edge]),
        }
        for edge in np.argsort(-mask, kind="stable")
    ]


def region_rows(atlas: TractAtlas, attention: np.ndarray) -> list[dict[str, Any]]:
    """All regions by the attention paid to them."""
    return [
        {"region": int(r), "name": atlas.names[r], "attention": round(float(attention[r]), 8), "rank": rank}
        for rank, r in enumerate(np.argsort(-attention, kind="stable"), 1)
    ]


def crossing_tracts(case: Mapping[str, Any], count: int) -> np.ndarray:
    """Which tracts cross the tumour's surface, ``[E]`` bool."""
    index = to_numpy(case["incidence"]) if case.get("incidence") is not None else np.zeros(0, int)
    return np.isin(np.arange(count), index[index >= 0])


def write_explanation(
    case: Mapping[str, Any],
    found: GliomaExplanation,
    volumes: BrainVolumes,
    folder: str | os.PathLike,
    atlas: TractAtlas | None = None,
    *,
    sequences: Sequence[str] = (),
    class_names: Sequence[str] = ("negative", "positive"),
    planted_tracts: Sequence[int] = (),
) -> None:
    """Write everything about a patient, as ``<folder>/<patient>_...``.

    Args:
        case: with ``crop`` (:class:`shared.transforms.TumourCropd`), ``points``, ``centroid`` and ``incidence``.
        found: its explanation.
        volumes: the whole brain.
        folder: where to.
        atlas: regions and tracts; needed for the brain network's part.
        sequences: names of the image's channels.
        class_names: negative and positive class.
        planted_tracts: phantoms only: infiltrated tracts.
    """
    stem = Path(folder) / found.patient
    write_json(f"{stem}.json", summary(found, class_names))
    if found.cam is not None:
        _write_cam(stem, case, found, volumes, sequences, title_of(case, found, class_names, "image"))
    if found.point_attention is not None:
        _write_surface(stem, case, found, class_names)
    if atlas is not None:
        _write_network(stem, case, found, volumes, atlas, planted_tracts, class_names)


def title_of(
    case: Mapping[str, Any], found: GliomaExplanation, class_names: Sequence[str], encoder: str | None = None
) -> str:
    """What stands over a patient's pictures: the whole answer and, over maps of an encoder, the one they explain."""
    label = case.get("label")
    known = "" if label is None else f"; label: {class_names[int(label)]}"
    title = f"{found.patient}: probability of {class_names[1]} {found.probability:.2f}{known}"
    if encoder is None:
        return title
    if found.own is None:
        return f"{title}; explained: {class_names[found.predicted]}"
    answer, own = class_names[found.explained(encoder)], f"{class_names[1]} {found.explained_probability(encoder):.2f}"
    return f"{title}\nexplained: {ENCODER_NAMES[encoder]}'s own answer, {answer} (probability of {own})"


def summary(found: GliomaExplanation, class_names: Sequence[str]) -> dict[str, Any]:
    """The explanation in plain numbers."""
    content: dict[str, Any] = {
        "patient": found.patient,
        "logit": found.logit,
        "probability": found.probability,
        "positive_class": class_names[1],
        "answer": class_names[found.predicted],
    }
    if found.own is None:
        content["explained"] = "the whole answer"
    else:
        content["explained"] = {
            name: {"class": class_names[found.explained(name)], "probability": found.explained_probability(name)}
            for name in found.own
        }
    if found.cam is not None:
        content["cam"] = {"grid": found.cam_grid, "all_zero": not bool(found.cam.any())}
    if found.edges is not None:
        content["tracts"] = {
            "kept": int(found.edges.kept.sum()),
            "of": len(found.edges.kept),
            "probability_of_explained_class": found.edges.probability,
        }
    return content


def _write_cam(
    stem: Path,
    case: Mapping[str, Any],
    found: GliomaExplanation,
    volumes: BrainVolumes,
    sequences: Sequence[str],
    title: str,
) -> None:
    from shared.visualize import cam_planes

    cam = uncrop(found.cam, case["crop"]["start"], volumes.mask.shape)
    volumes.write(f"{stem}_cam.nii.gz", cam, f"Grad-CAM, {found.patient}")
    names = [sequences[i] if i < len(sequences) else f"sequence {i}" for i in range(len(volumes.images))]
    images = {
        name: image for name, image in zip(names, volumes.images, strict=True) if image.any()
    }  # but those lacking
    planted = None
    if volumes.planted is not None:
        planted = np.where(volumes.mask, volumes.planted, 0)
    cam_planes(images, cam, volumes.mask, f"{stem}_cam.png", title=title, planted=planted)
    if found.contribution is not None:
        signed = uncrop(found.contribution, case["crop"]["start"], volumes.mask.shape)
        volumes.write(f"{stem}_contribution.nii.gz", signed, f"integrated gradients, {found.patient}")
        speaking = signed[signed > 0]
        # single voxels stick out: the picture's 1 is what one in a hundred exceeds
        top = float(np.quantile(speaking, 0.99)) if len(speaking) else 1.0
        given = {"title": title, "planted": planted, "name": "contribution"}
        cam_planes(images, (signed / top).clip(0, 1), volumes.mask, f"{stem}_contribution.png", **given)


def _write_surface(stem: Path, case: Mapping[str, Any], found: GliomaExplanation, class_names: Sequence[str]) -> None:
    from shared.visualize import surface_picture, vertex_colours

    points = to_numpy(case["points"]).astype(np.float64) + to_numpy(case["centroid"])
    values = {"attention": found.point_attention}
    if found.point_cam is not None:
        values["grad_cam"] = found.point_cam
    for name, value in values.items():
        write_ply(f"{stem}_points_{name}.ply", points, values, vertex_colours(value))
    of_image = class_names[found.explained("image")] if found.point_cam is not None else ""
    names = {"attention": "attention (1 = average)", "grad_cam": f"the image's Grad-CAM of {of_image}"}
    title = title_of(case, found, class_names)
    surface_picture(points, {names[key]: v for key, v in values.items()}, f"{stem}_surface.png", title=title)


def _write_network(
    stem: Path,
    case: Mapping[str, Any],
    found: GliomaExplanation,
    volumes: BrainVolumes,
    atlas: TractAtlas,
    planted_tracts: Sequence[int],
    class_names: Sequence[str],
) -> None:
    from shared.visualize import connectome_picture, glass_brain, region_bars

    if found.node_attention is not None:
        write_csv(f"{stem}_regions.csv", region_rows(atlas, found.node_attention))
        title = title_of(case, found, class_names)
        region_bars(atlas.names, found.node_attention, f"{stem}_regions.png", title=title)
    if found.edges is None:
        return
    title = title_of(case, found, class_names, "brain")
    values, kept = to_numpy(found.edges.mask), to_numpy(found.edges.kept)
    crossing = crossing_tracts(case, atlas.num_tracts)
    write_csv(f"{stem}_tracts.csv", tract_rows(atlas, found, crossing))
    volume = atlas.volume(np.where(kept, values, 0.0))
    volumes.write(f"{stem}_tracts.nii.gz", volume, f"tracts of GNNExplainer, {found.patient}")
    image = next(image for image in volumes.images[::-1] if image.any())
    glass_brain(volume, image > 0, volumes.mask, f"{stem}_tracts.png", image=image, title=title)
    connectome_picture(
        atlas, values, kept, f"{stem}_connectome.png", crossing=crossing, planted=planted_tracts, title=title
    )
