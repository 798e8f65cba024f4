import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional

from shared.errors import DataError
from shared.explain import (
    AnswerLogit,
    BrainVolumes,
    ClassifierLogit,
    EncoderLogit,
    GliomaExplainer,
    write_explanation,
)
from shared.explain.glioma.explainer import _at_points
from shared.explain.glioma.files import title_of
from shared.explain.glioma.localisation import CONTRIBUTION, PlantedScores
from shared.explain.glioma.volumes import uncrop
from shared.networks.glioma.image_encoder import ImageEncoder
from shared.networks.glioma.network import GliomaInputs, GliomaOutput
from shared.networks.glioma.population_edges import graph_inputs
from shared.networks.glioma.population_graph import PopulationGraphClassifier
from shared.transforms.glioma.tumour_crop import crop_volume
from tests.support.tiny_brain import AFFINE, NAMES, tiny_atlas
from tests.support.tiny_brains import glioma_network
from tests.support.tiny_glioma_cases import CODES, SIZE, tiny_network, tiny_patient

EDGES = {"epochs": 20, "edge_size": 0.01}


@pytest.fixture(scope="module")
def atlas():
    return tiny_atlas()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return tiny_patient(tmp_path_factory.mktemp("patients"))


@pytest.fixture(scope="module")
def found(atlas, case):
    net = tiny_network(atlas)
    return GliomaExplainer(net, ClassifierLogit(net), block=0, edges=EDGES, steps=128)(case)


class Population(torch.nn.Module):
    """Answers as the bundle's classifier does: by the population graph, from the embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.population = PopulationGraphClassifier(96, edge_features=32, theta=0.0)
        self.population.set_bank(torch.randn(12, 96), torch.randn(12, 32))

    def classify(self, output, covariates=None):
        return self.population(*graph_inputs(output.u_tumour, output.u_brain, "both-brain"))[:, 0]


def test_all_parts_are_there_and_in_range(found, case, atlas):
    assert found.cam.shape == (SIZE,) * 3 and found.cam_grid == SIZE // 2
    assert found.cam.min() == 0 and found.cam.max() == 1
    empty = ~(case["image"] != 0).any(dim=0).numpy()
    assert empty.any() and not found.cam[empty].any()
    assert found.point_attention.shape == found.point_cam.shape == (96,) and found.point_cam.max() > 0
    assert found.edges.mask.shape == (atlas.num_tracts,) and found.edge_factor.shape == (atlas.num_tracts,)
    assert ((found.edges.mask >= 0) & (found.edges.mask <= 1)).all()
    assert found.node_attention.sum() == pytest.approx(1, abs=1e-5)
    assert found.predicted == int(found.logit > 0) and 0 < found.probability < 1


def test_the_map_is_the_gradient_times_the_activation(atlas, case):
    """Eq. 1 and 2 written out, for the class that is predicted."""
    net = tiny_network(atlas)
    image = case["image"][None]
    parts = {}
    handle = net.image_encoder.blocks[0].register_forward_hook(lambda m, i, o: parts.setdefault("a", o.clone()))
    rest = {key: case[key][None] for key in ("points", "nodes", "edges", "incidence")}
    logit = net(GliomaInputs(image=image, **rest)).logits
    handle.remove()
    activation = parts["a"].detach().requires_grad_()
    # the brain's attention passes no gradient back: only u^I changes
    rest_of = net.image_encoder.blocks[1](activation.clone()).flatten(1)
    u_image = net.image_encoder.head(rest_of)
    out = net(GliomaInputs(image=image, **rest))
    known = torch.cat([u_image, out.u_points, out.u_brain], dim=1)
    (gradient,) = torch.autograd.grad(net.classifier(known)[0, 0] * logit.sign()[0].detach(), activation)
    raw = (gradient.mean(dim=(2, 3, 4), keepdim=True) * activation).sum(dim=1, keepdim=True).relu().detach()
    up = functional.interpolate(raw, (SIZE,) * 3, mode="trilinear")[0, 0] * (image[0] != 0).any(dim=0)
    cam = GliomaExplainer(net, ClassifierLogit(net), block=0)(case).cam
    assert up.max() > 0
    torch.testing.assert_close(torch.from_numpy(cam), up / up.max(), rtol=1e-4, atol=1e-5)


def test_hot_is_what_speaks_for_the_predicted_class(atlas, case):
    """A network that counts what is bright in one corner of the tumour: the corner is hot, whichever class wins."""
    net = tiny_network(atlas, encoders=("image",))
    target = torch.zeros(SIZE // 2, SIZE // 2, SIZE // 2)
    target[2:4, 2:4, 3:5] = 1.0

    class Corner(torch.nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, output, case):
            return self.sign * output.u_image.sum(dim=1)

    class Masked(torch.nn.Module):
        def forward(self, x):
            return x * target

    net.image_encoder.head, net.image_encoder.blocks[1], net.classifier = torch.nn.Identity(), Masked(), None
    for sign in (1, -1):
        local = GliomaExplainer(net, Corner(sign), block=0, local=True)(case)
        assert local.predicted == (sign > 0)
        hot = np.argwhere(local.cam > 0.5) / 2
        assert len(hot) and (hot >= (1, 1, 2)).all() and (hot <= (5, 5, 6)).all()


def test_a_map_that_is_zero_stays_zero(atlas, case):
    net = tiny_network(atlas)
    dark = {**case, "image": torch.zeros_like(case["image"])}
    found = GliomaExplainer(net, ClassifierLogit(net), block=0)(dark)
    assert not found.cam.any() and not found.point_cam.any()


def test_the_map_at_the_points_is_read_by_the_crops_own_affine(atlas, case):
    """Voxels of 1.5 x 3 x 2 mm with the first axis to the left: a point's value is that of the voxel it lies in."""
    affine = np.diag([-1.5, 3.0, 2.0, 1.0])
    net = tiny_network(atlas)
    voxels = torch.randint(2, SIZE - 2, (96, 3), generator=torch.Generator().manual_seed(4))
    centre = torch.tensor([7.25, 8.5, 6.0])
    points = (voxels - centre) * torch.tensor([-1.5, 3.0, 2.0])
    given = {**case, "points": points, "graph": None, "centre": centre, "crop": {**case["crop"], "affine": affine}}
    found = GliomaExplainer(net, ClassifierLogit(net), block=0)(given)
    np.testing.assert_allclose(found.point_cam, found.cam[tuple(voxels.T.numpy())], atol=1e-5)
    assert found.point_cam.max() > 0.1


def test_classifiers_that_were_not_trained_explain_nothing_and_that_is_said(atlas, case, caplog):
    net = tiny_network(atlas, unimodal=True, classifiers=False)
    answer = tiny_network(atlas)
    with caplog.at_level("INFO"):
        found = GliomaExplainer(net, ClassifierLogit(answer), own=True, block=0)(case)
    assert net.classifier is None and found.own is None and "classifiers were not trained" in caplog.text


def test_the_population_graphs_answer_is_explained(atlas, case):
    net, answer = tiny_network(atlas, objective="contrastive"), Population().train()
    before = {name: value.clone() for name, value in answer.state_dict().items()}
    found = GliomaExplainer(net, AnswerLogit(answer), block=0, edges=EDGES)(case)
    again = GliomaExplainer(net, AnswerLogit(answer), block=0, edges=EDGES)(case)
    assert found.logit == again.logit and np.array_equal(found.cam, again.cam)  # no dropout
    assert torch.equal(found.edges.mask, again.edges.mask)
    assert answer.training and all(p.requires_grad and p.grad is None for p in answer.parameters())
    assert all(torch.equal(before[name], value) for name, value in answer.state_dict().items())
    out = net(GliomaInputs(**{key: case[key][None] for key in ("image", "points", "nodes", "edges", "incidence")}))
    assert found.logit == pytest.approx(float(answer.eval().classify(out)[0].detach()), abs=1e-5)


def test_parts_that_are_not_there_are_left_out(atlas, case):
    for encoders in (("image",), ("points",), ("brain",), ("image", "brain")):
        net = tiny_network(atlas, encoders=encoders)
        found = GliomaExplainer(net, ClassifierLogit(net), edges=EDGES)(case)
        assert (found.cam is not None, found.point_attention is not None, found.edges is not None) == tuple(
            name in encoders for name in ("image", "points", "brain")
        )


def test_attributes_are_made_from_rows(atlas, case):
    net = tiny_network(atlas)
    rows = {key: value for key, value in case.items() if key not in ("nodes", "edges")}
    rows |= {"region_rows": case["nodes"] / 2, "tract_rows": case["edges"] / 2}
    made = GliomaExplainer(net, ClassifierLogit(net), lambda nodes, edges: (2 * nodes, 2 * edges), block=0)(rows)
    assert made.logit == GliomaExplainer(net, ClassifierLogit(net), block=0)(case).logit


def test_attributes_made_once_give_the_same_explanations(atlas, case):
    net, calls = tiny_network(atlas), []
    rows = {key: value for key, value in case.items() if key not in ("nodes", "edges")}
    rows |= {"region_rows": case["nodes"] / 2, "tract_rows": case["edges"] / 2}

    def attributes(nodes, edges):
        calls.append(len(nodes))
        return 2 * nodes, 2 * edges

    explainer = GliomaExplainer(net, ClassifierLogit(net), attributes, block=0, steps=2, edges={"epochs": 2})
    control = explainer.untrained()
    encoded = explainer.encoded(rows)
    once = explainer(encoded), control(encoded)
    assert calls == [1]
    for a, b in zip(once, (explainer(rows), control(rows)), strict=True):
        assert a.logit == b.logit and np.array_equal(a.cam, b.cam) and np.array_equal(a.contribution, b.contribution)
    assert torch.equal(once[0].edges.mask, explainer(rows).edges.mask)


def test_a_mask_of_attributes_leaves_the_messages(atlas, case):
    """With attributes of 0, an average tract's, a mask of them changes nothing; a mask of messages does."""
    net = tiny_network(atlas)
    plain = {**case, "edges": torch.zeros_like(case["edges"])}
    for masked, changes in (("attributes", False), ("messages", True)):
        found = GliomaExplainer(net, ClassifierLogit(net), masked=masked, edges={"epochs": 2})(plain)
        worth = found.edges.probability
        assert bool(found.edges.mask.any()) == changes and (worth["removed"] != worth["all"]) == changes
    found = GliomaExplainer(net, ClassifierLogit(net), masked="attributes", edges={"epochs": 2})(case)
    assert found.edges.mask.any()
    with pytest.raises(ValueError, match="masked"):
        GliomaExplainer(net, ClassifierLogit(net), masked="tracts")


def test_an_untrained_encoder_gives_another_map_and_leaves_the_network(atlas, case):
    net = tiny_network(atlas)
    explainer = GliomaExplainer(net, ClassifierLogit(net), block=0)
    found = explainer(case)
    other, again = explainer.untrained()(case, found.predicted), explainer(case, found.predicted)
    for name in ("cam", "point_attention"):
        before = getattr(found, name)
        assert not np.allclose(getattr(other, name), before) and np.array_equal(getattr(again, name), before)
    # the edge network's own range of weights is kept, which is not that of a layer with one input
    for convolution in explainer.untrained().network.geometric_encoder.convolutions:
        assert convolution.nn.weight.abs().max() <= 1 / convolution.in_channels**0.5


def test_no_classifier_no_classifiers_logit():
    with pytest.raises(DataError, match="multitask"):
        ClassifierLogit(glioma_network())


def test_uncrop_undoes_the_crop():
    volume = torch.rand(1, 9, 7, 8)
    for start in ((1, 1, 2), (-3, 2, 5), (6, -1, -2), (20, 0, 0)):
        there = uncrop(crop_volume(torch.ones_like(volume), start, 5)[0].numpy(), start, (9, 7, 8))
        back = uncrop(crop_volume(volume, start, 5)[0].numpy(), start, (9, 7, 8))
        np.testing.assert_array_equal(back, volume[0].numpy() * there)


def test_a_sequence_that_the_patient_lacks_is_in_no_picture(found, case, atlas, tmp_path, monkeypatch):
    shown, brains = [], []
    monkeypatch.setattr("shared.visualize.cam_planes", lambda images, *_, **__: shown.append(images))
    monkeypatch.setattr("shared.visualize.glass_brain", lambda *_, image, **__: brains.append(image))
    whole = BrainVolumes.load(case["files"])
    volumes = BrainVolumes.load({**case["files"], "lacking": {"FLAIR": 1}})
    assert not volumes.images[1].any() and np.array_equal(volumes.images[0], whole.images[0]) and whole.images[1].any()
    write_explanation(case, found, volumes, tmp_path, atlas, sequences=["T1", "FLAIR"])
    assert {name for images in shown for name in images} == {"T1"} and np.array_equal(brains[0], whole.images[0])


def test_maps_are_led_back_to_the_patients_own_places(found, case, atlas, tmp_path):
    volumes, turned = BrainVolumes.load(case["files"]), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    shape = volumes.mask.shape
    grid = np.moveaxis(np.indices((shape[1], shape[0], shape[2])), 0, -1)  # every voxel again, axes exchanged
    places = grid[..., [1, 0, 2]] @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    own = np.eye(4)
    own[:3, :3] = 2 * turned
    path = tmp_path / "places.nii.gz"
    nib.save(nib.Nifti1Image(places.astype(np.float32), own), path)
    volumes = BrainVolumes.load({**case["files"], "mni_places": str(path)})
    write_explanation(case, found, volumes, tmp_path, atlas, sequences=["T1", "T2"])
    for name in ("cam", "contribution", "tracts"):
        plain, native = (nib.load(tmp_path / f"P1_{name}{end}.nii.gz") for end in ("", "_native"))
        np.testing.assert_allclose(native.get_fdata(), plain.get_fdata().swapaxes(0, 1), atol=1e-5)
        assert np.array_equal(native.affine, own) and native.header["sform_code"] == 1
    places[0] = 300.0  # outside of the template
    nib.save(nib.Nifti1Image(places.astype(np.float32), own), path)
    volumes = BrainVolumes.load({**case["files"], "mni_places": str(path)})
    back = volumes.native(np.ones(shape))
    assert not back[0].any() and back[1:].min() == pytest.approx(1)


def test_files(found, case, atlas, tmp_path):
    volumes = BrainVolumes.load(case["files"])
    write_explanation(case, found, volumes, tmp_path, atlas, sequences=["T1", "T2"], planted_tracts=[1])
    cam = nib.load(tmp_path / "P1_cam.nii.gz")
    assert np.allclose(cam.affine, AFFINE) and cam.shape == volumes.mask.shape and cam.header["sform_code"] == 4
    start = case["crop"]["start"]
    np.testing.assert_allclose(
        crop_volume(torch.from_numpy(cam.get_fdata())[None], start, SIZE)[0], found.cam, atol=1e-6
    )
    tracts = nib.load(tmp_path / "P1_tracts.nii.gz").get_fdata()
    kept = found.edges.kept.numpy()
    assert (tracts > 0).sum() == len(
        np.unique(np.concatenate([[], *(atlas.tract(e)[0] for e in np.flatnonzero(kept))]))
    )
    with (tmp_path / "P1_tracts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["kept"]) for row in rows] == sorted((int(k) for k in kept), reverse=True)
    assert all({row["region_a"], row["region_b"]} <= set(NAMES) for row in rows)
    with (tmp_path / "P1_regions.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["name"] == NAMES[int(found.node_attention.argmax())]
    content = json.loads((tmp_path / "P1.json").read_text())
    assert content["tracts"]["kept"] == kept.sum() and content["probability"] == found.probability
    pictures = {"cam", "contribution", "surface", "tracts", "connectome", "regions"}
    assert {path.stem.removeprefix("P1_") for path in tmp_path.glob("*.png")} == pictures


@pytest.mark.parametrize("make", [ClassifierLogit, lambda net: AnswerLogit(Population())])
def test_contributions_add_up_to_what_the_image_adds_to_the_logit(case, atlas, make):
    net = tiny_network(atlas)
    target = make(net).eval()
    found = GliomaExplainer(net, target, block=0, steps=128)(case)
    rest = {key: case[key][None] for key in ("points", "nodes", "edges", "incidence")}
    image, full = case["image"][None], case["image"][None] != 0
    flat = torch.stack([channel[channel != 0].mean() for channel in image[0]])
    baseline = torch.where(full, flat[None, :, None, None, None], 0.0)
    with torch.no_grad():
        # points, brain and its attention stay the patient's
        out, other = net(GliomaInputs(image=image, **rest)), net.image_encoder(baseline)
        tumour = torch.cat([other, out.u_points], dim=1)
        gained = target(out, case) - target(out._replace(u_tumour=tumour), case)
    sign = 1 if found.predicted else -1
    assert found.contribution.sum() == pytest.approx(sign * float(gained), rel=0.05, abs=1e-3)
    assert not found.contribution[~full[0].any(dim=0).numpy()].any() and found.contribution.min() < 0


def test_each_encoder_is_explained_by_its_own_answer(case, atlas):
    net = tiny_network(atlas, unimodal=True)
    whole, own = (
        GliomaExplainer(net, ClassifierLogit(net), own=own, block=0, edges=EDGES, steps=16)(case)
        for own in (False, True)
    )
    rest = {key: case[key][None] for key in ("image", "points", "nodes", "edges", "incidence")}
    expected = dict(zip(net.encoders, net(GliomaInputs(**rest)).unimodal_logits[0].tolist(), strict=True))
    assert whole.own is None and own.own == pytest.approx(expected, abs=1e-5)
    assert (own.logit, own.predicted) == (whole.logit, whole.predicted)
    for encoder, logit in expected.items():
        assert own.explained(encoder) == (logit > 0) and whole.explained(encoder) == whole.predicted
        assert own.explained_probability(encoder) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    np.testing.assert_array_equal(own.point_attention, whole.point_attention)
    assert own.edges.probability["all"] == pytest.approx(1 / (1 + np.exp(-abs(expected["brain"]))), abs=1e-5)
    # the image's own classifier alone explains its maps: what another of them answers changes nothing
    with torch.no_grad():
        for other in (net.classifier, net.classify_points, net.classify_brain):
            other[-1].weight.neg_()
    again = GliomaExplainer(net, ClassifierLogit(net), own=True, block=0, steps=16)(case)
    np.testing.assert_array_equal(again.cam, own.cam)
    np.testing.assert_array_equal(again.contribution, own.contribution)
    assert not np.array_equal(own.contribution, whole.contribution)
    # the other class's contribution is the same with its sign turned round
    other = GliomaExplainer(net, ClassifierLogit(net), own=True, block=0, steps=16)(case, 1 - own.explained("image"))
    np.testing.assert_allclose(other.contribution, -own.contribution, atol=1e-7)


@pytest.mark.parametrize("encoders", [["image", "points"], ["image", "brain"], ["points", "brain"]])
def test_two_encoders_are_explained_and_written(case, atlas, tmp_path, encoders):
    net = tiny_network(atlas, encoders=encoders, unimodal=True)
    found = GliomaExplainer(net, ClassifierLogit(net), own=True, block=0, edges={"epochs": 2}, steps=2)(case)
    assert set(found.own) == set(encoders)
    write_explanation(case, found, BrainVolumes.load(case["files"]), tmp_path, atlas, class_names=["wild", "mutant"])
    content = json.loads((tmp_path / "P1.json").read_text())
    assert set(content["explained"]) == set(encoders) and content["answer"] in ("wild", "mutant")
    assert (tmp_path / "P1_tracts.csv").is_file() == ("brain" in encoders)


def test_titles_say_which_answer_is_explained(found, case):
    own = replace(found, own={"image": 2.0, "points": 1.0, "brain": -1.0})
    names = ["wild type", "mutant"]
    assert "explained" not in title_of(case, own, names)
    told = "\nexplained: the brain network's own answer, wild type (probability of mutant 0.27)"
    assert title_of(case, own, names, "brain").endswith(told)
    assert title_of(case, found, names, "brain").endswith(f"; explained: {names[found.predicted]}")


def test_without_classifiers_of_their_own_the_whole_answer_is_explained(case, atlas, found):
    net = tiny_network(atlas)
    again = GliomaExplainer(net, ClassifierLogit(net), own=True, block=0, steps=128)(case)
    assert again.own is None
    np.testing.assert_array_equal(again.contribution, found.contribution)
    with pytest.raises(DataError, match="points encoder has no classifier of its own"):
        EncoderLogit(net, "points")


def test_a_contribution_is_scored_where_it_speaks_for_the_class(found, case, atlas):
    volumes = BrainVolumes.load(case["files"])
    score = PlantedScores({"anything": (int(volumes.planted[volumes.mask].max()), found.predicted)}, atlas)
    start = tuple(int(first) for first in case["crop"]["start"])
    code = score.planted["anything"][0]
    hot = crop_volume(torch.from_numpy(volumes.planted == code)[None], start, SIZE)[0].numpy() * 2.0 - 1.0
    energy = {}
    for sign in (1, -1):
        rows = score(case, replace(found, contribution=sign * hot), volumes)["volume"]
        energy[sign] = next(row["energy_ratio"] for row in rows if row["map"] == CONTRIBUTION)
    assert energy[1] > 1 and energy[-1] == 0


@pytest.mark.parametrize("mutant", ["image", "points", "brain"])
def test_a_sign_is_scored_where_it_speaks_for_the_class_of_its_own_encoder(found, case, atlas, mutant):
    own = {name: 2.0 if name == mutant else -1.0 for name in ("image", "points", "brain")}
    given = replace(found, own=own, predicted=int(mutant != "image"))
    scored = PlantedScores(CODES, atlas)(case, given, BrainVolumes.load(case["files"]), [0, 2])
    volume = {row["truth"] for row in scored["volume"]}
    assert ("mismatch" in volume, "spicules" in volume) == (mutant == "image", mutant != "image")
    assert bool(scored["surface"]) == (mutant != "points") and bool(scored["tracts"]) == (mutant != "brain")
    # the image's map at the points explains the image's answer
    assert "Grad-CAM" not in {row["map"] for row in scored["surface"]}


def test_ply_can_be_read_back(found, case, atlas, tmp_path):
    write_explanation(case, found, BrainVolumes.load(case["files"]), tmp_path)
    lines = (tmp_path / "P1_points_attention.ply").read_text().splitlines()
    end = lines.index("end_header")
    names = [line.split()[-1] for line in lines[:end] if line.startswith("property")]
    assert names == ["x", "y", "z", "red", "green", "blue", "attention", "grad_cam"]
    table = np.loadtxt(lines[end + 1 :])
    np.testing.assert_allclose(table[:, :3], case["points"] + case["centroid"], atol=1e-3)
    np.testing.assert_allclose(table[:, 6], found.point_attention, rtol=1e-4)
    assert table[:, 3:6].max() > 200 and f"element vertex {len(table)}" in lines


def test_the_map_is_read_at_the_points_own_voxels():
    """A map that grows along each axis by another step, read at points given in mm about the centre."""
    x, y, z = np.meshgrid(*[np.arange(SIZE, dtype=np.float32)] * 3, indexing="ij")
    points = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, -6.0, 0.0], [0.0, 0.0, 5.0]])
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    found = _at_points(x + 100 * y + 10000 * z, points, torch.tensor([7.0, 8.0, 6.0]), affine)
    middle = 7 + 100 * 8 + 10000 * 6
    np.testing.assert_allclose(found, [middle, middle + 2, middle - 300, middle + 25000], rtol=1e-5)


@pytest.mark.parametrize(("predicted", "sign"), [(1, 1), (0, -1)])
def test_integrated_gradients_of_a_square_are_exact_at_the_middle_of_their_steps(atlas, predicted, sign):
    """Of f = sum x^2 a voxel's share is x^2 - b^2, b its sequence's mean over what is not empty: with any steps."""

    class Squares(ImageEncoder):  # no blocks are asked for: the contributions alone are looked at
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, x):
            return x.square().sum(dim=(1, 2, 3, 4))[:, None]

    class Sum(torch.nn.Module):
        def forward(self, output, case):
            return output.u_image.sum(dim=1)

    net = tiny_network(atlas, encoders=("image",))
    net.image_encoder = Squares()
    image = torch.randn(1, 2, 5, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
    image[:, :, 0] = 0
    image[:, 1, 3] = 0
    mean = [float(channel[channel != 0].double().mean()) for channel in image[0]]
    expected = sum(
        torch.where(channel != 0, channel.double() ** 2 - b**2, 0.0) for channel, b in zip(image[0], mean, strict=True)
    )
    for steps in (1, 3):
        explainer = GliomaExplainer(net, Sum(), steps=steps)
        found = explainer._contribution({}, image, GliomaOutput(u_image=torch.zeros(1, 1)), predicted)
        np.testing.assert_allclose(found, sign * expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("backbone", ["densenet121", "resnet34"])
def test_a_backbone_of_monai_is_refused(atlas, backbone):
    net = tiny_network(atlas, encoders=("image",), size=32, image={"backbone": backbone})
    with pytest.raises(DataError, match="Train without backbone"):
        GliomaExplainer(net, ClassifierLogit(net))
