"""What is kept on disk is what would be read; whatever could change the result makes it anew."""

import logging
import multiprocessing
import os
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Lambdad, MapTransform, RandGaussianNoised

from shared.data import CaseDataset, DiskCache, GliomaCases, PatchCache, PatchDatalist
from shared.data import disk_cache as module
from shared.data.fingerprint import fingerprint
from shared.errors import DataError
from shared.transforms import LoadCased, LoadGliomad, PrepareGliomad, ROISlicesd
from tests.support.tiny import affine_of, ball, save, texture, write_case
from tests.support.tiny_brain import tiny_atlas
from tests.support.tiny_glioma import write_case as write_glioma
from tests.support.tiny_patches import write_patch_data

GLIOMA = {"size": 16, "num_points": 32, "radii": (8.0, 14.0), "num_voxels": 8}


def read(cases, folder, **roi):
    """The dataset and its cache."""
    cache = None if folder is None else DiskCache(folder)
    roi = {"num_slices": 3, "size": 16, **roi}
    return CaseDataset(cases, [LoadCased(), ROISlicesd(**roi)], progress=False, disk_cache=cache), cache


def same(one, other, place="item"):
    """Bitwise, with the types."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert set(one) == set(other), place
        for key in one:
            same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for k, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{place}.{k}")
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all()), place
    elif hasattr(one, "voxels"):
        same(one.voxels, other.voxels, place)
        same(one.index, other.index, place)
    elif hasattr(one, "__dlpack__"):
        same(torch.as_tensor(one), torch.as_tensor(other), place)
    else:
        assert one == other, place


@pytest.fixture
def cases(tmp_path):
    return [
        {**write_case(tmp_path / "data", f"P{k}", modalities=2, seed=k), "fold": k, "covariates": {"age": 40.0 + k}}
        for k in range(2)
    ]


def test_what_is_read_is_bitwise_what_was_cut(tmp_path, cases):
    plain, _ = read(cases, None)
    first, cache = read(cases, tmp_path / "cache")
    again, second = read(cases, tmp_path / "cache")
    assert (cache.hits, cache.made, second.hits, second.made) == (0, 2, 2, 0)
    for k in range(2):
        same(plain[k], first[k])
        same(plain[k], again[k])


def test_a_glioma_patient_is_bitwise_the_same_and_shares_its_voxels(tmp_path):
    atlas = tiny_atlas()
    entry = write_glioma(tmp_path, "P0", 0, 50)
    entry = {**entry, "image": [str(tmp_path / path) for path in entry["image"]]}
    entry |= {"mask": str(tmp_path / entry["mask"]), "fa": str(tmp_path / entry["fa"])}
    made = []
    for folder in (None, tmp_path / "cache", tmp_path / "cache"):
        steps = [LoadGliomad(tiny_atlas(), fa="known"), PrepareGliomad(tiny_atlas(), **GLIOMA)]
        made.append(GliomaCases([entry], steps, progress=False, disk_cache=DiskCache(folder)))
    for other in made[1:]:
        same(made[0].items[0], other.items[0])
    item = made[2].items[0]
    assert made[2]._disk_cache.hits == 1 and torch.as_tensor(item["fa_rows"]).shape == (atlas.num_tracts, 8)
    assert item["region_rows"].voxels.data_ptr() == item["tract_rows"].voxels.data_ptr()
    assert item["tract_rows"].index.data_ptr() == made[2].transform.transforms[1].constants[1].data_ptr()


def test_used_transforms_are_told_as_new_ones(cases):
    steps = [LoadCased(), ROISlicesd(3, size=16)]
    before = fingerprint(steps)
    steps[1](steps[0](cases[0]))
    assert fingerprint(steps) == before == fingerprint([LoadCased(), ROISlicesd(3, size=16)])


def test_labels_folds_and_covariates_are_the_datalists_of_now(tmp_path, cases):
    read(cases, tmp_path / "cache")
    other = {"fold": 7, "group": "G", "covariates": {"age": 1.0}}
    changed = [{**case, "label": 1 - case["label"], **other} for case in cases]
    again, cache = read(changed, tmp_path / "cache")
    assert cache.made == 0 and again[0]["label"] == 1 - cases[0]["label"] and again[0]["fold"] == 7
    assert again[0]["group"] == "G"


def test_content_changed_under_the_same_size_and_time_stamp_is_read_again(tmp_path):
    folder = tmp_path / "data"
    case = write_case(folder, "P0")
    path = folder / "P0.nii"  # not compressed: as many bytes whatever it holds
    nib.save(nib.Nifti1Image(texture(seed=0), affine_of()), path)
    case["image"] = [str(path)]
    first, _ = read([case], tmp_path / "cache")
    time.sleep(module.YOUNG)
    read([case], tmp_path / "cache")  # now the digest is remembered
    stat = path.stat()
    nib.save(nib.Nifti1Image(texture(seed=1), affine_of()), path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    again, cache = read([case], tmp_path / "cache")
    assert cache.made == 1 and not torch.equal(first[0]["image"], again[0]["image"])
    same(again[0], read([case], None)[0][0])


@pytest.mark.parametrize(
    "roi", [{"margin": 0.3}, {"size": 20}, {"roi": "fixed_mm"}, {"num_slices": 2}, {"normalise": "organ"}, {"tails": 0}]
)
def test_another_setting_of_the_region_is_cut_anew(tmp_path, cases, roi):
    read(cases, tmp_path / "cache")
    again, cache = read(cases, tmp_path / "cache", **roi)
    assert cache.made == 2
    same(again[0], read(cases, None, **roi)[0][0])


@pytest.mark.parametrize(
    "change",
    [
        lambda case: {**case, "image": case["image"][::-1]},
        lambda case: {**case, "tumour_labels": [1]},
        lambda case: {**case, "trust_affines": True},
        lambda case: {key: value for key, value in case.items() if key != "mask"},
    ],
    ids=["order of modalities", "labels of the mask", "trusted affines", "no mask"],
)
def test_whatever_the_datalist_says_of_the_files_counts(tmp_path, cases, change):
    read(cases, tmp_path / "cache")
    changed = [change(case) for case in cases]
    again, cache = read(changed, tmp_path / "cache")
    assert cache.made == 2
    same(again[0], read(changed, None)[0][0])


def test_another_mask_is_cut_anew(tmp_path, cases):
    read(cases, tmp_path / "cache")
    save(cases[0]["mask"], ball(radius=4.0))
    again, cache = read(cases, tmp_path / "cache")
    assert (cache.hits, cache.made) == (1, 1)
    same(again[0], read(cases, None)[0][0])


def test_another_atlas_and_other_numbers_count_but_not_where_the_atlas_lies():
    def told(atlas, **settings):
        return fingerprint([LoadGliomad(atlas), PrepareGliomad(atlas, **{**GLIOMA, **settings})])

    one, moved, other = tiny_atlas(), tiny_atlas(), tiny_atlas()
    moved.source = "elsewhere.npz"
    other.probabilities = other.probabilities * 0.9
    assert told(one) == told(moved) != told(other)
    assert len({told(one), told(one, seed=1), told(one, num_voxels=9), told(one, outside="keep")}) == 4
    assert fingerprint(LoadGliomad(one)) != fingerprint(LoadGliomad(one, margin=5.0)) != fingerprint(LoadGliomad(other))
    # what a transform remembers of the patients it saw is no setting
    prepare, before = PrepareGliomad(one, **GLIOMA), told(one)
    prepare.crop.clipped.add("P1")
    prepare.regions(torch.zeros(1, *one.shape))
    assert one.matrix is not None and fingerprint([LoadGliomad(one), prepare]) == before


def test_other_code_or_libraries_cut_anew(tmp_path, cases, monkeypatch):
    read(cases, tmp_path / "cache")
    monkeypatch.setattr(module, "code_version", lambda: "another")
    assert read(cases, tmp_path / "cache")[1].made == 2


def test_the_version_is_of_every_module_that_reads(monkeypatch, tmp_path):
    told = module.code_version()
    assert all(f"{name}.py:" in told for name in ("data/masks", "data/volumes", "transforms/roi_slices"))
    assert "data/patches/reading.py:" in told and "transforms/glioma/tumour_crop.py:" in told and "nibabel==" in told


@pytest.mark.parametrize("place", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["flipped", "cut off", "empty"])
def test_a_damaged_entry_is_made_anew(tmp_path, cases, place, kind):
    read(cases[:1], tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*/*.npz")
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] ^= 0xFF
    path.write_bytes({"flipped": content, "cut off": content[:at], "empty": b""}[kind])
    again, cache = read(cases[:1], tmp_path / "cache")
    same(again[0], read(cases[:1], None)[0][0])
    assert cache.hits + cache.made == 1
    third, cache = read(cases[:1], tmp_path / "cache")
    same(third[0], again[0])
    assert cache.hits == 1


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    cache = DiskCache(tmp_path / "cache")
    file = tmp_path / "a.txt"
    file.write_text("a")
    entry = {"image": str(file), "patient": "P1"}

    def made(case):
        return {**case, "values": np.arange(40.0), "inner": {"tensor": torch.arange(5)}}

    cache(entry, "s", made)
    (path,) = (tmp_path / "cache").glob("*/*.npz")
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        same(made(dict(entry)), cache(entry, "s", made))


def test_nothing_is_unpickled(tmp_path, cases, monkeypatch):
    read(cases, tmp_path / "cache")
    monkeypatch.setattr("pickle.load", lambda *_: 1 / 0)
    monkeypatch.setattr("pickle.loads", lambda *_: 1 / 0)
    assert read(cases, tmp_path / "cache")[1].hits == 2
    (path, *_) = (tmp_path / "cache").glob("*/*.npz")
    np.savez(path, tree=np.array([{"evil": 1}], dtype=object))
    assert read(cases, tmp_path / "cache")[1].made == 1


def test_the_folder_may_be_deleted_at_any_time_and_renamed_with_the_data(tmp_path, cases):
    import shutil

    read(cases, tmp_path / "data" / ".cache")
    (tmp_path / "data").rename(tmp_path / "moved")
    text = str(tmp_path / "data")
    moved = [{k: _moved(v, text, str(tmp_path / "moved")) for k, v in case.items()} for case in cases]
    again, cache = read(moved, tmp_path / "moved" / ".cache")
    assert cache.hits == 2 and again[0]["geometry"]["source"]["path"] == moved[0]["image"][0]
    shutil.rmtree(tmp_path / "moved" / ".cache")
    same(CaseDataset(moved, again.transform, progress=False, disk_cache=cache)[0], again[0])


def _moved(value, old, new):
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    return value.replace(old, new) if isinstance(value, str) else value


def test_used_longest_ago_is_removed_first(tmp_path):
    files = [tmp_path / f"{k}.txt" for k in range(6)]
    for k, file in enumerate(files):
        file.write_text(str(k))
    cache = DiskCache(tmp_path / "cache", limit_gb=45e-6)  # four entries of ten kB

    def ask(k):
        before = cache.made
        cache({"image": str(files[k])}, "s", lambda case: {"a": np.zeros(1250)})
        for path in (tmp_path / "cache").glob("*/*.npz"):
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**9))
        return cache.made > before

    assert all(ask(k) for k in range(4))
    assert not ask(0) and ask(4)
    cache.tidy()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.npz")) <= cache.limit
    assert not ask(0) and not ask(4) and ask(1)


def test_an_entry_that_finds_no_room_is_told_once(tmp_path, cases, caplog):
    with caplog.at_level(logging.WARNING):
        items = CaseDataset(
            cases,
            [LoadCased(), ROISlicesd(3, size=16)],
            progress=False,
            disk_cache=DiskCache(tmp_path / "c", limit_gb=0),
        )
    assert len(items) == 2 and len([line for line in caplog.messages if "nothing more is kept" in line]) == 1


def test_a_folder_that_cannot_be_written_to_is_told_once_and_read(tmp_path, cases, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        plain, cache = read(cases, tmp_path / "file" / "x" / "cache")
    assert len([line for line in caplog.messages if "nothing more is kept" in line]) == 1 and cache.made == 2
    same(plain[0], read(cases, None)[0][0])


def test_warnings_are_told_again(tmp_path, caplog):
    case = write_case(tmp_path / "data", "P0")
    settings = {"roi": "fixed_mm", "extent_mm": 4.0}
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            _, cache = read([case], tmp_path / "cache", **settings)
        assert [line for line in caplog.messages if "more than the window of 4 mm" in line]
    assert cache.hits == 1


def test_a_file_exchanged_while_it_is_read_is_not_kept(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("a")
    cache = DiskCache(tmp_path / "cache")

    def made(case):
        file.write_text("b")
        return {"text": file.read_text()}

    cache({"image": str(file)}, "s", made)
    assert not list((tmp_path / "cache").glob("*/*.npz"))


def test_transforms_whose_settings_cannot_be_told_are_not_kept(tmp_path, cases):
    for step in (Lambdad("image", lambda image: image + 1), Seen()):
        cache = DiskCache(tmp_path / "cache")
        CaseDataset(cases, [LoadCased(), step], progress=False, disk_cache=cache)
        assert cache.made == cache.hits == 0


class Seen(MapTransform):
    """Holds a generator."""

    def __init__(self):
        super().__init__(["image"])
        self.state = (k for k in range(3))

    def __call__(self, data):
        return data


def test_only_what_comes_before_the_first_random_transform_is_kept(tmp_path, cases):
    steps = [LoadCased(), ROISlicesd(3, size=16), RandGaussianNoised("image", prob=1.0)]
    for made in (2, 0):
        cache = DiskCache(tmp_path / "cache")
        items = CaseDataset(cases, steps, progress=False, disk_cache=cache)
        assert cache.made == made
    assert not torch.equal(torch.as_tensor(items[0]["image"]), torch.as_tensor(items[0]["image"]))


def _train(folder, cases, out):
    items, _ = read(cases, folder)
    out.put([float(items[k]["image"].double().sum()) for k in range(len(items))])


def test_several_processes_share_the_folder(tmp_path, cases):
    expected = [float(item["image"].double().sum()) for item in read(cases, None)[0]]
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    processes = [context.Process(target=_train, args=(tmp_path / "cache", cases, out)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [out.get(timeout=60) for _ in processes] == [expected] * 4
    for process in processes:
        process.join(60)
    assert len(list((tmp_path / "cache").glob("*/*"))) == 2


def test_what_a_killed_process_left_is_removed(tmp_path, cases):
    read(cases, tmp_path / "cache")
    (path, *_) = (tmp_path / "cache").glob("*/*.npz")
    left = path.with_name(".12345678." + path.name)
    left.write_bytes(b"half")
    young = path.with_name(".87654321." + path.name)
    young.write_bytes(b"half")
    os.utime(left, (1, 1))
    read(cases, tmp_path / "cache", size=20)
    assert not left.exists() and young.exists()


def patches(folder, cache):
    """The checked datalist and its decoded patches."""
    found = PatchDatalist(folder, fold=-1, disk_cache=cache)
    return found, PatchCache(found.training, progress=False, disk_cache=cache)


def test_patches_are_decoded_once_for_the_check_and_all_caches(tmp_path, monkeypatch):
    from shared.data.patches import reading

    write_patch_data(tmp_path)
    plain, images = patches(tmp_path, None)
    read, before = [], reading._read_patch
    monkeypatch.setattr(reading, "_read_patch", lambda path: read.append(path) or before(path))
    cache = DiskCache(tmp_path / ".cache")
    found, first = patches(tmp_path, cache)
    PatchCache(found.pretraining, size=16, progress=False, disk_cache=cache)
    every = len(plain.training) + len(plain.testing) + len(plain.unlabelled)
    assert len(read) == len(set(read)) == every
    second, again = patches(tmp_path, DiskCache(tmp_path / ".cache"))
    assert len(read) == every
    assert torch.equal(images.images[:], first.images[:]) and torch.equal(images.images[:], again.images[:])
    assert plain.pretraining == found.pretraining == second.pretraining
    assert plain.patch_size == second.patch_size and isinstance(second.patch_size, tuple)


def test_a_patch_of_other_content_or_a_broken_one_is_decoded_anew(tmp_path):
    content = write_patch_data(tmp_path)
    patches(tmp_path, DiskCache(tmp_path / ".cache"))
    path, other = (tmp_path / content["training"][k]["image"] for k in (0, 3))
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    for _ in range(2):
        with pytest.raises(DataError, match="cannot be read"):
            patches(tmp_path, DiskCache(tmp_path / ".cache"))
    path.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="the same image has labels"):
        patches(tmp_path, DiskCache(tmp_path / ".cache"))


def test_all_lists_of_a_datalist_share_one_file_of_pixels(tmp_path):
    write_patch_data(tmp_path)
    for start in range(2):
        cache = DiskCache(tmp_path / ".cache", memory_gb=0)
        found = PatchDatalist(tmp_path, fold=-1, disk_cache=cache)
        lists = [found.pretraining, found.training, found.testing]
        made = [PatchCache(entries, progress=False, disk_cache=cache) for entries in lists]
        assert cache.made == 1 - start
        assert len({id(one.images.pixels) for one in made}) == 1 and made[0].images.pixels.path is not None
        for entries, one in zip(lists, made, strict=True):
            assert torch.equal(one.images[:], PatchCache(entries, progress=False).images[:])
    (file,) = (tmp_path / ".cache").glob("*/*.pixels")
    every = len(found.training) + len(found.testing) + len(found.unlabelled)
    assert file.stat().st_size == every * 3 * found.patch_size[0] ** 2


def test_resized_patches_are_shared_too(tmp_path):
    write_patch_data(tmp_path)
    cache = DiskCache(None)
    found = PatchDatalist(tmp_path, fold=-1, disk_cache=cache)
    first, second = (
        PatchCache(entries, size=8, progress=False, disk_cache=cache) for entries in (found.pretraining, found.training)
    )
    assert first.images.pixels is second.images.pixels and len(second.images) < len(first.images)
    assert torch.equal(second.images[:], PatchCache(found.training, size=8, progress=False).images[:])


def test_patches_beyond_the_memory_are_in_a_temporary_file_or_refused(tmp_path, monkeypatch, caplog):
    write_patch_data(tmp_path)
    entries = PatchDatalist(tmp_path, fold=-1).training
    cache = PatchCache(entries, progress=False, disk_cache=DiskCache(None, memory_gb=1e-6))
    assert "GB of decoded patches until this process ends (cache_dir is not set)" in caplog.text
    assert cache.images.pixels._file is not None and cache.images.pixels.path is None
    assert torch.equal(cache.images[:], PatchCache(entries, progress=False).images[:])
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=module.KEPT_FREE))
    for folder, why in ((None, "cache_dir is not set"), (tmp_path / "c", "nothing can be kept in .*/c, see above")):
        with pytest.raises(DataError, match=rf"more than memory_gb \(1e-06\), .*: {why}, .* Set cache_dir"):
            PatchCache(entries, progress=False, disk_cache=DiskCache(folder, memory_gb=1e-6))


def test_without_room_in_the_folder_patches_are_decoded_once_a_start(tmp_path, monkeypatch, caplog):
    from shared.data.patches import reading

    write_patch_data(tmp_path)
    read, before = [], reading._read_patch
    monkeypatch.setattr(reading, "_read_patch", lambda path: read.append(path) or before(path))
    found, first = patches(tmp_path, DiskCache(tmp_path / ".cache", limit_gb=0))
    assert len([line for line in caplog.messages if "nothing more is kept" in line]) == 1
    assert len(read) == len(set(read)) and torch.equal(first.images[:], PatchCache(found.training).images[:])
    assert not list((tmp_path / ".cache").rglob("*.pixels"))


@pytest.mark.parametrize("damage", ["removed", "cut off", "flipped"])
def test_damaged_pixels_are_never_used(tmp_path, damage):
    write_patch_data(tmp_path)
    _, plain = patches(tmp_path, None)
    patches(tmp_path, DiskCache(tmp_path / ".cache"))
    (file,) = (tmp_path / ".cache").glob("*/*.pixels")
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[:-1])
    if damage == "flipped":
        with pytest.raises(DataError, match="start again"):
            every = PatchDatalist(tmp_path, fold=-1, disk_cache=(cache := DiskCache(tmp_path / ".cache")))
            for part in (every.pretraining, every.testing):
                PatchCache(part, progress=False, disk_cache=cache).images[:]
    cache = DiskCache(tmp_path / ".cache")
    assert torch.equal(patches(tmp_path, cache)[1].images[:], plain.images[:]) and cache.made == 1


def test_an_interrupted_decoding_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    from shared.data.patches import reading

    write_patch_data(tmp_path)
    read, before = [], reading._read_patch

    def stopped(path):
        read.append(path)
        if len(read) == 5:
            raise KeyboardInterrupt
        return before(path)

    monkeypatch.setattr(reading, "_read_patch", stopped)
    with pytest.raises(KeyboardInterrupt):
        patches(tmp_path, DiskCache(tmp_path / ".cache"))
    assert not list((tmp_path / ".cache").rglob("*.pixels")) and not list((tmp_path / ".cache").rglob("*.npz"))
    left = tmp_path / ".cache" / "new" / ".0.pixels"  # of a process that was killed
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    cache = DiskCache(tmp_path / ".cache")
    patches(tmp_path, cache)
    assert cache.made == 1 and not left.exists()


def test_pixels_count_towards_the_limit(tmp_path):
    write_patch_data(tmp_path)
    patches(tmp_path, DiskCache(tmp_path / ".cache"))
    (file,) = (tmp_path / ".cache").glob("*/*.pixels")
    (tmp_path / "a.txt").write_text("a")
    cache = DiskCache(tmp_path / ".cache", limit_gb=file.stat().st_size / 2e9)
    cache({"image": str(tmp_path / "a.txt")}, "s", lambda case: {"a": np.zeros(file.stat().st_size // 20)})
    cache.tidy()
    assert not file.exists()
