"""Stages that are no training loop, with a ``run()`` like an engine's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.utils import set_determinism
from torch import Tensor, nn
from tqdm import tqdm

from shared.checkpoint import load_checkpoint, load_weights, part_of, save_checkpoint, weights_below
from shared.data.cases import CaseDataset
from shared.distributed.processes import from_main
from shared.io import write_csv, write_json
from shared.transforms.roi_slices import radiological

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_cases(
    network: nn.Module, cases: CaseDataset, device: str | torch.device, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Representations ``[n, m, D]`` and embeddings ``[n, m, E]`` of all cases, in eval mode, on ``device``."""
    network.to(device).eval()
    parts = [
        network.encode(images.to(device))
        for images in tqdm(cases.stack("image").split(batch_size), desc="Encoding cases", leave=False)
    ]
    return torch.cat([h.float() for h, _ in parts]), torch.cat([z for _, z in parts])


class PlainStage:
    """A stage without epochs: skipped when its checkpoint is there and ``resume`` is true, else computed and saved.

    Args:
        common: what all stages share, see :class:`shared.engines.StageTrainer`.
        checkpoint: what the stage writes.
    """

    def __init__(self, common: Mapping[str, Any], checkpoint: str | os.PathLike):
        self.checkpoint, self.output_dir = Path(checkpoint), Path(common["output_dir"])
        self.seed, self.resume = common["seed"], common["resume"]
        self.record, self.device = common["record"], common["device"]

    def content(self) -> dict[str, Any]:
        """Compute the stage; what its checkpoint holds."""
        raise NotImplementedError

    def run(self) -> None:
        """Compute and save, or skip when resuming; of several processes the first does it, others wait."""
        from_main(self._run)
        set_determinism(self.seed)  # the next stage starts as if this one had been skipped

    def _run(self) -> None:
        finished = self.resume and self.checkpoint.is_file()
        if self.record is not None:
            stored = load_checkpoint(self.checkpoint).get("record") if finished else None
            stage = self.record.stage_of(self.checkpoint)
            self.record.begin(stage, stored, finished=finished, going_on=finished)
        if finished:
            logger.info("%s exists and resume is true, the stage is skipped.", self.checkpoint)
            return
        content = self.content()
        content |= {} if self.record is None else {"record": self.record.of(self.record.stage_of(self.checkpoint))}
        save_checkpoint(self.checkpoint, content)
        if self.record is not None:
            self.record.end()


class BiomarkerStage(PlainStage):
    """K-means of the training images' embeddings into imaging biomarkers (section 3.2, "Potential Biomarkers").

    Loads the encoder of stage I into the classifier, sets its ``biomarkers`` buffer and describes each biomarker in
    ``biomarkers.csv``, ``biomarkers.json`` (with the alarms) and ``biomarkers.png`` (its nearest real images).

    Args:
        network: the :class:`shared.networks.IRCLClassifier` to fill.
        common: what all stages share, see :class:`shared.engines.StageTrainer`.
        cases: the original training cases.
        num_biomarkers: K, per modality when ``per_modality``.
        pretrained: checkpoint of stage I.
        checkpoint: what this stage writes: encoder and biomarkers.
        num_modalities: images come modality by modality.
        modalities: their names.
        per_modality: cluster each modality by itself.
        positive_name: name of class 1, for the picture.

    Raises:
        CheckpointError: stage I has not been run, or was run with other dimensions, settings or data.
        DataError: K is larger than the number of images.
    """

    def __init__(
        self,
        network: nn.Module,
        common: Mapping[str, Any],
        cases: CaseDataset,
        num_biomarkers: int,
        *,
        pretrained: str | os.PathLike,
        checkpoint: str | os.PathLike,
        num_modalities: int = 1,
        modalities: Sequence[str] | None = None,
        per_modality: bool = False,
        positive_name: str = "positive",
    ):
        super().__init__(common, checkpoint)
        self.network, self.cases, self.num_biomarkers = network, cases, num_biomarkers
        self.pretrained, self.positive_name = Path(pretrained), positive_name
        self.num_modalities, self.modalities, self.per_modality = num_modalities, modalities, per_modality

    def content(self) -> dict[str, Any]:
        """Cluster and describe; encoder and biomarkers."""
        from shared.biomarkers import fit_biomarkers

        state = load_checkpoint(self.pretrained, hint="Run stage I first: --run_id pretrain_run.")
        state = part_of(state, "network", self.pretrained)
        load_weights(self.network.encoder, weights_below(state, "encoder."), self.pretrained)
        _, z = encode_cases(self.network, self.cases, self.device)
        num_cases, num_images = z.shape[:2]
        modality = torch.arange(num_images) // (num_images // self.num_modalities)
        found = fit_biomarkers(
            z.flatten(0, 1),
            self.num_biomarkers,
            modality=modality.repeat(num_cases),
            per_modality=self.per_modality,
            seed=self.seed,
        )
        self.network.biomarkers.copy_(torch.as_tensor(found.centres))
        self._describe(z, found, modality)
        return {"encoder": self.network.encoder.state_dict(), "biomarkers": self.network.biomarkers.cpu()}

    def _describe(self, z: Tensor, found: Any, modality: Tensor) -> None:
        from shared.biomarkers import biomarker_table, flat_rows, same_patient_neighbour_rate
        from shared.visualize import biomarker_gallery

        num_cases, num_images = z.shape[:2]
        patient = [case["patient"] for case in self.cases for _ in range(num_images)]
        label = self.cases.stack("label").repeat_interleave(num_images)
        images = radiological(self.cases.stack("image").flatten(0, 1))
        table = biomarker_table(
            found.assignment,
            found.similarity,
            patient,
            label,
            modality.repeat(num_cases),
            num_biomarkers=len(found.centres),
            modality_names=self.modalities,
            distinct_patients=True,
        )
        rate = same_patient_neighbour_rate(z.flatten(0, 1).cpu(), patient)
        counted = [row for row in table if row["images"]]
        purity = sum(row["purity"] * row["images"] for row in counted) / len(patient)
        logger.info(
            "Biomarkers: nearest neighbour of the same patient in %.0f %% of images; modality purity %.2f.",
            100 * (rate or 0),
            purity,
        )
        if rate is not None and rate > 0.8:
            logger.warning(
                "The embedding knows the patient: %.0f %% of nearest neighbours are of the same patient. Expect "
                "biomarkers that describe patients rather than patterns; stronger augmentation or "
                "same-modality positives (pretrain#intra_positives) help.",
                100 * rate,
            )
        write_csv(self.output_dir / "biomarkers.csv", flat_rows(table))
        write_json(
            self.output_dir / "biomarkers.json",
            {"biomarkers": table, "same_patient_neighbour_rate": rate, "modality_purity": purity},
        )
        biomarker_gallery(
            images, table, self.output_dir / "biomarkers.png", positive_name=self.positive_name, labels=label
        )
