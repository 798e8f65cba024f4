"""The additive predictor's stage: biomarkers of every place, and their weights; and stage I again for its members."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from torch import Tensor, nn
from tqdm import tqdm

from shared.bundle.record import building_config
from shared.checkpoint import load_checkpoint, load_weights, part_of, weights_below
from shared.data.cases import CaseDataset
from shared.data.splits import groups_of
from shared.engines.biomarker_stage import PlainStage
from shared.io import write_csv, write_json
from shared.networks.ircl.additive import biomarker_names, receptive_field
from shared.transforms.roi_slices import pixel_area, radiological

logger = logging.getLogger(__name__)

MEMBER_SEEDS = 1000  # between two members: no experiment over consecutive seeds meets one of them again


class Members:
    """Stage I again, with other seeds, for the further members of an additive predictor.

    Each is trained by the configuration that is being built, in folders ``member_<i>`` of ``ckpt_dir`` and
    ``output_dir``, and skipped or gone on with like the stage itself.

    Args:
        count: members in all; the first is the stage's own run.
        section: the stage's.
        common: what all stages share.
        checkpoint: of the first member, which the stage itself writes.
        cases: the training cases, read once for all.
    """

    def __init__(
        self, count: int, section: str, common: Mapping[str, Any], *, checkpoint: str | os.PathLike, cases: CaseDataset
    ):
        if count < 1:
            raise ValueError(f"members counts the first one, too: at least 1, got {count}.")
        self.count, self.section, self.checkpoint, self.cases = count, section, Path(checkpoint), cases
        self.seed, self.output_dir = common["seed"], Path(common["output_dir"])
        self.config = dict(building_config())

    @property
    def checkpoints(self) -> list[Path]:
        """The stage's checkpoint of every member."""
        first = self.checkpoint
        return [first, *(first.parent / f"member_{i}" / first.name for i in range(1, self.count))]

    def run(self) -> None:
        """Train the members after the first."""
        for i in range(1, self.count):
            logger.info("Member %d of %d.", i + 1, self.count)
            config = deepcopy({key: value for key, value in self.config.items() if key != "train"})
            config["train"] = {**self.config["train"], "dataset": self.cases}
            config |= {"seed": None if self.seed is None else self.seed + MEMBER_SEEDS * i}
            config["ckpt_dir"] = str(self.checkpoints[i].parent)
            config["output_dir"] = str(self.output_dir / f"member_{i}")
            if config["seed"] is not None:
                set_determinism(config["seed"])
            ConfigParser(config).get_parsed_content(f"{self.section}#trainer").run()
        if self.seed is not None:
            set_determinism(self.seed)


class AdditiveStage(PlainStage):
    """Fit ``network.additive``: K-means of the features of every place of the tumour, then one weight a biomarker.

    Writes ``additive_biomarkers.csv``, ``.json`` and a picture of each modality: of each biomarker the area by class,
    the share of patients, the effect with its interval, and its most typical places.

    Args:
        network: the :class:`shared.networks.IRCLClassifier` whose ``additive`` is filled; with None there, the stage
            does nothing.
        common: what all stages share, see :class:`shared.engines.StageTrainer`.
        cases: the original training cases.
        members: the trained encoders.
        checkpoint: what this stage writes: the additive predictor with its encoders.
        modalities: their names.
        class_names: names of the classes.
        penalty: ``"l1"`` or ``"l2"``, see :func:`shared.biomarkers.fit_additive`.
        scaling: ``"own"`` or ``"common"``, see there.
        covariate_penalty: of covariates in parts of the biomarkers', see there.
        strength: C of the regression; None: by inner cross-validation.
        max_places: of a modality, drawn for the K-means; all of them are assigned.
        bootstrap: draws of patients for the effects' intervals, of the regression alone.
        starts: of the K-means.

    Raises:
        CheckpointError: stage I has not been run, or was run with other dimensions, settings or data.
        DataError: K is larger than the number of different places; labels that are not of two classes.
    """

    def __init__(
        self,
        network: nn.Module,
        common: Mapping[str, Any],
        cases: CaseDataset,
        members: Members,
        *,
        checkpoint: str | os.PathLike,
        modalities: Sequence[str] | None = None,
        class_names: Sequence[str] = ("negative", "positive"),
        penalty: str = "l2",
        scaling: str = "own",
        covariate_penalty: float = 1.0,
        strength: float | None = None,
        max_places: int = 30_000,
        bootstrap: int = 200,
        starts: int = 10,
    ):
        super().__init__(common, checkpoint)
        self.network, self.cases, self.members = network, cases, members
        self.modalities, self.class_names = modalities, list(class_names)
        self.regression: dict[str, Any] = {"penalty": penalty, "scaling": scaling}
        self.regression |= {"covariate_penalty": covariate_penalty, "seed": self.seed or 0}
        self.strength, self.max_places, self.bootstrap, self.starts = strength, max_places, bootstrap, starts

    def run(self) -> None:
        """Fit, describe and save; nothing where the network has no additive predictor."""
        if self.network.additive is not None:
            super().run()

    def content(self) -> dict[str, Any]:
        """Fit the predictor; what its checkpoint holds."""
        from shared.biomarkers import calibrate_members, fit_additive

        predictor = self.network.additive.to(self.device)
        for encoder, path in zip(predictor.encoders, self.members.checkpoints, strict=True):
            state = load_checkpoint(path, hint="Run stage I first: --run_id pretrain_run.")
            state = part_of(state, "network", path)
            load_weights(encoder, weights_below(state, "encoder."), path)
        for member in range(len(self.members.checkpoints)):
            self._cluster(member)
        amounts = torch.cat([predictor.measured(part) for part in self._images("Measuring biomarkers")]).cpu()
        labels, covariates = self.cases.stack("label"), self.cases.stack("covariates").double()
        group_of = groups_of(self.cases)
        groups = group_of and [group_of[str(case["patient"])] for case in self.cases]
        fits = [
            fit_additive(
                amounts[:, member].flatten(1),
                labels,
                covariates,
                strength=self.strength,
                groups=groups,
                **self.regression,
            )
            for member in range(amounts.shape[1])
        ]
        fits = calibrate_members(fits, labels)
        self._fill(predictor, fits)
        self._describe(amounts, labels, fits)
        return {"additive": predictor.state_dict()}

    def _images(self, what: str, batch_size: int = 32) -> Iterator[Tensor]:
        for part in tqdm(self.cases.stack("image").split(batch_size), desc=what, leave=False):
            yield part.to(self.device)

    @torch.no_grad()
    def _cluster(self, member: int) -> None:
        """K-means of one member's places, of the training patients alone; fills ``biomarkers``."""
        from shared.biomarkers import fit_biomarkers

        predictor = self.network.additive
        generator = torch.Generator().manual_seed(self.seed or 0)
        count = predictor.num_images // predictor.num_modalities
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for images in self._images("Features of all places"):
            features = predictor.features(images, member).movedim(2, -1).cpu()
            covered = predictor.coverage(images, features.shape[2]).cpu()
            total = len(self.cases) * count * features.shape[2] * features.shape[3]
            drawn = torch.rand(covered.shape, generator=generator) < self.max_places / total
            chosen = (covered > 0) & drawn
            modality = (torch.arange(predictor.num_images) // count)[:, None, None].expand(covered.shape)
            kept.append((features[chosen], covered[chosen], modality[chosen]))
        features, covered, modality = (torch.cat(parts) for parts in zip(*kept, strict=True))
        found = fit_biomarkers(
            features,
            predictor.num_biomarkers,
            modality=modality,
            per_modality=True,
            weight=covered,
            seed=self.seed or 0,
            starts=self.starts,
        )
        centres = torch.as_tensor(found.centres).unflatten(0, (predictor.num_modalities, -1))
        predictor.biomarkers[member].copy_(centres)

    def _fill(self, predictor: nn.Module, fits: Sequence[Any]) -> None:
        """Weights of all members into the predictor, of the second class's logit; the first's is 0."""
        weight, mean = (
            torch.as_tensor(np.stack(values)).unflatten(1, predictor.mean.shape[1:])
            for values in ([fit.weight for fit in fits], [fit.mean for fit in fits])
        )
        bias = torch.tensor([fit.bias for fit in fits])
        for buffer, value in (
            (predictor.weight, weight.unsqueeze(-1)),
            (predictor.bias, bias.mean(dim=0, keepdim=True)),
            (predictor.covariate_weight, torch.as_tensor(np.mean([fit.covariate_weight for fit in fits], 0))[:, None]),
        ):
            buffer.zero_()
            buffer[..., 1:] = value.to(buffer)
        predictor.mean.copy_(mean)
        predictor.covariate_mean.copy_(torch.as_tensor(fits[0].covariate_mean))

    def _describe(self, amounts: Tensor, labels: Tensor, fits: Sequence[Any]) -> None:
        from shared.visualize import place_gallery

        predictor = self.network.additive
        area, typical, grid = self._typical()
        effects = self._effects(amounts, labels, fits[0])
        names = biomarker_names(predictor, self.modalities)[: predictor.num_modalities * predictor.num_biomarkers]
        rows = []
        for k, name in enumerate(names):
            has = area[:, k] > 0
            row: dict[str, Any] = {"biomarker": k, "name": name, "patients": int(has.sum())}
            row["patients_share"] = float(has.float().mean())
            for label, of_class in enumerate(("negative", "positive")):
                mine = area[labels == label, k]
                row[f"area_mm2_{of_class}"] = float(mine.mean()) if len(mine) else None
            row |= {key: float(values[k]) for key, values in effects.items()}
            row["typical"] = [
                {"patient": str(self.cases[i]["patient"]), "image": image, "row": r, "column": c, "similarity": s}
                for i, image, r, c, s in typical[k]
            ]
            rows.append(row)
        plain = [{key: value for key, value in row.items() if key != "typical"} for row in rows]
        write_csv(self.output_dir / "additive_biomarkers.csv", plain)
        content = {"biomarkers": rows, "strength": [fit.strength for fit in fits], "members": len(fits)}
        write_json(self.output_dir / "additive_biomarkers.json", content)
        images, count = radiological(self.cases.stack("image")), predictor.num_biomarkers
        for modality in range(predictor.num_modalities):
            # the strongest first
            own = sorted(range(modality * count, (modality + 1) * count), key=lambda k: -abs(rows[k]["effect"]))
            place_gallery(
                images,
                [typical[k] for k in own],
                [rows[k] for k in own],
                self.output_dir / f"additive_biomarkers_{names[own[0]].rpartition(' ')[0].replace(' ', '_')}.png",
                grid=grid,
                field=receptive_field(predictor.level, len(predictor.encoders[0].levels)),
                patients=[str(case["patient"]) for case in self.cases],
                labels=labels,
                class_names=self.class_names,
            )

    @torch.no_grad()
    def _typical(self, nearest: int = 8) -> tuple[Tensor, list[list[tuple[int, int, int, int, float]]], int]:
        """Area of each biomarker of the first member ``[n, M * K]`` in mm2 a slice, and its most typical places.

        A place is (case, image, row, column, similarity) on a grid whose side comes last: of each biomarker the nearest
        of ``nearest`` patients.
        """
        predictor, best, areas = self.network.additive, [], []
        for images in self._images("Describing biomarkers"):
            features = predictor.features(images)
            covered = predictor.coverage(images, features.shape[-1])
            assignment = predictor.assign(features)
            areas.append(predictor.amounts(assignment, covered)[0].flatten(1).cpu())
            x = features.unflatten(1, (predictor.num_modalities, -1))
            similarity = torch.einsum("bmsdhw,mkd->bmkshw", x, predictor.biomarkers[0])
            own = assignment.unflatten(1, (predictor.num_modalities, -1)).unsqueeze(2)
            index = torch.arange(predictor.num_biomarkers, device=images.device)[None, None, :, None, None, None]
            whole = covered.unflatten(1, (predictor.num_modalities, -1)).unsqueeze(2) > 0.5
            similarity = similarity.masked_fill((own != index) | ~whole, -2.0)
            value, place = similarity.flatten(3).max(dim=3)
            best.append(torch.stack([value.flatten(1), place.flatten(1).to(value.dtype)], dim=-1).cpu())
        grid = features.shape[-1]
        side = self.cases.stack("image").shape[-1]
        window = torch.tensor([pixel_area(case["geometry"], side) * side**2 for case in self.cases])
        found = torch.cat(best)
        typical = []
        for k in range(found.shape[1]):
            rows = []
            for i in found[:, k, 0].argsort(descending=True)[:nearest].tolist():
                value, place = found[i, k, 0].item(), int(found[i, k, 1])
                if value > -1.5:
                    image = place // grid**2 + k // predictor.num_biomarkers * (
                        predictor.num_images // predictor.num_modalities
                    )
                    rows.append((i, image, place % grid**2 // grid, place % grid, round(value, 4)))
            typical.append(rows)
        return torch.cat(areas) * window[:, None], typical, grid

    def _effects(self, amounts: Tensor, labels: Tensor, fit: Any) -> dict[str, np.ndarray]:
        """Change of the log odds for one standard deviation more of a biomarker, with its bootstrap interval."""
        from shared.biomarkers import bootstrap_weights

        x = amounts[:, 0].flatten(1).numpy()
        known, spread = self.cases.stack("covariates").double().numpy(), x.std(axis=0)
        options = {"strength": fit.strength, "draws": self.bootstrap, **self.regression}
        draws = bootstrap_weights(x, labels.numpy(), known, **options)
        low, high = fit.slope * np.percentile(draws, [2.5, 97.5], axis=0) if len(draws) else (fit.weight, fit.weight)
        return {"effect": fit.weight * spread, "effect_low": low * spread, "effect_high": high * spread}
