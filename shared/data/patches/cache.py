"""Patches decoded once into 8-bit pixels on disk or in memory, and the datasets that draw batches by indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from shared.data.disk_cache import DiskCache
from shared.data.loaders import collate_patches
from shared.data.patches.reading import patch_header, read_turned
from shared.data.patches.resizing import resize_images
from shared.data.pixels import Pixels, in_order
from shared.errors import DataError

DEVICE_SHARE = 0.25  # of an accelerator's free memory that patches may take; the training needs the rest


class PatchImages(Sequence):
    """Patches of one size as one tensor's rows, read when they are asked for.

    Args:
        pixels: that hold them, and perhaps others.
        numbers: of the rows.
        size: side of each.

    Shape:
        - images[i]: uint8 ``[3, S, S]``; images[rows], of a slice, a list or a tensor of whole numbers:
          ``[n, 3, S, S]``, on the CPU

    Example:
        >>> pixels = Pixels()
        >>> for value in (5, 7, 9):
        ...     _ = pixels.append(torch.full((3, 2, 2), value, dtype=torch.uint8).numpy())
        >>> images = PatchImages(pixels, [2, 0], 2)
        >>> images.shape, images[0][0].tolist(), images[[1, 0]][:, 0, 0, 0].tolist()
        (torch.Size([2, 3, 2, 2]), [[9, 9], [9, 9]], [5, 9])
    """

    dtype = torch.uint8

    def __init__(self, pixels: Pixels, numbers: Sequence[int], size: int):
        self.pixels, self.numbers = pixels, list(numbers)
        self.shape = torch.Size((len(self.numbers), 3, size, size))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Tensor:
        rows = torch.arange(len(self))[index].tolist()
        if isinstance(rows, int):
            return torch.from_numpy(self.pixels.read(self.numbers[rows]))
        images = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for row, out in zip(rows, images.numpy(), strict=True):
            self.pixels.read(self.numbers[row], out)
        return images

    def to(self, device: str | torch.device) -> PatchImages | DeviceImages:
        """A copy on a GPU, if a quarter of its free memory is enough, else these very images.

        Lists of the same patches share it: one that a longer list's copy covers takes its rows.
        """
        device = torch.device(device)
        if device.type != "cuda":
            return self
        if device.index is None:  # a tensor's device has one
            device = torch.device(device.type, torch.cuda.current_device())
        room = DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        return self.shared_copy(device) or (self.copy_to(device) if self.shape.numel() <= room else self)

    def shared_copy(self, device: torch.device) -> DeviceImages | None:
        """These images as rows of a copy that is on the device already."""
        for images, rows in self.pixels.copies:
            if images.device == device and rows.keys() >= set(self.numbers):
                return DeviceImages(images, torch.tensor([rows[number] for number in self.numbers], device=device))
        return None

    def copy_to(self, device: torch.device) -> DeviceImages:
        """A copy on the device, made in parts."""
        images = torch.empty(self.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), 256):
            images[start : start + 256] = self[start : start + 256].to(device)
        self.pixels.copies.append((images, {number: row for row, number in enumerate(self.numbers)}))
        return DeviceImages(images, torch.arange(len(self), device=device))


class DeviceImages:
    """Rows ``rows`` of images that are on a device, by indexing with a tensor; on the device, too."""

    def __init__(self, images: Tensor, rows: Tensor):
        self.images, self.rows = images, rows

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.images[self.rows[rows.to(self.rows.device)]]


class PatchCache:
    """All patches of a list, decoded by as many threads as torch uses, or where the datalist's check has put them.

    With a disk cache the pixels are in its file, once for all lists of a datalist; else, and after resizing, in memory
    or, beyond ``memory_gb`` of the disk cache, in a temporary file.

    Args:
        entries: of a datalist, with ``image`` and, where known, ``label``, ``soft_label`` (share of votes for class 1)
            and ``mask``.
        size: side after resizing (antialiased); None: as stored, where all must agree.
        progress: show a progress bar.
        mask: also keep the masks, resized to the nearest pixel; a string names another key of the entries.
        num_classes: width of the soft labels.
        disk_cache: of the datalist's check, which decoded the same files.

    Attributes:
        images: uint8 ``[N, 3, S, S]``, see :class:`PatchImages`.
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
        self.entries, self._disk_cache = list(entries), disk_cache or DiskCache()
        self._shares = disk_cache is not None
        self.size = size
        self.mask_key = "mask" if mask is True else mask
        self.masks = None
        self.images = self._decoded_before() or self._decode_all(progress)
        self.labels, self.soft_labels = _labels(self.entries, num_classes)

    def _decoded_before(self) -> PatchImages | None:
        """The images where the datalist's check, or a list before, has put them; None: not all in one file."""
        if self.mask_key:
            return None
        places = [self._disk_cache.held(entry["image"], size=self.size) for entry in self.entries]
        known = [place for place in places if place is not None]
        if len(known) < len(places) or any(pixels is not known[0][0] for pixels, _ in known):
            return None
        pixels, numbers = known[0][0], [number for _, number in known]
        _, height, width = pixels.shapes[numbers].T
        if (height != width).any() or (width != width[0]).any():
            return None
        return PatchImages(pixels, numbers, int(width[0]))

    def _decode_all(self, progress: bool) -> PatchImages:
        pixels, side, problems = self._disk_cache.new_pixels(self._expected_bytes()), 0, []
        masks: list[Tensor | None] = []
        for entry, result in zip(self.entries, self._decoded(progress), strict=True):
            if isinstance(result, DataError):
                problems += result.problems
                continue
            image, inside = result
            side = side or image.shape[-1]  # the first good patch sets the size
            if image.shape[-1] != side:
                problems.append(
                    f"{entry['image']}: {image.shape[-1]} x {image.shape[-1]} pixels, but the patches before it have "
                    f"{side} x {side}; set the cache's size to resize all of them to one."
                )
                continue
            number = pixels.append(image.numpy())
            if self._shares:
                self._disk_cache.hold(entry["image"], pixels, number, size=self.size)
            masks.append(inside)
        if problems:
            raise DataError(problems)
        if self.mask_key:
            empty = torch.zeros(1, side, side, dtype=torch.bool)
            self.masks = torch.stack([empty if inside is None else inside for inside in masks])
        return PatchImages(pixels, range(len(pixels)), side)

    def _expected_bytes(self) -> int:
        """Bytes of all images, if they are as large as the first that can be read."""
        side = self.size
        for entry in self.entries if side is None else ():
            with suppress(DataError):
                side = max(patch_header(entry["image"])[0])
                break
        return 3 * len(self.entries) * (side or 0) ** 2

    def __len__(self) -> int:
        return len(self.entries)

    def _decoded(self, progress: bool) -> Iterator[tuple[Tensor, Tensor | None] | DataError]:
        from tqdm import tqdm

        results = in_order(self._decode, self.entries, torch.get_num_threads())
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
        place = self._disk_cache.held(path, mask=mask)
        if place is None:
            return torch.from_numpy(read_turned(path, mask=mask)[0])
        image = torch.from_numpy(place[0].read(place[1]))
        return image[0].bool() if mask else image


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
        device: where the images are kept, if they fit (:meth:`PatchImages.to`); else a batch is on the CPU.

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
        batch: dict[str, Any] = {"image": self.images[row], "row": row}
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
