"""Slides as bags of their tiles' features, with the slides' labels: what a model of slides is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class SlideBags(Dataset):
    """A slide an item: features of its tiles, of all or of some drawn anew each time.

    Args:
        entries: of :class:`SlideDatalist`.
        features: of a slide, given its entry.
        tiles: most tiles of an item, drawn without replacement; None: all.

    Attributes:
        labels: of the slides, ``[len]`` long.

    Shape:
        - an item: ``image`` (features h) ``[n, D]``, ``label`` a number, ``patient`` and ``path`` texts
        - a batch: ``image`` ``[B, n, D]``, short slides filled up with 0; ``mask`` bool ``[B, n]``, False there;
          ``label`` ``[B]``; lists of ``patient`` and ``path``

    Example:
        >>> entries = [{"image": "a.svs", "patient": "A", "label": 1}, {"image": "b.svs", "patient": "B", "label": 0}]
        >>> bags = SlideBags(entries, lambda entry: torch.ones(5 if entry["label"] else 3, 4), tiles=4)
        >>> batch = bags.collate([bags[0], bags[1]])
        >>> batch["image"].shape, batch["mask"].sum(dim=1).tolist(), batch["label"].tolist()
        (torch.Size([2, 4, 4]), [4, 3], [1, 0])
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        features: Callable[[Mapping[str, Any]], Tensor],
        *,
        tiles: int | None = None,
    ):
        self.entries, self.features, self.tiles = list(entries), features, tiles
        self.labels = torch.tensor([int(entry["label"]) for entry in self.entries])

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        h = self.features(entry)
        if self.tiles is not None and len(h) > self.tiles:
            h = h[torch.randperm(len(h))[: self.tiles]]
        told = {"patient": str(entry["patient"]), "path": str(entry["image"])}
        return {"image": h, "label": int(self.labels[index]), **told}

    @property
    def balanced_weights(self) -> Tensor:
        """A weight for every slide ``[len]`` under which a weighted sampler draws both classes equally often."""
        return 1 / self.labels.bincount()[self.labels].double()

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items as a batch."""
        bags = [item["image"] for item in items]
        mask = pad_sequence([torch.ones(len(bag), dtype=torch.bool) for bag in bags], batch_first=True)
        batch = {"image": pad_sequence(bags, batch_first=True), "mask": mask}
        batch["label"] = torch.tensor([item["label"] for item in items])
        return batch | {key: [item[key] for item in items] for key in ("patient", "path")}
