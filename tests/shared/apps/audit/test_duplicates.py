"""Near-duplicates: found after re-encoding, gain and resizing, also in thousands; other pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image

from shared.apps.audit import duplicates
from shared.apps.audit.duplicates import hash_pairs, near_duplicates, patch_thumbnail, perceptual_hash
from shared.apps.audit.rows import AuditCohort, AuditRow
from shared.errors import DataError


def tissue(seed, side=96):
    """A smooth random picture, 8-bit RGB."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    smooth = gaussian_filter(noise, (3, 3, 0)) + 0.3 * gaussian_filter(noise, (1, 1, 0))
    return np.clip(150 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def encoded(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return np.asarray(Image.open(file).convert("RGB"))


CHANGES = {
    "JPEG": lambda x: encoded(x, format="JPEG", quality=60),
    "gain": lambda x: np.clip(x * 0.85 + 12, 0, 255).astype(np.uint8),
    "smaller": lambda x: np.asarray(Image.fromarray(x).resize((71, 71), Image.Resampling.BICUBIC)),
    "noise": lambda x: np.clip(x + np.random.default_rng(9).normal(0, 8, x.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change, tmp_path):
    pictures = [tissue(seed) for seed in range(30)]
    pictures.append(CHANGES[change](pictures[4]))
    paths = [tmp_path / f"{k}.png" for k in range(31)]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    found = near_duplicates(np.stack([patch_thumbnail(path) for path in paths]), "patch")
    assert [(pair.first, pair.other, pair.same) for pair in found] == [(4, 30, True)]


def test_a_view_is_made_once_and_a_row_without_it_has_none(tmp_path, monkeypatch):
    """A table of all rows for each row would take hours of thousands of patches."""
    rows = [AuditRow(f"r{k}", f"P{k}", f"P{k}", "training", "training", 0, (), None, k) for k in range(6)]
    cohort = AuditCohort(tmp_path, tmp_path, tuple(rows), True, False)
    made, full = [], np.full
    monkeypatch.setattr(duplicates, "_patch", lambda row, _: {"patch": full((64, 64), row.place)} if row.place else {})
    monkeypatch.setattr(np, "full", lambda *given: made.append(given) or full(*given))
    found = duplicates.thumbnails_of(cohort)["patch"]
    assert len(made) == 1 and np.isnan(found[0]).all() and [float(x[0, 0]) for x in found[1:]] == [1, 2, 3, 4, 5]


def test_a_turned_copy_is_found_where_asked_for():
    thumbnails = np.stack([tissue(seed, 64).mean(-1) for seed in range(25)])
    thumbnails = np.concatenate([thumbnails, np.rot90(thumbnails[7, :, ::-1])[None]])
    assert not near_duplicates(thumbnails, "patch")
    found = near_duplicates(thumbnails, "patch", turned=True)
    assert [(pair.first, pair.other) for pair in found] == [(7, 25)] and found[0].correlation > 0.999


def test_what_all_share_makes_no_pair():
    """Brains on one grid: most of each slice is the same, the rest is not."""
    common = 6 * tissue(99, 64).mean(-1)
    thumbnails = np.stack([common + tissue(seed, 64).mean(-1) for seed in range(40)])
    flat = thumbnails.reshape(40, -1)
    assert np.corrcoef(flat)[np.triu_indices(40, 1)].min() > duplicates.SAME[0]
    assert not near_duplicates(thumbnails, "slice")
    assert [(p.first, p.other) for p in near_duplicates(np.concatenate([thumbnails, 0.9 * thumbnails[:1]]), "s")] == [
        (0, 40)
    ]


def test_pictures_that_share_much_of_their_own_are_to_be_looked_at():
    common = 6 * tissue(99, 64).mean(-1)
    thumbnails = [common + tissue(seed, 64).mean(-1) for seed in range(40)]
    thumbnails.append(common + 0.8 * tissue(3, 64).mean(-1) + 0.6 * tissue(77, 64).mean(-1))
    found = near_duplicates(np.stack(thumbnails), "slice")
    assert [(pair.first, pair.other, pair.same) for pair in found] == [(3, 40, False)]
    assert found[0].correlation > duplicates.SAME[0] and duplicates.ALIKE[1] <= found[0].own < duplicates.SAME[1]


def test_flat_and_missing_pictures_are_no_pairs():
    thumbnails = np.stack([np.full((64, 64), 200.0)] * 3 + [np.full((64, 64), np.nan)] * 2)
    assert not near_duplicates(thumbnails, "patch")


def test_hashes_are_compared_each_with_each():
    hashes = np.random.default_rng(0).integers(0, 2**63, 1500, dtype=np.uint64)  # three blocks
    hashes[[3, 700, 1499]] = [5, 5, 4]
    naive = [
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(hashes)
        for j, b in enumerate(hashes[i + 1 :], i + 1)
        if (int(a) ^ int(b)).bit_count() <= 12
    ]
    assert sorted(hash_pairs(hashes, hashes, 12)) == naive and {(3, 700, 0), (700, 1499, 1)} <= set(naive)


def test_hash_is_that_of_the_definition():
    from scipy.fft import dct

    x = np.random.default_rng(1).random((1, 64, 64))
    low = dct(dct(x[0], axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    assert np.unpackbits(perceptual_hash(x).view(np.uint8)).tolist() == bits.astype(int).tolist()


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        patch_thumbnail(tmp_path / "a.png")
