import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, WeightedRandomSampler

from shared.data import DiskCache, PatchCache, PatchRows, collate_patches
from shared.data.patches.cache import PatchImages
from shared.errors import DataError

RNG = np.random.default_rng(0)


def entry(folder, name, *, size=12, **more):
    """A patch of noise on disk and its entry; ``mask=True`` puts one beside it."""
    Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name)
    if more.get("mask") is True:
        more["mask"] = str(folder / f"mask-{name}")
        Image.fromarray(RNG.integers(0, 2, (size, size), dtype=np.uint8) * 255).save(more["mask"])
    return {"image": str(folder / name), "patient": f"P-{name[0]}", **more}


@pytest.fixture
def entries(tmp_path):
    votes = (None, 0.75, None, 0.25, None)
    return [
        entry(tmp_path, f"{name}.png", label=int(name in "bcd"), mask=name != "d")
        | ({} if vote is None else {"soft_label": vote})
        for name, vote in zip("abcde", votes, strict=True)
    ]


def pixels(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


# --- the cache ----------------------------------------------------------------------------------------------------


def test_pixels_labels_votes_and_masks_are_those_of_the_files(entries):
    cache = PatchCache(entries, mask=True, progress=False)
    assert cache.images.dtype == torch.uint8 and cache.images.shape == (5, 3, 12, 12) and len(cache) == 5
    for image, case in zip(cache.images, entries, strict=True):
        assert torch.equal(image, pixels(case["image"]))
    assert cache.labels.tolist() == [0, 1, 1, 1, 0] and cache.labels.dtype == torch.long
    assert cache.soft_labels.tolist() == [[1, 0], [0.25, 0.75], [0, 1], [0.75, 0.25], [1, 0]]
    assert cache.masks.dtype == torch.bool and cache.masks.shape == (5, 1, 12, 12)
    for case, inside in zip(entries, cache.masks, strict=True):
        stored = np.asarray(Image.open(case["mask"])) > 0 if case["mask"] else np.zeros((12, 12), bool)
        np.testing.assert_array_equal(inside[0], stored)
    assert cache.entries == entries
    assert PatchCache(entries, progress=False).masks is None


def test_images_are_resized_antialiased_and_masks_to_the_nearest_pixel(entries):
    cache = PatchCache(entries, size=5, mask=True, progress=False)
    for case, image, inside in zip(entries, cache.images, cache.masks, strict=True):
        small = np.asarray(Image.open(case["image"]).resize((5, 5), Image.Resampling.BILINEAR)).astype(int)
        assert abs(image.permute(1, 2, 0).numpy() - small).max() <= 1
        if case["mask"]:
            near = Image.open(case["mask"]).resize((5, 5), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(inside[0], np.asarray(near) > 0)


def test_patches_of_many_sizes_can_be_resized_to_one(tmp_path):
    cases = [entry(tmp_path, f"{size}.png", size=size) for size in (8, 12, 30)]
    assert PatchCache(cases, size=12, progress=False).images.shape == (3, 3, 12, 12)


def test_threads_change_nothing(entries):
    one, threads = PatchCache(entries, progress=False), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = PatchCache(entries, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.images[:], two.images[:])


def test_labels_may_be_missing(tmp_path, entries):
    unlabelled = entry(tmp_path, "u.png")
    cache = PatchCache([*entries[:2], unlabelled], progress=False)
    assert cache.labels.tolist() == [0, 1, -1] and cache.soft_labels[2].tolist() == [0, 0]
    alone = PatchCache([unlabelled], progress=False)
    assert alone.labels is None and alone.soft_labels is None


def test_more_than_two_classes_have_no_votes(entries):
    plain = [{**case, "soft_label": None, "label": i % 3} for i, case in enumerate(entries)]
    assert PatchCache(plain, num_classes=3, progress=False).soft_labels[2].tolist() == [0, 0, 1]
    with pytest.raises(DataError, match=r"b\.png: soft_label is the share of votes for one of two classes, .* are 3"):
        PatchCache(entries, num_classes=3, progress=False)


def test_all_problems_are_reported_at_once(tmp_path, entries):
    Image.new("RGB", (12, 10)).save(tmp_path / "oblong.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:90])
    other = entry(tmp_path, "other.png", size=14)
    Image.new("L", (9, 12)).save(tmp_path / "small-mask.png")
    masked = {**entries[1], "mask": str(tmp_path / "small-mask.png")}
    broken = [{"image": str(tmp_path / name)} for name in ("oblong.png", "torn.png", "none.png")]
    with pytest.raises(DataError) as caught:
        PatchCache([broken[0], entries[0], other, *broken[1:], masked], mask=True, progress=False)
    expected = (
        "oblong.png: patches are square, this one has 12 x 10 pixels; cut or pad it.",
        "other.png: 14 x 14 pixels, but the patches before it have 12 x 12; set the cache's size to resize",
        "torn.png: cannot be read",
        "none.png: no such file",
        "small-mask.png: a mask has as many pixels as its image (12 x 12), this one has 9 x 12.",
    )
    assert len(caught.value.problems) == len(expected)
    for problem, words in zip(caught.value.problems, expected, strict=True):
        assert words in problem


def test_an_empty_list_is_refused():
    with pytest.raises(DataError, match="no patch to read"):
        PatchCache([])


def test_images_are_indexed_as_a_tensor_is(entries):
    images = PatchCache(entries, progress=False).images
    whole = torch.stack([pixels(case["image"]) for case in entries])
    assert images.shape == whole.shape and images.dtype == whole.dtype and len(images) == 5
    for index in (2, -1, np.int64(3), torch.tensor(1), slice(1, 4), [3, 0], torch.tensor([4, 4, 0]), slice(9, 9)):
        assert torch.equal(images[index], whole[index])
    assert torch.equal(torch.stack(list(images)), whole)


def test_a_copy_on_a_device_serves_all_lists_of_the_same_patches(entries):
    cache = DiskCache(None)
    long, short = (PatchCache(part, progress=False, disk_cache=cache) for part in (entries, [entries[3], entries[1]]))
    device = torch.device("cpu")
    assert short.images.shared_copy(device) is None
    copy = long.images.copy_to(device)
    shared = short.images.shared_copy(device)
    assert shared.images is copy.images and long.images.shared_copy(torch.device("meta")) is None
    assert torch.equal(copy[torch.tensor([4, 0])], long.images[[4, 0]])
    assert torch.equal(shared[torch.tensor([1, 0, 1])], long.images[[1, 3, 1]])
    assert long.images.to("cpu") is long.images


@pytest.mark.parametrize(("free", "copied"), [(4 * 5 * 432, True), (4 * 5 * 432 - 4, False)])
def test_patches_go_to_a_gpu_where_a_quarter_of_it_holds_them(entries, free, copied, monkeypatch):
    images = PatchCache(entries, progress=False).images
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    monkeypatch.setattr(PatchImages, "copy_to", lambda self, device: "a copy")
    assert images.to("cuda:0") is ("a copy" if copied else images)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    found = []
    monkeypatch.setattr(PatchImages, "copy_to", lambda self, device: found.append(device))
    images.to("cuda")
    assert found == [torch.device("cuda:1")] * copied  # as tensors name theirs, or no list would find the copy


# --- its rows -----------------------------------------------------------------------------------------------------


def test_a_batch_is_the_caches_rows(entries):
    cache = PatchCache(entries, progress=False)
    batch = PatchRows(cache, [4, 1, 3]).__getitems__([2, 0])
    assert batch["row"].tolist() == [3, 4] and torch.equal(batch["image"], cache.images[[3, 4]])
    assert batch["label"].tolist() == [1, 0] and batch["soft_label"].tolist() == [[0.75, 0.25], [1, 0]]
    assert set(batch) == {"image", "row", "label", "soft_label"} and batch["image"].dtype == torch.uint8


def test_items_collate_to_the_same_batch_and_names_come_when_asked_for(entries):
    rows = PatchRows(PatchCache(entries, progress=False), names=True)
    batch, items = rows.__getitems__([1, 4]), collate_patches([rows[1], rows[4]])
    assert batch["patient"] == items["patient"] == ["P-b", "P-e"]
    assert batch["path"] == items["path"] == [entries[1]["image"], entries[4]["image"]]
    for key in ("image", "row", "label", "soft_label"):
        assert torch.equal(batch[key], items[key])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_forms_whole_batches(entries, workers, monkeypatch):
    rows = PatchRows(PatchCache(entries, progress=False))
    monkeypatch.setattr(PatchRows, "__getitem__", None)  # only whole batches are asked for
    loader = DataLoader(
        rows,
        batch_size=2,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        num_workers=workers,
        collate_fn=collate_patches,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(loader)
    assert [len(batch["image"]) for batch in batches] == [2, 2, 1]
    seen = torch.cat([batch["row"] for batch in batches])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4] and seen.tolist() != [0, 1, 2, 3, 4]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), rows.images[seen])


def test_labels_are_given_where_every_row_has_one(tmp_path, entries):
    cache = PatchCache([*entries, entry(tmp_path, "u.png")], progress=False)
    assert "label" not in PatchRows(cache).__getitems__([0, 1])
    assert PatchRows(cache, torch.arange(5)).__getitems__([0, 1])["label"].tolist() == [0, 1]
    with pytest.raises(DataError, match="Classes can only be balanced where every patch has a label"):
        _ = PatchRows(cache).balanced_weights


def test_balanced_weights_draw_every_class_equally_often(entries):
    rows = PatchRows(PatchCache(entries, progress=False), [0, 1, 2, 3])
    torch.testing.assert_close(rows.balanced_weights, torch.tensor([1, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    sampler = WeightedRandomSampler(rows.balanced_weights, 4000, generator=torch.Generator().manual_seed(0))
    drawn = rows.__getitems__(list(sampler))["label"].float()
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
