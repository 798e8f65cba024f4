"""Cases loaded once and kept in memory, with every unusable one reported before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandomizableTrait, Transform

from shared.data.disk_cache import DiskCache
from shared.data.fingerprint import fingerprint
from shared.errors import DataError

logger = logging.getLogger(__name__)


class CaseDataset(CacheDataset):
    """MONAI's ``CacheDataset`` of whole cases that collects the problems of all of them into one error.

    Args:
        data: cases of the datalist.
        transform: deterministic transforms, ending in ``image`` ``[m, H, W]``.
        covariates: names of the covariates to join to each case as a tensor ``[C]``.
        progress: show a progress bar while loading.
        as_contiguous: make arrays contiguous; False where items hold named tuples (point graphs), which it takes apart.
        disk_cache: keeps what the deterministic transforms give; they then do not see the label, the covariates and the
            fold, which are joined to what is read.

    Raises:
        DataError: with the message of every case that the transforms refuse.
    """

    @staticmethod
    def collate(batch):
        """A batch of items, see :func:`collate_cases`."""
        return collate_cases(batch)

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Sequence[Callable] | Callable,
        *,
        covariates: Sequence[str] = (),
        progress: bool = True,
        as_contiguous: bool = True,
        disk_cache: DiskCache | None = None,
    ):
        self.covariates = tuple(covariates)
        if not isinstance(transform, Compose):
            transform = Compose(transform)
        self._disk_cache, self._settings = disk_cache, self._settings_of(transform) if disk_cache else None
        steps = transform.flatten().transforms
        self._constants = [constant for step in steps for constant in getattr(step, "constants", ())]
        super().__init__(
            data=data, transform=transform, progress=progress, copy_cache=False, as_contiguous=as_contiguous
        )

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        items = super()._fill_cache(indices)
        if self._disk_cache is not None:
            self._disk_cache.tidy()
        problems = [item.problems for item in items if isinstance(item, DataError)]
        if problems:
            raise DataError([line for lines in problems for line in lines])
        return items

    def _load_cache_item(self, idx: int) -> dict[str, Any] | DataError:
        try:
            if self._disk_cache is None or self._settings is None:
                item = super()._load_cache_item(idx)
            else:
                item = self._disk_cache(self.data[idx], self._settings, self._transformed, self._constants)
        except Exception as error:
            cause: BaseException | None = error
            # MONAI wraps what a transform raises
            while cause is not None and not isinstance(cause, DataError):
                cause = cause.__cause__
            if cause is None:
                raise
            return cause
        known = item.get("covariates") or {}
        item["covariates"] = torch.tensor([float(known[name]) for name in self.covariates])
        return item

    def _transformed(self, case: dict[str, Any]) -> dict[str, Any]:
        """One case as ``CacheDataset`` keeps it."""
        keeper = CacheDataset([case], self.transform, cache_num=0, as_contiguous=self.as_contiguous)
        return keeper._load_cache_item(0)

    @staticmethod
    def _settings_of(transform: Compose) -> str | None:
        """What the transforms before the first random one are; None, with a line, where that cannot be told."""
        steps = list(transform.flatten().transforms)
        random = [isinstance(step, RandomizableTrait) or not isinstance(step, Transform) for step in steps]
        try:
            return fingerprint(steps[: random.index(True)] if True in random else steps)
        except TypeError as error:
            logger.info("What is cut is not kept on disk: the settings of %s cannot be told.", error)
            return None

    def stack(self, key: str) -> torch.Tensor:
        """One tensor of all cases' ``key``, the case first.

        Raises:
            DataError: the cases' shapes differ.
        """
        values = [torch.as_tensor(item[key]) for item in self._cache]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise DataError(f"All cases must give {key} of one shape, got {sorted(shapes)}.")
        return torch.stack(values)


def collate_cases(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch of cases: ``image`` ``[B, m, H, W]``, ``covariates`` ``[B, C]``, ``label`` ``[B]`` (where all have one).

    ``patient``, and where all have one ``group``, are lists of names.
    Geometry and paths stay with the dataset: MONAI's decollation would take them apart.

    Example:
        >>> case = {"image": torch.zeros(3, 8, 8), "covariates": torch.zeros(0), "label": 1, "patient": "P1"}
        >>> batch = collate_cases([case, case])
        >>> batch["image"].shape, batch["label"].tolist(), batch["patient"]
        (torch.Size([2, 3, 8, 8]), [1, 1], ['P1', 'P1'])
    """
    batch: dict[str, Any] = {
        "image": torch.stack([torch.as_tensor(case["image"]) for case in cases]),
        "covariates": torch.stack([case["covariates"] for case in cases]),
        "patient": [str(case["patient"]) for case in cases],
    }
    labels = [case.get("label") for case in cases]
    if all(label is not None for label in labels):
        batch["label"] = torch.tensor(labels)
    if all("group" in case for case in cases):
        batch["group"] = [str(case["group"]) for case in cases]
    return batch
