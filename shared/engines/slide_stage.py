"""Prediction of whole slides and large images: tiles straight from the file, one folder of results per slide."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from shared.bundle.model import load_model
from shared.bundle.record import read_model, read_split
from shared.bundle.settings import refuse_others
from shared.data.slides.folder import SlideFile, SlideLabel, check_mpp, find_slides, read_slide_labels
from shared.data.slides.grid import TileGrid, tile_grid
from shared.data.slides.reading import open_slide
from shared.data.slides.tiles import SlideTiles
from shared.data.slides.tissue import find_tissue
from shared.errors import CheckpointError, DataError
from shared.handlers.model_check import ModelCheck
from shared.io import read_json_object, write_csv, write_json
from shared.reports.slides import (
    SCORES,
    heat_map,
    region_features,
    slide_scores,
    tile_features,
    write_features,
    write_heat_map,
    write_slide_table,
)

logger = logging.getLogger(__name__)

VERSION = 1  # of what a slide's folder holds


class SlideStage:
    """Predict every tile of tissue of every slide of a folder, and each slide from its tiles.

    A tile has the physical size of the training's patches: their pixels (``patch_size`` of ``model.json``) at their
    micrometres per pixel (``mpp`` of ``model.json``). Per slide ``slides/<name>/`` holds ``tiles.csv``, ``slide.json``,
    ``heatmap.ome.tiff``, ``slide.png``, ``gallery.png``, ``tiles.geojson`` and ``regions.geojson``; ``slides.csv`` has
    a row per slide. A finished slide is kept by a later run of the same model and settings; an unfinished one leaves
    nothing.

    Args:
        slides: folder of slides or large images, searched whole, or one file.
        output_dir: where the results go.
        network: image to logits of two classes.
        ckpt_dir: folder of ``model.pt`` and ``model.json``.
        prepare_batch: as in the evaluation of patches.
        inferer: as in the evaluation of patches.
        device: where the network runs.
        classes: names of the classes.
        cache_size: side to which the patches of the training were resized when they were read; None: none.
        used: settings in use, compared with ``model.json``.
        mpp: micrometres per pixel at which the model was trained, where ``model.json`` does not say.
        patch_size: pixels of a training patch's side, where ``model.json`` does not say.
        slide_mpp: micrometres per pixel of all slides, whatever they say; None: as each says.
        labels: CSV with the columns ``slide``, ``label`` (class name, 0 or 1) and, if known, ``patient``.
        overlap: largest share of a tile that its neighbour covers.
        min_tissue: least share of a tile that is tissue.
        max_ink: largest share of a tile that is ink of a pen.
        overview_mpp: micrometres per pixel at which tissue is looked for, and of the heat map.
        tissue: thresholds of :func:`shared.data.slides.tissue.tissue_mask`.
        batch_size: tiles per step.
        num_workers: processes that read tiles, each with the slide opened anew; 0: none.
        threshold: probability from which a tile is called class 1.
        top: how many of a slide's highest tiles the score ``top`` averages.
        gallery: tiles in each row of ``gallery.png``; 0: none.
        seed: of the draws of the intervals.

    Raises:
        CheckpointError: settings that are not the model's.
        DataError: model or slides of unknown size of a pixel; slides that cannot be used, all at once; at the end,
            those that turned out to be damaged.
    """

    def __init__(
        self,
        slides: str | os.PathLike | None,
        output_dir: str | os.PathLike,
        network: nn.Module,
        ckpt_dir: str | os.PathLike,
        *,
        prepare_batch: Callable[..., Any],
        inferer: Callable[..., Any],
        device: str | torch.device = "cpu",
        classes: Sequence[str] = ("class 0", "class 1"),
        cache_size: int | None = None,
        used: Mapping[str, Any] | None = None,
        mpp: float | None = None,
        patch_size: int | None = None,
        slide_mpp: float | None = None,
        labels: str | os.PathLike | None = None,
        overlap: float = 0.0,
        min_tissue: float = 0.25,
        max_ink: float = 0.1,
        overview_mpp: float = 8.0,
        tissue: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        threshold: float = 0.5,
        top: int = 10,
        gallery: int = 8,
        seed: int = 0,
    ):
        if not 0 <= overlap <= 0.9 or not all(0 <= share <= 1 for share in (min_tissue, max_ink, threshold)):
            raise DataError(
                f"overlap must lie in [0, 0.9], min_tissue, max_ink and threshold in [0, 1], got {overlap}, "
                f"{min_tissue}, {max_ink} and {threshold}"
            )
        if min(top, batch_size) < 1 or gallery < 0 or num_workers < 0 or overview_mpp <= 0:
            raise DataError(
                "top and batch_size must be at least 1, gallery and num_workers at least 0, overview_mpp above 0, got "
                f"{top}, {batch_size}, {gallery}, {num_workers} and {overview_mpp}"
            )
        self.slides, self.output_dir, self.network = slides, Path(output_dir), network
        self.ckpt_dir, self.prepare_batch, self.inferer = Path(ckpt_dir), prepare_batch, inferer
        self.device, self.classes, self.cache_size = torch.device(device), list(classes), cache_size
        self.used, self.mpp, self.patch_size, self.slide_mpp = dict(used or {}), mpp, patch_size, slide_mpp
        self.labels, self.overlap, self.min_tissue, self.max_ink = labels, overlap, min_tissue, max_ink
        self.overview_mpp, self.tissue = overview_mpp, dict(tissue or {})
        self.batch_size, self.num_workers, self.threshold = batch_size, num_workers, threshold
        self.top, self.gallery, self.seed = top, gallery, seed

    def run(self) -> None:
        """Predict all slides that are not finished; write the table of all."""
        if self.slides is None:
            raise DataError("give a folder of slides with --slides")
        if self.output_dir.resolve().is_relative_to(Path(self.slides).resolve()):
            raise DataError(
                f"output_dir ({self.output_dir}) lies in the folder of slides ({self.slides}), where its pictures "
                "would be taken for slides; give another"
            )
        ModelCheck(self.ckpt_dir, used=self.used).run()
        mpp, size = self._trained_size()
        slides = find_slides(Path(self.slides), slide_mpp=self.slide_mpp, mpp=mpp, smallest_um=size * mpp)
        labels = {} if self.labels is None else read_slide_labels(Path(self.labels), slides, self.classes)
        self._tell_of_trained(slides, labels)
        load_model(self.ckpt_dir / "model.pt", self.network)
        self.network.to(self.device).eval()
        rows, damaged, start, computed = [], [], time.monotonic(), 0
        for number, slide in enumerate(slides, 1):
            found = self._finished(slide, mpp, size)
            if found is not None:
                logger.info("slide %d of %d, %s: finished before, kept", number, len(slides), slide.inner)
            else:
                try:
                    found = self._predict(slide, mpp, size, f"{number}/{len(slides)} {slide.name}")
                except DataError as error:
                    logger.error("slide %d of %d, %s: %s", number, len(slides), slide.inner, error)
                    damaged += error.problems
                    shutil.rmtree(self._folder(slide), ignore_errors=True)  # what other settings made of it
                    # the table names the slide as elsewhere, not where it lies
                    found = {"problem": "damaged: " + " ".join(error.problems).replace(str(slide.path), slide.inner)}
                computed += 1
                left = (time.monotonic() - start) / computed * (len(slides) - number)
                shown = found.get("problem") or f"{found['tiles']} tiles, mean {found['scores']['mean']:.3f}"
                logger.info("slide %d of %d, %s: %s; %s left", number, len(slides), slide.inner, shown, _minutes(left))
            rows.append(self._row(slide, found, labels.get(slide.inner, SlideLabel())))
        metrics = write_slide_table(self.output_dir, rows, seed=self.seed)
        for score in SCORES if metrics else ():
            auc = metrics[score]["AUC"]
            logger.info("AUC of slides, %s: %.3f [%.3f, %.3f]", score, *(auc[key] for key in ("value", "low", "high")))
        if bare := [row["slide"] for row in rows if row["problem"] == _NO_TISSUE]:
            logger.warning("%d of %d slides have no tissue: %s", len(bare), len(rows), ", ".join(bare))
        logger.info("%d slides: %s", len(rows), self.output_dir / "slides.csv")
        if damaged:
            raise DataError([*damaged, f"the other slides are finished ({self.output_dir / 'slides.csv'})"])

    def _trained_size(self) -> tuple[float, int]:
        """Micrometres per pixel and pixels of a side of the training's patches."""
        path, model = self.ckpt_dir / "model.json", read_model(self.ckpt_dir)
        given = {key: value for key in ("mpp", "patch_size") if (value := getattr(self, key)) is not None}
        known = {key: model[key] for key in ("mpp", "patch_size") if model.get(key) is not None}
        refuse_others(path, known, given)
        known = {**given, **known}
        if missing := [key for key in ("mpp", "patch_size") if key not in known]:
            words = {"mpp": "micrometres per pixel", "patch_size": "pixels of a side"}
            raise CheckpointError(
                f"{path} does not say of which size the training's patches were: give "
                + " and ".join(f"--{'slide_stage#' * (key != 'mpp')}{key} ({words[key]})" for key in missing)
                + ", or prepare the patches with their --mpp and train again"
            )
        return check_mpp(known["mpp"], "--mpp"), int(known["patch_size"])

    def _tell_of_trained(self, slides: Sequence[SlideFile], labels: Mapping[str, SlideLabel]) -> None:
        """Tiles are none of the training's files, so that patients can be compared by their names alone."""
        known = {name for stage in read_split(self.ckpt_dir).get("images", {}).values() for name in stage}
        names = {slide.name for slide in slides} | {label.patient for label in labels.values() if label.patient}
        if again := sorted(known & names):
            logger.warning(
                "The model was trained on patients or slides of these names: %s. Figures of them say nothing about new "
                "patients.",
                ", ".join(again[:5]),
            )

    @cached_property
    def _weights(self) -> str:
        return str(read_model(self.ckpt_dir).get("weights"))

    def _settings(self, slide: SlideFile, mpp: float, size: int) -> dict[str, Any]:
        """What a finished slide was predicted with."""
        stat = slide.path.stat()
        return {
            "version": VERSION,
            "file": {"bytes": stat.st_size, "changed_ns": stat.st_mtime_ns},
            "weights": self._weights,
            "views": getattr(self.inferer, "views", 1),
            "average": getattr(self.inferer, "average", "logits"),
            "cache_size": self.cache_size,
            "classes": self.classes,
            "bf16": bool(getattr(self.inferer, "bf16", False)),
            "mpp": mpp,
            "patch_size": size,
            "slide_mpp": slide.mpp,
            "overlap": self.overlap,
            "min_tissue": self.min_tissue,
            "max_ink": self.max_ink,
            "overview_mpp": self.overview_mpp,
            "tissue": self.tissue,
            "threshold": self.threshold,
            "top": self.top,
            "gallery": self.gallery,
        }

    def _folder(self, slide: SlideFile) -> Path:
        return self.output_dir / "slides" / slide.name

    def _finished(self, slide: SlideFile, mpp: float, size: int) -> dict[str, Any] | None:
        path = self._folder(slide) / "slide.json"
        if not path.is_file():
            return None
        found = read_json_object(path, "slide")
        return found if found.get("settings") == self._settings(slide, mpp, size) else None

    def _predict(self, slide: SlideFile, mpp: float, size: int, title: str) -> dict[str, Any]:
        """Predict a slide into a folder that takes its name when all is there."""
        folder = self._folder(slide)
        part = folder.with_name(f".{slide.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        part.mkdir(parents=True)
        try:
            found = self._write(slide, mpp, size, part, title)
            write_json(part / "slide.json", found)
            if folder.exists():
                shutil.rmtree(folder)
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return found

    def _write(self, slide: SlideFile, mpp: float, size: int, part: Path, title: str) -> dict[str, Any]:
        from shared.visualize import slide_picture

        with open_slide(slide.path) as reader:
            grid = tile_grid(reader, size=size, mpp=mpp, slide_mpp=slide.mpp, overlap=self.overlap)
            shares = {"min_tissue": self.min_tissue, "max_ink": self.max_ink}
            tissue = find_tissue(reader, grid, slide.mpp, overview_mpp=self.overview_mpp, **shares, **self.tissue)
            found: dict[str, Any] = {
                "slide": slide.inner,
                "width": reader.width,
                "height": reader.height,
                "read_by": reader.kind,
            }
            origin = reader.origin
        numbers, overview_mpp = np.flatnonzero(tissue.taken).tolist(), tissue.downsample * slide.mpp
        found |= {"tile_pixels": grid.side, "level": grid.level, "tissue_threshold": round(tissue.threshold, 4)}
        found |= {"tissue_mm2": round(float(tissue.mask.sum()) * (overview_mpp / 1000) ** 2, 6)}
        found |= {"tiles": len(numbers), "settings": self._settings(slide, mpp, size)}
        probability = np.zeros(0)
        if numbers:
            probability = self._probabilities(slide, grid, numbers, title)
            found["scores"] = slide_scores(probability, top=self.top, threshold=self.threshold)
        else:
            found["problem"] = _NO_TISSUE
        rows = []
        for number, value in zip(numbers, probability, strict=True):
            x, y = grid.corner(number)
            rows.append({"x": x, "y": y, "tissue": round(float(tissue.shares[number]), 4), "probability": float(value)})
        write_csv(part / "tiles.csv", rows, ("x", "y", "tissue", "probability"))
        heat = heat_map(grid, numbers, probability, tissue.mask.shape, tissue.downsample)
        write_heat_map(part / "heatmap.ome.tiff", heat, overview_mpp, f"{slide.name}: {self.classes[1]}")
        given = (grid, numbers, probability, self.classes)
        shown_at: dict[str, Any] = {"threshold": self.threshold, "origin": origin}
        write_features(part / "tiles.geojson", tile_features(*given, **shown_at))
        regions = region_features(*given, slide_mpp=slide.mpp, **shown_at)
        write_features(part / "regions.geojson", regions)
        shown = "no tissue" if not numbers else ", ".join(f"{k} {v:.3f}" for k, v in found["scores"].items())
        text = f"{slide.name}: {shown}"
        slide_picture(tissue.overview, tissue.mask, heat, part / "slide.png", title=text, class_name=self.classes[1])
        if numbers and self.gallery:
            self._write_gallery(slide, grid, numbers, probability, part / "gallery.png")
        return found

    @torch.inference_mode()
    def _probabilities(self, slide: SlideFile, grid: TileGrid, numbers: list[int], title: str) -> np.ndarray:
        """Probability of class 1 of each tile, in batches read by the workers."""
        tiles = SlideTiles(slide.path, grid, numbers, cache_size=self.cache_size)
        loader: DataLoader = DataLoader(tiles, self.batch_size, num_workers=self.num_workers, collate_fn=tiles.collate)
        parts = []
        try:
            # shows the time left on a terminal, and nothing in a log
            with tqdm(total=len(numbers), desc=title, unit="tile", disable=None, file=sys.stderr) as bar:
                for image in loader:
                    if isinstance(image, DataError):
                        raise image
                    batch, _ = self.prepare_batch({"image": image}, self.device, True)
                    parts.append(self.inferer(batch, self.network).float().softmax(dim=1)[:, 1].cpu())
                    bar.update(len(image))
        finally:
            tiles.close()
        return torch.cat(parts).double().numpy()

    def _write_gallery(
        self, slide: SlideFile, grid: TileGrid, numbers: Sequence[int], probability: np.ndarray, path: Path
    ) -> None:
        """The highest and the lowest tiles, none in both rows."""
        from shared.visualize import tile_gallery

        order = np.argsort(-probability, kind="stable")
        count = min(self.gallery, -(-len(order) // 2))
        tiles = SlideTiles(slide.path, grid, numbers)
        rows = [
            [(tiles.pixels(numbers[row]), float(probability[row]), grid.corner(numbers[row])) for row in chosen]
            for chosen in (order[:count], order[count:][::-1][:count])
        ]
        tiles.close()
        names = [f"{n} probability of {self.classes[1]}" for n in ("highest", "lowest")]
        kept = [row for row in rows if row]
        tile_gallery(kept, path, names=names, title=f"{slide.name}: most telling tiles")

    def _row(self, slide: SlideFile, found: Mapping[str, Any], label: SlideLabel) -> dict[str, Any]:
        scores = found.get("scores") or {}
        return {
            "slide": slide.inner,
            "name": slide.name,
            "patient": label.patient or slide.name,
            "label": "" if label.label is None else label.label,
            "tiles": found.get("tiles", ""),
            "tissue_mm2": found.get("tissue_mm2", ""),
            **{score: scores.get(score, "") for score in SCORES},
            "problem": found.get("problem", ""),
        }


_NO_TISSUE = "no tissue"


def _minutes(seconds: float) -> str:
    return f"about {round(seconds / 60)} min" if seconds >= 90 else f"about {round(seconds)} s"
