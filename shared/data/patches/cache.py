"""Patches decoded once into one uint8 tensor, and the datasets that draw batches from it by indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from shared.data.disk_cache import DiskCache
from shared.data.loaders import collate_patches
from shared.data.patches.reading import read_turned
from shared.data.patches.resizing import resize_images
from shared.errors import DataError


class PatchCache:
    """All patches of a list in memory, decoded by as many threads as torch uses.

    Args:
        entries: of a datalist, with ``image`` and, where known, ``label``, ``soft_label`` (share of votes for class 1)
            and ``mask``.
        size: side after resizing (antialiased); None: as stored, where all must agree.
        progress: show a progress bar.
        mask: also keep the masks, resized to the nearest pixel; a string names another key of the entries.
        num_classes: width of the soft labels.
        disk_cache: of the datalist's check, which decoded the same files.

    Attributes:
        images: uint8 ``[N, 3, S, S]``.
        labels: long ``[N]``, -1 where unknown; None where no entry has one.
        soft_labels: float ``[N, num_classes]``: the votes where known, else the label; None without labels.
        masks: bool ``[N, 1, S, S]``, empty where an entry has none; None unless asked for.
        entries: as given.

    Raises:
        DataError: with every patch that cannot be read, is not square or has another size, or whose mask does not fit.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = tempfile.mkdtemp() + "/patch.png"
        >>> Image.new("RGB", (8, 8), (250, 0, 7)).save(path)
        >>> cache = PatchCache([{"image": path, "label": 1}], size=4, progress=False)
        >>> cache.images.shape, cache.labels, cache.soft_labels
        (torch.Size([1, 3, 4, 4]), tensor([1]), tensor([[0., 1.]]))
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        *,
        size: int | None = None,
        progress: bool = True,
        mask: bool | str = False,
        num_classes: int = 2,
        disk_cache: DiskCache | None = None,
    ):
        if not entries:
            raise DataError("There is no patch to read: the list of entries is empty.")
        self.entries, self._disk_cache = list(entries), disk_cache
        self.size = size
        self.mask_key = "mask" if mask is True else mask
        self.images = self.masks = None
        problems = []
        for row, result in enumerate(self._decoded(progress)):
            if isinstance(result, DataError):
                problems += result.problems
                continue
            image, inside = result
            if self.images is None:  # the first good patch sets the size
                side = image.shape[-1]
                self.images = torch.empty(len(self.entries), 3, side, side, dtype=torch.uint8)
                if self.mask_key:
                    self.masks = torch.zeros(len(self.entries), 1, side, side, dtype=torch.bool)
            if image.shape != self.images.shape[1:]:
                side, first = image.shape[-1], self.images.shape[-1]
                problems.append(
                    f"{self.entries[row]['image']}: {side} x {side} pixels, but the patches before it have "
                    f"{first} x {first}; set the cache's size to resize all of them to one."
                )
                continue
            self.images[row] = image
            if inside is not None:
                self.masks[row] = inside
        if problems:
            raise DataError(problems)
        self.labels, self.soft_labels = _labels(self.entries, num_classes)

    def __len__(self) -> int:
        return len(self.entries)

    def _decoded(self, progress: bool) -> Iterator[tuple[Tensor, Tensor | None] | DataError]:
        from tqdm import tqdm

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            results = threads.map(self._decode, self.entries)
            yield from tqdm(results, "Reading patches", len(self.entries), leave=False, disable=not progress)

    def _decode(self, entry: Mapping[str, Any]) -> tuple[Tensor, Tensor | None] | DataError:
        path = entry["image"]
        try:
            image = self._pixels(path)
            height, width = image.shape[1:]
            if height != width:
                return DataError(f"{path}: patches are square, this one has {width} x {height} pixels; cut or pad it.")
            inside = None
            if self.mask_key and entry.get(self.mask_key):
                inside = self._pixels(entry[self.mask_key], mask=True)[None]
                if inside.shape[1:] != image.shape[1:]:
                    shape = f"{inside.shape[2]} x {inside.shape[1]}"
                    return DataError(
                        f"{entry[self.mask_key]}: a mask has as many pixels as its image ({width} x {height}), "
                        f"this one has {shape}."
                    )
        except DataError as error:
            return error
        if self.size is not None:
            image = resize_images(image[None], self.size)[0]
            if inside is not None:
                inside = functional.interpolate(inside[None].byte(), self.size, mode="nearest-exact")[0].bool()
        return image, inside

    def _pixels(self, path: str, *, mask: bool = False) -> Tensor:
        """A decoded file: as the datalist's check left it, if it did."""
        held = None if self._disk_cache is None else self._disk_cache.held((path, mask))
        return torch.from_numpy(read_turned(path, mask=mask)[0] if held is None else held)


def _labels(entries: Sequence[Mapping[str, Any]], num_classes: int) -> tuple[Tensor | None, Tensor | None]:
    labels = torch.tensor([-1 if entry.get("label") is None else int(entry["label"]) for entry in entries])
    if (labels < 0).all():
        return None, None
    soft = functional.one_hot(labels.clamp(min=0), num_classes).float() * (labels >= 0)[:, None]
    for row, entry in enumerate(entries):
        if entry.get("soft_label") is not None:
            if num_classes != 2:
                raise DataError(
                    f"{entry['image']}: soft_label is the share of votes for one of two classes, but there are "
                    f"{num_classes}; leave it out of the datalist."
                )
            soft[row] = torch.tensor([1 - float(entry["soft_label"]), float(entry["soft_label"])])
    return labels, soft


class PatchRows(Dataset):
    """Rows of a cache as a dataset whose batches are formed by indexing, for pretraining and fine-tuning alike.

    Its ``collate`` is what a loader needs as ``collate_fn``; workers would only copy.

    Args:
        cache: the decoded patches.
        rows: which of them; None: all.
        names: also give ``patient`` and ``path`` of every patch, as lists.
        device: where the images are kept.

    Shape:
        - a batch: ``image`` uint8 ``[B, 3, S, S]``, ``row`` ``[B]`` of the cache and, where all of the dataset's
          patches have labels, ``label`` ``[B]`` and ``soft_label`` ``[B, num_classes]``
    """

    @staticmethod
    def collate(batch):
        """A batch of items, see :func:`collate_patches`."""
        return collate_patches(batch)

    def __init__(
        self,
        cache: PatchCache,
        rows: Sequence[int] | Tensor | None = None,
        *,
        names: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.cache, self.names = cache, names
        self.rows = torch.arange(len(cache)) if rows is None else torch.as_tensor(rows, dtype=torch.long)
        self.images = cache.images.to(device)
        self.labelled = cache.labels is not None and bool((cache.labels[self.rows] >= 0).all())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch; torch's loaders call it instead of ``__getitem__``."""
        row = self.rows[torch.as_tensor(indices, dtype=torch.long)]
        batch: dict[str, Any] = {"image": self.images[row.to(self.images.device)], "row": row}
        if self.labelled:
            batch |= {"label": self.cache.labels[row], "soft_label": self.cache.soft_labels[row]}
        if self.names:
            entries = [self.cache.entries[i] for i in row.tolist()]
            batch |= {
                "patient": [str(entry.get("patient", "")) for entry in entries],
                "path": [str(entry["image"]) for entry in entries],
            }
        return batch

    @property
    def labels(self) -> Tensor:
        """The class of every patch ``[len]``."""
        if not self.labelled:
            raise DataError("Classes can only be balanced where every patch has a label.")
        return self.cache.labels[self.rows]

    @property
    def balanced_weights(self) -> Tensor:
        """A weight for every patch ``[len]`` under which a weighted sampler draws all classes equally often."""
        return 1 / self.labels.bincount()[self.labels].double()
