import numpy as np
import pytest
import torch
from PIL import Image
from skimage.io import imread
from torch import nn

from shared.data import PatchCache
from shared.engines import DihedralInferer, PreparePatches
from shared.errors import DataError
from shared.explain import GradCAM, PatchCases, PatchExplainer, unique_names
from shared.networks.blocks import turned
from tests.support.planted_patches import CLASSES, ColourNetwork, write_planted


def test_an_explanation_is_grad_cam_of_the_predicted_class(tmp_path):
    entries, images = write_planted(tmp_path, 7)
    cases = PatchCases(entries, images)
    network, given = ColourNetwork(), {"explanation": "grad_cam", "class_names": CLASSES}
    found = [result for _, result in PatchExplainer(network, **given, batch_size=3)(cases)]
    assert [result.predicted for result in found] == [entry["label"] for entry in entries]
    logits = network(images / 255).detach().double()
    np.testing.assert_allclose([result.probabilities for result in found], logits.softmax(1), atol=1e-6)
    expected = GradCAM(network, "encoder.layer4")(images / 255)
    np.testing.assert_allclose([result.map((32, 32)) for result in found], expected[:, 0], atol=1e-5)
    assert found[0].map((50, 40)).shape == (50, 40) and not any(result.all_zero for result in found)
    other = [result for _, result in PatchExplainer(network, **given, class_idx=1)(cases)]
    assert [result.class_idx for result in other] == [1] * 7 and other[0].probability < 0.5 < other[1].probability


def test_views_are_averaged_as_in_evaluation(tmp_path):
    torch.manual_seed(0)
    _, images = write_planted(tmp_path, 8)
    features = nn.Sequential(nn.Conv2d(3, 6, 5, 4), nn.Tanh())
    network = nn.Sequential(features, nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(150, 2)).eval()
    with torch.no_grad():
        network[4].weight.mul_(10)
        network[4].bias.sub_(network(images / 255).mean(0))
    cases = [{"image": image} for image in images]
    given = {"explanation": "grad_cam", "target_layer": "0", "class_names": CLASSES}
    explainer = PatchExplainer(network, **given, views=8, batch_size=5)
    found = [result for _, result in explainer(cases)]
    expected = DihedralInferer(views=8)(images / 255, network).exp()
    np.testing.assert_allclose([result.probabilities for result in found], expected.detach(), atol=1e-6)
    # the class is that of the mean, also where a view alone would say otherwise
    each = torch.stack([network(turned(images / 255, view)).argmax(1) for view in range(8)])
    assert (each != each[0]).any() and [r.class_idx for r in found] == expected.argmax(1).tolist()
    cam = GradCAM(network, "0")
    for image, result in zip(images / 255, found, strict=True):
        raw = np.zeros((7, 7))
        for view in range(8):
            one = cam.explain(turned(image[None], view), result.class_idx).raw[0, 0].numpy()
            back = one[:, ::-1] if view >= 4 else one
            raw += np.rot90(back, -(view % 4)) / 8
        np.testing.assert_allclose(result.raw[0, 0], raw, atol=1e-6)
    # whichever way the patch lies, it is explained alike
    lying = [result for _, result in explainer([{"image": turned(image[None], 5)[0]} for image in images])]
    for one, other in zip(found, lying, strict=True):
        np.testing.assert_allclose(turned(one.raw, 5), other.raw, atol=1e-6)
    with pytest.raises(DataError, match=r"Several views need square patches, got \(16, 32\)"):
        list(explainer([{"image": images[0, :, :16]}]))
    with pytest.raises(ValueError, match="views must be 1 to 8, got 9"):
        PatchExplainer(network, **given, views=9)


def test_cases_hold_what_the_entries_say(tmp_path):
    entries, images = write_planted(tmp_path, 2)
    del entries[0]["mask"], entries[0]["label"]
    cases = PatchCases(entries, images, size=16)
    assert cases.paths == [entry["image"] for entry in entries]
    assert set(cases[0]) == {"image", "path", "patient"} and set(cases[1]) == {*cases[0], "label", "mask"}
    # as evaluation sees it
    expected, _ = PreparePatches(size=16)({"image": images})
    assert cases[1]["image"].shape == (3, 16, 16)
    np.testing.assert_allclose(cases[1]["image"], expected[1], atol=1e-6)
    # the mask in its own size, whatever the network sees
    assert cases[1]["mask"].shape == (1, 32, 32)
    np.testing.assert_array_equal(cases[1]["mask"][0], imread(entries[1]["mask"]) > 0)
    codes = PatchCases(entries, images, codes=[254])
    assert not codes[1]["mask"].any()
    with pytest.raises(DataError, match="got 2 entries and 1 images"):
        PatchCases(entries, images[:1])


def test_names_never_collide(tmp_path):
    paths = ["d/HP/image/x.png", "d/SSA/image/x.png", "d/HP/image/x.jpg", "d/HP-image/x.png", "d/hp/image/X.png"]
    names = unique_names(paths, "d")
    assert len({name.casefold() for name in names}) == 5 and names[1] == "SSA-image-x"
    # the same names for the same files, from wherever they are counted
    assert unique_names([str(tmp_path / path) for path in paths], tmp_path / "d") == names
    assert unique_names(["d/HP/image/x.png", "d/HP/image/y.png"]) == ["x", "y"]
    assert unique_names(["a b/ä:1.png", "c.png"]) == ["a_b-ä_1", "c"]
    long = unique_names([f"{'x' * 200}/{i}/{'y' * 200}.png" for i in range(3)])
    assert len(set(long)) == 3 and all(len(name) < 200 for name in long)
    assert all(len(name.split("/")) == 1 for name in unique_names(["../../e/f.png", "g.png"], "."))
    with pytest.raises(DataError, match=r"f\.png: is there twice"):
        unique_names(["d/f.png", "d/e/../f.png"])


def test_errors_name_the_patch(tmp_path):
    _, images = write_planted(tmp_path, 2)
    cases = [{"image": images[0], "path": "a.png"}, {"image": images[1, :, :16], "path": "b.png"}]
    with pytest.raises(DataError, match=r"b\.png: patches of one batch must have one size, got \(3, 16, 32\)"):
        list(PatchExplainer(ColourNetwork(), class_names=CLASSES)(cases))
    with pytest.raises(DataError, match=r"has 2 classes, the names are \['a', 'b', 'c'\]"):
        list(PatchExplainer(ColourNetwork(), class_names="abc")(cases[:1]))
    with pytest.raises(DataError, match=r"no layer 'encoder\.layer5' for Grad-CAM; near it: encoder\.layer4"):
        PatchExplainer(ColourNetwork(), explanation="grad_cam", target_layer="encoder.layer5")
    with pytest.raises(ValueError, match=r"explanation must be one of additive, grad_cam, .* got 'gradcam'"):
        PatchExplainer(ColourNetwork(), explanation="gradcam")
    with pytest.raises(ValueError, match="average must be logits or probabilities, got 'mean'"):
        PatchExplainer(ColourNetwork(), average="mean")
    with pytest.raises(DataError, match=r"answer of Linear is no sum over places.*grad_cam, layer_cam"):
        PatchExplainer(nn.Linear(1, 2))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_turned_by_exif_its_mask_map_and_box_are_in_the_upright_frame(tmp_path, orientation):
    entries, images = write_planted(tmp_path, 1)
    upright = images[0].permute(1, 2, 0).numpy().astype(np.uint8)
    stored = np.rot90(upright, {3: 2, 6: 1, 8: -1}[orientation])  # a viewer turns it back
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    case = {**entries[0], "image": str(tmp_path / "turned.png")}
    cache = PatchCache([case], mask=True, progress=False)
    np.testing.assert_array_equal(cache.images[0].permute(1, 2, 0), upright)
    cases = PatchCases([case], cache.images)
    np.testing.assert_array_equal(cache.masks[0], cases[0]["mask"] != 0)
    explainer = PatchExplainer(ColourNetwork(), class_names=CLASSES)
    boxes = []
    for number, entry in enumerate((entries[0], case)):
        (one, found), *_ = explainer(PatchCases([entry], images[:1].byte()))
        boxes.append(explainer.write(one, found, tmp_path / str(number), "p")["box"])
    assert boxes[0] == boxes[1] and boxes[0] is not None
    for name in ("cam/p.png", "overlays/p.png"):
        np.testing.assert_array_equal(imread(tmp_path / "0" / name), imread(tmp_path / "1" / name))
