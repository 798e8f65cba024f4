"""Embeddings and scores of all training patients by encoders that did not see them: the encoders trained once a fold.

Cross-fitting as in Chernozhukov et al., Double/debiased machine learning (Econometrics Journal 2018), section 3, and
the out-of-fold predictions of Wolpert, Stacked Generalization (Neural Networks 1992).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from shared.bundle.record import building_config
from shared.checkpoint import load_checkpoint, load_weights, part_of
from shared.data.brain.cases import GliomaCases, GliomaRows
from shared.data.brain.datalist import GliomaDatalist
from shared.engines.biomarker_stage import PlainStage
from shared.networks.glioma.classifier import FeaturesTraining, GliomaClassifier
from shared.networks.glioma.embeddings import FrozenEmbeddings
from shared.networks.glioma.network import ENCODERS, GliomaOutput

logger = logging.getLogger(__name__)


class CrossFit(PlainStage):
    """Train the encoders once for each fold, on the patients outside it, and embed the fold's patients by them.

    Each fold is trained by the configuration that is being built, in folders ``fold_<k>`` of ``ckpt_dir`` and
    ``output_dir``, and skipped or gone on with like the stages themselves. Scores are the fold's own. Embeddings of two
    trainings lie in two spaces: each encoder's are moved onto those of the final one, which is trained on all patients,
    by the rotation, scale and shift that fit best on the patients whom the fold's encoder was trained on
    (:func:`aligned`). New patients are embedded by the final encoders.

    Args:
        network: the classifier, for the final encoders.
        common: what all stages share, see :class:`shared.engines.StageTrainer`.
        cases: all training patients, prepared once for all folds.
        datalist: deals out the folds (``held_out`` of it is a fold's training).
        stages: sections of the configuration that train the encoders, in their order.
        final: checkpoint of the last of them.
        checkpoint: what this stage writes: ``patients``, ``fold``, ``u_<encoder>``, ``scores`` (where there are some).

    Raises:
        CheckpointError: the stages before it were not run, or with other settings or data.
    """

    def __init__(
        self,
        network: GliomaClassifier,
        common: Mapping[str, Any],
        cases: GliomaCases,
        datalist: GliomaDatalist,
        *,
        stages: Sequence[str],
        final: str | os.PathLike,
        checkpoint: str | os.PathLike,
    ):
        super().__init__(common, checkpoint)
        self.network, self.cases, self.datalist = network, cases, datalist
        self.stages, self.final = list(stages), Path(final)
        self.config = dict(building_config())

    @property
    def folds(self) -> int:
        """How many; 0: no cross-fitting."""
        return self.datalist.folds

    def run(self) -> None:
        """Train every fold, then embed; nothing without folds."""
        if not self.folds:
            return
        finished = self.resume and self.checkpoint.is_file()
        self._networks = []
        for fold in range(0 if finished else self.folds):
            logger.info("Cross-fitting: fold %d of %d.", fold + 1, self.folds)
            if self.seed is not None:
                set_determinism(self.seed)
            parser = self.fold_parser(fold)
            for stage in self.stages:
                parser.get_parsed_content(f"{stage}#trainer").run()
            self._networks.append(parser.get_parsed_content("network").cpu())
        super().run()
        self._networks = []  # not needed beside the training that follows

    def fold_parser(self, fold: int) -> ConfigParser:
        """The configuration of a fold's training."""
        config = deepcopy(self.config)
        config |= {"ckpt_dir": str(self.folder(fold)), "output_dir": str(self.output_dir / f"fold_{fold}")}
        config["datalist"] = {**config["datalist"], "held_out": fold}
        parser = ConfigParser(config)
        parser.parse()
        parser.ref_resolver.resolved_content["cases"] = self.cases  # prepared once for all
        return parser

    def folder(self, fold: int) -> Path:
        """Where a fold's checkpoints lie."""
        return self.final.parent / f"fold_{fold}"

    def content(self) -> dict[str, Any]:
        """Embed every patient by the encoders of the fold that it was left out of."""
        names = self.cases.patients
        reference = self._outputs(self.network, self.final, names)
        found: dict[str, Tensor] = {}
        for fold, network in enumerate(self._networks):
            output = self._outputs(network, self.folder(fold) / self.final.name, names)
            outside = torch.tensor([self.datalist.fold_of[name] == fold for name in names])
            for key, own in output.items():
                moved = own if key == "scores" else aligned(own, reference[key], ~outside)
                found.setdefault(key, torch.zeros_like(moved))[outside] = moved[outside]
        return {"patients": names, "fold": torch.tensor([self.datalist.fold_of[name] for name in names]), **found}

    def _outputs(self, network: GliomaClassifier, path: Path, names: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings and scores of all patients, on the CPU."""
        state = part_of(load_checkpoint(path, hint="Run it first: --run_id contrast_run."), "network", path)
        load_weights(FeaturesTraining(network.features), state, path)
        network.to(self.device)
        output = FrozenEmbeddings(GliomaRows(self.cases, names), network, device=self.device).outputs()
        return {key: x.cpu() for key, x in _named(output).items() if x is not None}


def _named(output: GliomaOutput) -> dict[str, Tensor | None]:
    return {f"u_{name}": getattr(output, f"u_{name}") for name in ENCODERS} | {"scores": output.unimodal_logits}


def aligned(own: Tensor, other: Tensor, fitted: Tensor) -> Tensor:
    """One encoder's embeddings in the space of another's: rotated, scaled and shifted as fits best (Schoenemann 1966).

    Args:
        own: embeddings of patients by the one.
        other: of the same patients by the other.
        fitted: patients who decide.

    Shape:
        - own, other, returns: ``[N, D]``; fitted: ``[N]`` bool

    Example:
        >>> x = torch.randn(20, 3, dtype=torch.float64)
        >>> turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
        >>> aligned(x, 2 * x @ turn + 1, torch.arange(20) < 10).allclose(2 * x @ turn + 1)
        True
    """
    source, target = own[fitted].double(), other[fitted].double()
    centre, aim = source.mean(dim=0), target.mean(dim=0)
    rotation, total = orthogonal_procrustes((source - centre).numpy(), (target - aim).numpy())
    size = float((source - centre).square().sum())
    scale = float(total) / size if size > 0 else 1.0
    return (scale * (own.double() - centre) @ torch.from_numpy(rotation) + aim).to(own.dtype)
