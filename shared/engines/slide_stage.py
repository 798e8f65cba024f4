"""Prediction of whole slides and large images: tiles straight from the file, one folder of results per slide."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from shared.bundle.model import load_model
from shared.bundle.record import MODEL_FILE, read_model, read_split
from shared.data.slides.folder import SlideFile, SlideLabel, find_slides, read_slide_labels
from shared.data.slides.grid import TileGrid, tile_grid
from shared.data.slides.reading import open_slide, slide_state
from shared.data.slides.tiles import SlideTiles
from shared.data.slides.tissue import find_tissue
from shared.engines.slide_features import tile_outputs, trained_size
from shared.errors import CheckpointError, DataError
from shared.handlers.model_check import ModelCheck
from shared.io import read_json_object, write_csv, write_json
from shared.networks.slide_mil import SlideMIL
from shared.reports.slides import (
    CONTRIBUTION,
    PROBABILITY,
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

    A model of slides (:class:`shared.networks.SlideMIL`) gives a slide's probability, and of each tile its attention
    and its contribution to the slide's log odds, which stands where else the tile's probability does.

    Args:
        slides: folder of slides or large images, searched whole, or one file.
        output_dir: where the results go.
        network: image to logits of two classes, or a :class:`shared.networks.SlideMIL`.
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
        threshold: probability from which a tile is called class 1; of contributions it is 0.
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
        self.measure = CONTRIBUTION if isinstance(network, SlideMIL) else PROBABILITY

    def run(self) -> None:
        """Predict all slides that are not finished; write the table of all."""
        if self.slides is None:
            raise DataError("give a folder of slides with --slides")
        if self.output_dir.resolve().is_relative_to(Path(self.slides).resolve()):
            raise DataError(
                f"output_dir ({self.output_dir}) lies in the folder of slides ({self.slides}), where its pictures "
                "would be taken for slides; give another"
            )
        self._check_choice()
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
                first = self.measure.scores[0]
                shown = found.get("problem") or f"{found['tiles']} tiles, {first} {found['scores'][first]:.3f}"
                logger.info("slide %d of %d, %s: %s; %s left", number, len(slides), slide.inner, shown, _minutes(left))
            rows.append(self._row(slide, found, labels.get(slide.inner, SlideLabel())))
        metrics = write_slide_table(self.output_dir, rows, scores=self.measure.scores, seed=self.seed)
        for score in self.measure.scores if metrics else ():
            auc = metrics[score]["AUC"]
            logger.info("AUC of slides, %s: %.3f [%.3f, %.3f]", score, *(auc[key] for key in ("value", "low", "high")))
        if bare := [row["slide"] for row in rows if row["problem"] == _NO_TISSUE]:
            logger.warning("%d of %d slides have no tissue: %s", len(bare), len(rows), ", ".join(bare))
        logger.info("%d slides: %s", len(rows), self.output_dir / "slides.csv")
        if damaged:
            raise DataError([*damaged, f"the other slides are finished ({self.output_dir / 'slides.csv'})"])

    def _trained_size(self) -> tuple[float, int]:
        """Micrometres per pixel and pixels of a side of the training's patches."""
        return trained_size(self.ckpt_dir, mpp=self.mpp, patch_size=self.patch_size, section="slide_stage#")

    def _check_choice(self) -> None:
        """A model of slides weighs the tiles that it was trained to weigh."""
        known = _flat(read_model(self.ckpt_dir).get("tiles") or {})
        now = _flat({key: getattr(self, key) for key in ("overlap", "min_tissue", "max_ink", "overview_mpp", "tissue")})
        if others := [f"--slide_stage#{key} {value}" for key, value in known.items() if value != now.get(key)]:
            raise CheckpointError(
                f"{self.ckpt_dir / MODEL_FILE}: the model of slides was trained on tiles that were chosen otherwise; "
                f"give {' '.join(others)}"
            )

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
        return {
            "version": VERSION,
            "file": slide_state(slide.path),
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
        values = {name: np.zeros(0) for name in self.measure.columns}
        if numbers:
            values, found["scores"] = self._predicted(self._outputs(slide, grid, numbers, title))
        else:
            found["problem"] = _NO_TISSUE
        rows = []
        for row, number in enumerate(numbers):
            x, y = grid.corner(number)
            measured = {name: float(value[row]) for name, value in values.items()}
            rows.append({"x": x, "y": y, "tissue": round(float(tissue.shares[number]), 4), **measured})
        write_csv(part / "tiles.csv", rows, ("x", "y", "tissue", *self.measure.columns))
        shown_values = values[self.measure.name]
        heat = heat_map(grid, numbers, shown_values, tissue.mask.shape, tissue.downsample)
        write_heat_map(part / "heatmap.ome.tiff", heat, overview_mpp, f"{slide.name}: {self.classes[1]}")
        shown_at: dict[str, Any] = {"threshold": self._limit, "origin": origin, "measure": self.measure}
        write_features(part / "tiles.geojson", tile_features(grid, numbers, values, self.classes, **shown_at))
        regions = region_features(grid, numbers, values, self.classes, slide_mpp=slide.mpp, **shown_at)
        write_features(part / "regions.geojson", regions)
        shown = "no tissue" if not numbers else ", ".join(f"{k} {v:.3f}" for k, v in found["scores"].items())
        text, what = f"{slide.name}: {shown}", f"{self.measure.words} {self.classes[1]}"
        where = part / "slide.png"
        slide_picture(tissue.overview, tissue.mask, heat, where, title=text, what=what, signed=self.measure.signed)
        if numbers and self.gallery:
            self._write_gallery(slide, grid, numbers, shown_values, part / "gallery.png")
        return found

    @property
    def _limit(self) -> float:
        return 0.0 if self.measure.signed else self.threshold

    def _outputs(self, slide: SlideFile, grid: TileGrid, numbers: list[int], title: str) -> Tensor:
        """Probability of class 1 of each tile, or its features."""

        def compute(image: Tensor) -> Tensor:
            batch, _ = self.prepare_batch({"image": image}, self.device, True)
            if isinstance(self.network, SlideMIL):
                return self.inferer(batch, self.network.encoder).half()  # as in training
            return self.inferer(batch, self.network).float().softmax(dim=1)[:, 1]

        tiles = SlideTiles(slide.path, grid, numbers, cache_size=self.cache_size)
        return tile_outputs(tiles, compute, batch_size=self.batch_size, num_workers=self.num_workers, title=title)

    @torch.inference_mode()
    def _predicted(self, outputs: Tensor) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What is told of each tile, and of the slide."""
        if not isinstance(self.network, SlideMIL):
            probability = outputs.double().numpy()
            return {"probability": probability}, slide_scores(probability, top=self.top, threshold=self.threshold)
        found = self.network.details(outputs[None].to(self.device))
        contribution = (found.contributions[0, :, 1] - found.contributions[0, :, 0]).cpu().numpy()
        bias = float(self.network.head.bias[1].double() - self.network.head.bias[0].double())
        logit = float(found.logits[0, 1] - found.logits[0, 0])
        tiles = {"attention": found.attention[0].double().cpu().numpy(), "contribution": contribution}
        return tiles, {"probability": float(expit(logit)), "logit": logit, "bias": bias}

    def _write_gallery(
        self, slide: SlideFile, grid: TileGrid, numbers: Sequence[int], values: np.ndarray, path: Path
    ) -> None:
        """The highest and the lowest tiles, none in both rows."""
        from shared.visualize import tile_gallery

        order = np.argsort(-values, kind="stable")
        count = min(self.gallery, -(-len(order) // 2))
        tiles = SlideTiles(slide.path, grid, numbers)
        rows = [
            [(tiles.pixels(numbers[row]), float(values[row]), grid.corner(numbers[row])) for row in chosen]
            for chosen in (order[:count], order[count:][::-1][:count])
        ]
        tiles.close()
        names = [f"{n} {self.measure.words} {self.classes[1]}" for n in ("highest", "lowest")]
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
            **{score: scores.get(score, "") for score in self.measure.scores},
            "problem": found.get("problem", ""),
        }


_NO_TISSUE = "no tissue"


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    below = {key: _flat(value) if isinstance(value, Mapping) else {"": value} for key, value in section.items()}
    return {f"{key}#{name}".rstrip("#"): value for key, found in below.items() for name, value in found.items()}


def _minutes(seconds: float) -> str:
    return f"about {round(seconds / 60)} min" if seconds >= 90 else f"about {round(seconds)} s"
