"""scripts/convert_keras_resnet50.py on a thin ResNet50 in TensorFlow.js form, against a naive forward pass."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.apps.baselines.patch_probes import imagenet_encoder
from shared.networks import PatchEncoder, load_imagenet_weights
from tests.references.keras_resnet import BLOCKS, resnet50
from tests.support.script_modules import load_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_keras_resnet50.py"
EPSILON = 1e-3


@pytest.fixture(scope="module")
def script():
    return load_script("convert_keras_resnet50")


def thin_model():
    """Layers and weights as Keras names them, with 4 to 16 channels."""
    random, layers, weights = np.random.default_rng(0), [], {}

    def add(conv, norm, side, before, after, stride):
        config = {"name": conv, "strides": [stride, stride], "use_bias": True}
        layers.append({"class_name": "Conv2D", "name": conv, "config": config})
        layers.append({"class_name": "BatchNormalization", "name": norm, "config": {"name": norm, "epsilon": EPSILON}})
        weights[f"{conv}/kernel"] = random.normal(0, (side * side * before) ** -0.5, (side, side, before, after))
        weights[f"{conv}/bias"] = random.normal(0, 0.3, after)
        weights[f"{norm}/gamma"], weights[f"{norm}/beta"] = (
            random.uniform(0.5, 1.5, after),
            random.normal(0, 0.3, after),
        )
        weights[f"{norm}/moving_mean"] = random.normal(0, 0.3, after)
        # small variances, where the epsilon counts
        weights[f"{norm}/moving_variance"] = random.uniform(0.001, 1, after)

    add("conv1", "bn_conv1", 7, 3, 4, 2)
    weights["bn_conv1/moving_variance"] *= 5000  # the input is in grey levels
    before = 4
    for stage, blocks in BLOCKS.items():
        width = {2: 4, 3: 4, 4: 6, 5: 8}[stage]
        for block in blocks:
            stride, name = 2 if block == "a" and stage > 2 else 1, f"{stage}{block}_branch"
            add(f"res{name}2a", f"bn{name}2a", 1, before, width, stride)
            add(f"res{name}2b", f"bn{name}2b", 3, width, width, 1)
            add(f"res{name}2c", f"bn{name}2c", 1, width, 4 * width, 1)
            if block == "a":
                add(f"res{name}1", f"bn{name}1", 1, before, 4 * width, stride)
            before = 4 * width
    layers.append({"class_name": "Dense", "name": "fc1000", "config": {"name": "fc1000"}})
    weights["fc1000/kernel"], weights["fc1000/bias"] = random.normal(size=(32, 5)), random.normal(size=5)
    return layers, {name: value.astype("<f4") for name, value in weights.items()}


def write_model(folder, layers, weights):
    """model.json and two shards, cut in the middle of a weight."""
    folder.mkdir()
    content = b"".join(value.tobytes() for value in weights.values())
    cut = len(content) // 2 + 2
    for name, part in (("s1.bin", content[:cut]), ("s2.bin", content[cut:])):
        (folder / name).write_bytes(part)
    entries = [{"name": name, "shape": list(value.shape), "dtype": "float32"} for name, value in weights.items()]
    model = {"modelTopology": {"model_config": {"config": {"layers": layers}}}}
    model["weightsManifest"] = [{"paths": ["s1.bin", "s2.bin"], "weights": entries}]
    (folder / "model.json").write_text(json.dumps(model))
    return folder


@pytest.fixture
def model(tmp_path):
    layers, weights = thin_model()
    return write_model(tmp_path / "keras", layers, weights), layers, weights


def test_features_and_classes_are_keras_s(script, model, tmp_path, capsys):
    folder, _, weights = model
    output = tmp_path / "out" / "net.pt"
    script.main([str(folder), "--output", str(output)])
    beside = json.loads(output.with_suffix(".json").read_text())
    assert beside["encoder"] == {
        "block": "bottleneck",
        "layers": [3, 4, 6, 3],
        "channels": [4, 4, 6, 8],
        "stride_in_1x1": True,
    }
    assert beside["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest() and "net.json" in capsys.readouterr().out
    rgb = np.random.default_rng(1).integers(0, 256, (64, 64, 3))
    pooled, classes = resnet50(rgb, {name: value.astype(float) for name, value in weights.items()}, EPSILON)
    # with the very mean that Keras subtracts the border is the same, too
    mean = [value / 255 for value in script.CAFFE_MEAN]
    encoder = PatchEncoder(**beside["encoder"], input_mean=mean).eval()
    load_imagenet_weights(encoder, output)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        h = encoder(image)
        near = imagenet_encoder(output)(image)
        turned = PatchEncoder(**{**beside["encoder"], "stride_in_1x1": False}, input_mean=mean).eval()
        load_imagenet_weights(turned, output)
        other = turned(image)
    assert pooled.std() > 0.1 and np.allclose(h[0], pooled, rtol=1e-3, atol=1e-3 * pooled.max())
    state = torch.load(output)
    found = (h @ state["fc.weight"].T + state["fc.bias"]).softmax(dim=1)
    assert np.allclose(found[0], classes, atol=1e-3)
    # torchvision's mean is 0.4 grey levels off, at the border only; a stride in the other place is another network
    assert np.allclose(near[0], pooled, rtol=0.02, atol=0.02 * pooled.max())
    assert not np.allclose(other[0], pooled, rtol=0.1, atol=0.1 * pooled.max())


def test_what_does_not_fit_is_said(script, model, tmp_path):
    folder, layers, weights = model

    def message(name, layers=layers, weights=weights):
        with pytest.raises(SystemExit) as error:
            script.main([str(write_model(tmp_path / name, layers, weights)), "--output", str(tmp_path / "x.pt")])
        return str(error.value)

    with pytest.raises(SystemExit, match="no layers model of TensorFlow"):
        script.main([str(tmp_path), "--output", str(tmp_path / "x.pt")])
    assert "no weight 'res3b_branch2b/bias'" in message(
        "a", weights={k: v for k, v in weights.items() if k != "res3b_branch2b/bias"}
    )
    moved = json.loads(json.dumps(layers))
    next(layer for layer in moved if layer["name"] == "res4a_branch2a")["config"]["strides"] = [1, 1]
    assert "stride of 2 in one place" in message("b", layers=moved)
    assert "no convolution 'res3a_branch2a'" in message(
        "c", layers=[x for x in layers if x["name"] != "res3a_branch2a"]
    )
    (folder / "s2.bin").write_bytes((folder / "s2.bin").read_bytes()[:-40])
    with pytest.raises(SystemExit, match="the shards end within fc1000/kernel"):
        script.main([str(folder), "--output", str(tmp_path / "x.pt")])
    (folder / "s2.bin").unlink()
    with pytest.raises(SystemExit, match=r"s2.bin: this shard"):
        script.main([str(folder), "--output", str(tmp_path / "x.pt")])
    assert not (tmp_path / "x.pt").exists()
