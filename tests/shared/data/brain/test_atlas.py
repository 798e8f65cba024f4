import numpy as np
import pytest

from shared.data import TractAtlas
from shared.data.brain.mni import MNI_SHAPE, mni_affine
from shared.data.brain.tracts import number_regions
from shared.errors import DataError
from tests.references.brain_network import region_at, tracts_of
from tests.support.tiny_brain import (
    AFFINE,
    NAMES,
    PAIRS,
    SHAPE,
    centre,
    tiny_atlas,
    tiny_parcellation,
    tiny_streamlines,
)


def arrays(**changes):
    """What the container takes: two regions of one voxel each, one tract of both and what lies between."""
    given = {
        "pairs": [[0, 1]],
        "counts": [4],
        "starts": [0, 3],
        "voxels": [0, 1, 2],
        "probabilities": [1.0, 0.5, 1.0],
        "regions": np.array([1, 0, 2, 0]).reshape(4, 1, 1),
        "affine": np.eye(4),
        "names": ["a", "b"],
    }
    return {**given, **changes}


# --- from streamlines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "tolerance"), [(1, 0.0), (3, 2.0), (12, 1.0)])
def test_tracts_equal_those_counted_line_by_line(least, tolerance):
    labels, labels_affine = tiny_parcellation(range(1, 6))
    # some end beside their region, one within a region, one nowhere
    lines = [*tiny_streamlines(each=3, spread=1.5), np.array([centre(0), centre(0) + 1.0]), np.full((2, 3), 90.0)]
    wanted = tracts_of(lines, labels, labels_affine, SHAPE, AFFINE, least, tolerance)
    options = {"min_streamlines": least, "endpoint_tolerance": tolerance, "shape": SHAPE, "affine": AFFINE}
    if not wanted:
        with pytest.raises(DataError, match=f"no two regions are joined by {least} streamlines"):
            TractAtlas.from_streamlines(lines, labels, labels_affine, **options)
        return
    atlas = TractAtlas.from_streamlines(lines, labels, labels_affine, **options)
    assert [tuple(pair) for pair in (atlas.pairs + 1).tolist()] == list(wanted)
    assert atlas.counts.tolist() == [count for count, _ in wanted.values()]
    missed = total = 0
    for edge, (_, voxels) in enumerate(wanted.values()):
        found = dict(zip(*(values.tolist() for values in atlas.tract(edge)), strict=True))
        exact = {int(np.ravel_multi_index(voxel, SHAPE)): share for voxel, share in voxels.items()}
        assert set(found) <= set(exact)
        # a voxel whose corner a line cuts by less than a step may be missed
        missed += sum(share - found.get(voxel, 0.0) for voxel, share in exact.items())
        total += sum(exact.values())
    assert 0 <= missed < 0.05 * total


def test_the_end_of_a_streamline_belongs_to_the_nearest_region_within_the_tolerance():
    labels, affine = tiny_parcellation(range(1, 6))
    start, way = centre(0), np.array([1.0, 0.0, 0.0])
    for distance in np.arange(0.1, 9, 0.7):
        line = np.array([start + distance * way, centre(1)])
        for tolerance in (0.0, 2.0):
            found = region_at(line[0], labels, affine, tolerance)
            options = {"min_streamlines": 1, "endpoint_tolerance": tolerance, "shape": SHAPE, "affine": AFFINE}
            if found == 1:
                assert TractAtlas.from_streamlines([line], labels, affine, **options).pairs.tolist() == [[0, 1]]
            else:
                with pytest.raises(DataError, match="no two regions"):
                    TractAtlas.from_streamlines([line], labels, affine, **options)


def test_the_tiny_atlas_has_the_planted_pairs_whatever_the_order_and_direction_of_the_lines():
    atlas = tiny_atlas()
    assert [tuple(pair) for pair in atlas.pairs.tolist()] == PAIRS
    assert atlas.edge_index.tolist() == [[a for a, _ in PAIRS], [b for _, b in PAIRS]] and atlas.names == NAMES
    labels, affine = tiny_parcellation()
    lines = tiny_streamlines()
    turned = [lines[i][::-1] for i in np.random.default_rng(1).permutation(len(lines))]
    other = TractAtlas.from_streamlines(turned, labels, affine, shape=SHAPE, affine=AFFINE, names=NAMES)
    assert np.array_equal(other.pairs, atlas.pairs) and np.array_equal(other.counts, atlas.counts)
    # the steps start at the other end
    assert abs(other.matrix - atlas.matrix).sum() < 0.05 * atlas.matrix.sum()


def test_a_line_that_comes_back_counts_once_and_probabilities_are_shares():
    labels, affine = tiny_parcellation()
    there = np.linspace(centre(0), centre(1), 40)
    lines = [
        there,
        np.concatenate([there, there[::-1], there]),
        there + np.array([0, 0, 4.0]),
        there - np.array([0, 0, 4.0]),
    ]
    atlas = TractAtlas.from_streamlines(lines, labels, affine, shape=SHAPE, affine=AFFINE)
    assert set(atlas.probabilities.tolist()) == {0.25, 0.5} and atlas.counts.tolist() == [4]


def test_passing_joins_all_regions_on_the_way_by_the_part_between_them():
    labels, affine = tiny_parcellation()
    line = np.concatenate([np.linspace(centre(a), centre(b), 30) for a, b in ((0, 1), (1, 3))])
    given = {"shape": SHAPE, "affine": AFFINE, "min_streamlines": 1}
    ends = TractAtlas.from_streamlines([line], labels, affine, **given)
    passing = TractAtlas.from_streamlines([line], labels, affine, passing=True, **given)
    assert ends.pairs.tolist() == [[0, 3]] and passing.pairs.tolist() == [[0, 1], [0, 3], [1, 3]]
    first, whole, second = (set(passing.tract(edge)[0].tolist()) for edge in range(3))
    assert whole == first | second == set(ends.tract(0)[0].tolist())
    # they share the region they meet in and, on the coarser grid, voxels at its surface
    shared = atlas_labels(passing, first & second)
    assert {2} <= shared <= {0, 2} and 1 not in atlas_labels(passing, second) and 4 not in atlas_labels(passing, first)


def atlas_labels(atlas, voxels):
    return set(atlas.regions.ravel()[sorted(voxels)].tolist())


def test_by_default_the_grid_is_that_of_mni152_and_voxels_outside_it_are_left_out():
    labels, affine = tiny_parcellation()
    lines = [np.concatenate([line, [[200.0, 0, 0]], line[::-1][:1], line[-1:]]) for line in tiny_streamlines([(0, 1)])]
    atlas = TractAtlas.from_streamlines(lines, labels, affine)
    assert atlas.shape == MNI_SHAPE and np.array_equal(atlas.affine, mni_affine())
    assert atlas.regions.max() == 5 and atlas.voxels.max() < np.prod(MNI_SHAPE)
    assert atlas.names[0] == "region 2001"


# --- container ----------------------------------------------------------------------------------------------------


def test_it_comes_back_from_the_file_as_it_was_and_the_same_atlas_gives_the_same_bytes(tmp_path):
    atlas = tiny_atlas()
    atlas.save(tmp_path / "a.npz")
    again = TractAtlas.load(tmp_path / "a.npz")
    for name in ("pairs", "counts", "starts", "voxels", "probabilities", "regions", "affine"):
        assert np.array_equal(getattr(again, name), getattr(atlas, name)), name
    assert again.names == atlas.names and again.summary() == atlas.summary()
    again.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_map_of_one_tract_is_its_probabilities():
    atlas = tiny_atlas()
    voxels, probabilities = atlas.tract(2)
    volume = atlas.volume(np.eye(5)[2])
    assert np.allclose(volume.ravel()[voxels], probabilities) and np.count_nonzero(volume) == len(voxels)
    both = atlas.volume(2 * np.eye(5)[2] + 3 * np.eye(5)[0])
    assert np.allclose(both, 2 * volume + 3 * atlas.volume(np.eye(5)[0]))


def test_the_centre_of_a_region_is_the_mean_of_its_voxels_in_mm():
    atlas = tiny_atlas()
    for region, found in enumerate(atlas.centres):
        voxels = np.argwhere(atlas.regions == region + 1)
        np.testing.assert_allclose(found, (voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]).mean(axis=0), atol=1e-9)


def test_its_figures():
    summary = TractAtlas(**arrays()).summary()
    assert (summary["tracts"], summary["median_voxels"], summary["median_voxels_outside_regions"]) == (1, 3, 1)
    assert summary["regions_with_tract"] == 2 and summary["under_20_streamlines"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": [[1, 0]]}, "the smaller first; got [[1, 0]]"),
        ({"pairs": [[0, 2]]}, "two regions of 0 to 1"),
        ({"pairs": np.zeros((0, 2))}, "has no tract"),
        ({"pairs": [[0, 1], [0, 1]], "counts": [4, 4], "starts": [0, 2, 3]}, "has two tracts; join them"),
        (
            {"pairs": [[0, 1], [0, 1]], "counts": [4, 4], "starts": [0, 3, 3]},
            "1 tract (tract 1 (0, 1)) without a voxel",
        ),
        ({"starts": [0, 2]}, "starts must ascend from 0 to the number of voxels 3"),
        ({"starts": [0, 1, 3]}, "must agree: got 1 pairs, 1 counts, 3 starts"),
        ({"voxels": [0, 1, 4]}, "voxels must lie in the grid (0 to 3), got up to 4"),
        ({"voxels": [0, 2, 1]}, "voxels of a tract must ascend"),
        ({"probabilities": [1.0, 0.0, 1.0]}, "probabilities must lie above 0 up to 1"),
        ({"probabilities": [1.0, np.nan, 1.0]}, "probabilities must lie above 0 up to 1"),
        ({"counts": [0]}, "every tract must have a streamline"),
        ({"names": ["a", "b", "c"]}, "1 region (c (3)) without a voxel on the grid; take a finer grid"),
        ({"names": ["a"]}, "regions must hold 0 to 1 (as many as names), got 0 to 2"),
        ({"affine": np.eye(3)}, "regions must be [X, Y, Z] and affine [4, 4]"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(DataError) as error:
        TractAtlas(**arrays(**changes), source="my atlas")
    assert message in str(error.value) and "my atlas: " in str(error.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(DataError) as error:
        TractAtlas(**arrays(counts=[0], voxels=[0, 1, 9], pairs=[[1, 0]]))
    assert len(error.value.problems) == 3


def test_other_files_are_no_atlas(tmp_path):
    with pytest.raises(DataError, match=r"no such tract atlas; make one with scripts/build_tract_atlas\.py"):
        TractAtlas.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", pairs=[[0, 1]])
    with pytest.raises(DataError, match=r"lacks counts, starts, .* so it is no tract atlas"):
        TractAtlas.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot be read as an \.npz"):
        TractAtlas.load(tmp_path / "text.npz")
    with pytest.raises(DataError, match=r"written as \.npz"):
        tiny_atlas().save(tmp_path / "atlas.npy")


def test_images_of_another_grid_are_refused():
    atlas = tiny_atlas(source="tiny.npz")
    atlas.check_grid(SHAPE, AFFINE)
    with pytest.raises(
        DataError, match=r"P7 must lie on the atlas's grid 14 x 16 x 12 \(tiny.npz\), but has 9 x 9 x 9"
    ):
        atlas.check_grid((9, 9, 9), what="P7")
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    with pytest.raises(DataError, match="P7 must lie on the atlas's grid, but its voxels lie elsewhere in space"):
        atlas.check_grid(SHAPE, flipped, what="P7")


def test_labels_are_numbered_in_their_order():
    labels, values = number_regions(np.array([0.0, -1, 7, 3, 7, 12]))
    assert labels.tolist() == [0, 0, 2, 1, 2, 3] and values == [3, 7, 12]
    with pytest.raises(DataError, match="has 1 labels, but 2 are asked for; lower --labels"):
        number_regions(np.array([0, 5]), labels=2)
    with pytest.raises(DataError, match="holds whole numbers"):
        number_regions(np.array([0, 0.5]))
    with pytest.raises(DataError, match="has 0 labels"):
        number_regions(np.zeros(3))


def test_names_are_given_by_label_too():
    labels, affine = tiny_parcellation()
    given = {"shape": SHAPE, "affine": AFFINE, "names": {2001: "one", 4101: "deep"}}
    assert TractAtlas.from_streamlines(tiny_streamlines(), labels, affine, **given).names == [
        "one",
        *(f"region {label}" for label in (2002, 2101, 2102)),
        "deep",
    ]


def test_a_volume_of_one_tract_is_that_tract():
    atlas = tiny_atlas()
    for edge in range(atlas.num_tracts):
        values = np.zeros(atlas.num_tracts)
        values[edge] = 3.0
        voxels, probabilities = atlas.tract(edge)
        expected = np.zeros(atlas.regions.size)
        expected[voxels] = 3.0 * probabilities
        np.testing.assert_allclose(atlas.volume(values).ravel(), expected, rtol=1e-6)
