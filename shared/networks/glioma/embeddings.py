"""What frozen encoders give of all patients, computed once: attributes of brain networks, embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from shared.checkpoint import load_checkpoint
from shared.data.brain.cases import GliomaRows, collate_glioma, glioma_inputs
from shared.errors import CheckpointError
from shared.networks.glioma.classifier import GliomaClassifier, GliomaFeatures, given_rows
from shared.networks.glioma.network import ENCODERS, GliomaOutput


@torch.no_grad()
def brain_networks(
    items: Iterable[Mapping[str, Any]],
    features: GliomaFeatures,
    device: Any = "cpu",
    *,
    standardised: bool = True,
    kept: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attributes of all patients' brain networks, on the CPU: ``[N, R, F]`` and ``[N, E, F]``.

    Args:
        items: the patients, such as those of :class:`GliomaRows`.
        features: with the node and edge encoders.
        device: where they run.
        standardised: by the features' means and standard deviations.
        kept: of the sequences, which are seen; the others are 0. None: all.
    """
    found = []
    for item in items:  # one patient at a time: its rows are thousands
        given = [torch.as_tensor(item[key])[None].to(device) for key in ("region_rows", "tract_rows")]
        if kept is not None and not all(kept):
            seen = torch.tensor(kept, device=device)[:, None]
            given = [(x.unflatten(2, (len(kept), -1)) * seen).flatten(2) for x in given]
        found.append([x[0].cpu() for x in features.attributes(*given, standardised=standardised)])
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


class FrozenEmbeddings(Dataset):
    """Patients' rows, and their frozen embeddings: computed once, after the features were loaded.

    Args:
        rows: the patients.
        network: the classifier.
        device: where it runs.
        batch_size: patients at a time.
        crossed: checkpoint of :class:`shared.engines.CrossFit`: of each patient the embeddings and scores by encoders
            that did not see it; None: all by the network's own, which saw none of these patients.

    Shape:
        - an item: ``row`` int, ``label`` int, ``covariates`` ``[k]``
        - :meth:`outputs`: u_image, u_points, u_brain ``[N, D]``, unimodal_logits ``[N, K]`` (where there are scores)
        - :meth:`embeddings`: nodes ``[N, D]``, edges ``[N, D']``

    Raises:
        CheckpointError: the cross-fit was not run, or of other patients.
    """

    def __init__(
        self,
        rows: GliomaRows,
        network: GliomaClassifier,
        *,
        device: Any = "cpu",
        batch_size: int = 8,
        crossed: str | os.PathLike | None = None,
    ):
        self.rows, self.network, self.device, self.batch_size = rows, network, device, batch_size
        self.crossed = crossed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]

    @torch.no_grad()
    def outputs(self) -> GliomaOutput:
        """Embeddings and scores of all patients, in eval mode."""
        if self.crossed is not None:
            return self._crossed(self.crossed)
        features, found = self.network.features.eval(), []
        for first in tqdm(range(0, len(self.rows), self.batch_size), desc="Embedding patients", leave=False):
            batch = collate_glioma(self.rows.items[first : first + self.batch_size])
            output = self.network.embed(given_rows(glioma_inputs(batch, self.device)))
            scores = features.glioma.scores(output) if features.glioma.scored else None
            found.append([*(getattr(output, f"u_{name}") for name in ENCODERS), scores])
        parts = [None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True)]
        return joined_output(*parts)

    def _crossed(self, path: str | os.PathLike) -> GliomaOutput:
        content = load_checkpoint(path, hint="Run it first: --run_id cross_fit_run.")
        place = {name: row for row, name in enumerate(content["patients"])}
        if missing := [name for name in self.rows.patients if name not in place]:
            raise CheckpointError(f"{path} is of other patients ({missing[0]} is not there): --run_id cross_fit_run.")
        order = [place[name] for name in self.rows.patients]
        parts = (content.get(key) for key in (*(f"u_{name}" for name in ENCODERS), "scores"))
        return joined_output(*(None if part is None else part[order].to(self.device) for part in parts))

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Node and edge features of all patients, in eval mode."""
        return self.network.graph_parts(self.outputs())


def joined_output(
    u_image: Tensor | None, u_points: Tensor | None, u_brain: Tensor | None, scores: Tensor | None = None
) -> GliomaOutput:
    """What the classifier makes its answers of, from the encoders' embeddings and scores."""
    tumour = [u for u in (u_image, u_points) if u is not None]
    u_tumour = torch.cat(tumour, dim=1) if tumour else None
    return GliomaOutput(u_image, u_points, u_tumour, u_brain, unimodal_logits=scores)
