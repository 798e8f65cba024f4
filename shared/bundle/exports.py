"""A bundle's network built from its configs, run on what its metadata describes, exported, read back and compared."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out
from monai.bundle.scripts import _get_fake_spatial_shape
from monai.data import load_net_with_metadata
from torch import Tensor, nn

from shared.bundle.checks import Result
from shared.bundle.contents import read_metadata
from shared.errors import DataError

TOLERANCE = 1e-4
BATCHES = (1, 3)
_BATCH = torch.export.Dim("batch", min=1)


class ExportChecks:
    """The checks that need the network: what it takes and gives, and its exports.

    The network is the trained one (``models/model.pt`` with ``inference.json``) where there is one and no overlay is
    asked for; else ``train.json``'s with random weights, kept in ``folder``. Its inputs are the metadata's, but for
    what its own ``data_format()`` says, where it has one: an overlay or an atlas may have made it for others.

    Args:
        bundle: the bundle's folder.
        folder: where exports and random weights are written.
        overlays: configs merged over ``train.json``, by name.
        settings: keys of the configs to override, which leave the trained network aside; ``dataset_dir`` does not.
        seed: of weights and inputs.
    """

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        *,
        overlays: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        self.bundle, self.folder, self.seed = bundle, folder, seed
        self.metadata = read_metadata(bundle)
        self.inputs = self.metadata["network_data_format"]["inputs"]
        self.places: dict[str, Any] = {"bundle_root": str(bundle), **(settings or {})}
        model = bundle / "models/model.pt"
        trained = model.is_file() and not overlays and set(settings or {}) <= {"dataset_dir"}
        names = ["inference"] if trained else ["train", *overlays]
        self.configs = [str(bundle / f"configs/{name}.json") for name in names]
        self.weights = "trained weights" if trained else "random weights"
        parser = ConfigParser()
        parser.read_config(self.configs)
        if "bf16" in parser:
            self.places["bf16"] = False  # exports compute in float32
        parser.update(self.places)
        torch.manual_seed(seed)
        with quiet():
            self.network: nn.Module = parser.get_parsed_content("network_def").eval()
        if not trained:
            before = dict(getattr(self.network, "settings", {}))
            make_room(self.network)
            # MONAI's commands build the network anew: with as many patients
            settings = getattr(self.network, "settings", {})
            self.places |= {f"network_def#{key}": settings[key] for key in settings if settings[key] != before[key]}
        self.program: torch.export.ExportedProgram | None = None
        self.differing: list[str] = []
        own = self.network.data_format() if hasattr(self.network, "data_format") else {}
        for name, key in [(name, key) for name, found in own.items() for key in found]:
            value, described = own[name][key], self.inputs[name][key]
            if value != described:
                self.differing.append(f"{name}'s {key} is {value}, in metadata.json {described}")
                self.inputs[name][key] = self.places[f"_meta_#network_data_format#inputs#{name}#{key}"] = value
        if trained:
            self.checkpoint = model
            self.network.load_state_dict(torch.load(model, map_location="cpu", weights_only=True))
        else:
            fill_empty_buffers(self.network, seed=seed)
            self.checkpoint = folder / "model.pt"
            torch.save(self.network.state_dict(), self.checkpoint)

    def run(self) -> Iterator[Result]:
        """All of them, one after another; an error is a problem of its check."""
        for name, check in (
            ("network's input, output", self.in_out),
            ("TorchScript", self.torchscript),
            ("torch.export", self.exported),
            ("ONNX", self.onnx),
        ):
            try:
                with quiet():
                    result = check(name)
            except Exception as error:
                text = str(error).strip().splitlines() or [""]
                result = Result(self.bundle.name, name, [f"{type(error).__name__}: {text[0][:300]}"])
            yield result

    def in_out(self, name: str) -> Result:
        """MONAI's ``verify_net_in_out``; inputs beside ``image`` go in through its ``extra_forward_args``."""
        others = random_inputs(self.inputs, seed=self.seed)
        if others.pop("image", None) is None:
            raise DataError("network_data_format must have an input 'image'; MONAI's verify_net_in_out asks for it")
        verify_net_in_out(
            "network_def",
            meta_file=str(self.bundle / "configs/metadata.json"),
            config_file=self.configs,
            device="cpu",
            extra_forward_args=others,
            **self.places,
        )
        with torch.no_grad():
            pred = self.network(**self._inputs(2))
        wanted = self.metadata["network_data_format"]["outputs"]["pred"]
        found = (tuple(pred.shape[:2]), str(pred.dtype).removeprefix("torch."))
        expected = ((2, wanted["num_channels"]), wanted["dtype"])
        problems = [] if found == expected else [f"pred has shape, dtype {found}, not {expected}"]
        note = "; ".join([f"{', '.join(self.inputs)} -> {list(pred.shape)}", *self.differing])
        return Result(self.bundle.name, name, problems, note)

    def torchscript(self, name: str) -> Result:
        """``ckpt_export`` with metadata."""
        path = self.folder / "model.ts"
        ckpt_export(
            "network_def",
            filepath=str(path),
            ckpt_file=str(self.checkpoint),
            meta_file=str(self.bundle / "configs/metadata.json"),
            config_file=self.configs,
            **self.places,
        )
        loaded, metadata, _ = load_net_with_metadata(str(path), map_location=torch.device("cpu"))
        return self._compared(name, lambda inputs: loaded(**inputs), metadata, "scripted")

    def exported(self, name: str) -> Result:
        """``torch.export`` to a ``.pt2`` that holds the metadata, for any batch size."""
        path, shapes = self.folder / "model.pt2", {key: {0: _BATCH} for key in self.inputs}
        self.program = torch.export.export(self.network, (), kwargs=self._inputs(2), dynamic_shapes=shapes)
        torch.export.save(self.program, path, extra_files={"metadata.json": json.dumps(self.metadata)})
        extra = {"metadata.json": ""}
        loaded = torch.export.load(path, extra_files=extra).module()
        metadata = json.loads(extra["metadata.json"])
        return self._compared(name, lambda inputs: loaded(**inputs), metadata)

    def onnx(self, name: str) -> Result:
        """ONNX of the exported program, run by onnxruntime."""
        try:
            onnxruntime, _ = import_module("onnxruntime"), import_module("onnxscript")
        except ImportError as error:
            note = f"{error.name} is not here: pip install -r requirements-dev.txt"
            return Result(self.bundle.name, name, note=note, skipped=True)
        if self.program is None:
            return Result(self.bundle.name, name, ["is made of what torch.export gives, which gave nothing"])
        path = self.folder / "model.onnx"
        names = list(self.inputs)
        made = torch.onnx.export(
            self.program, dynamo=True, input_names=names, output_names=["pred"], external_data=False, verbose=False
        )
        made.model.metadata_props["metadata.json"] = json.dumps(self.metadata)
        made.save(str(path), external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"])
        # what the network does not use, its graph does not ask for
        asked = [each.name for each in session.get_inputs()]

        def run(inputs: dict[str, Tensor]) -> Tensor:
            return torch.from_numpy(session.run(["pred"], {key: inputs[key].numpy() for key in asked})[0])

        return self._compared(name, run, metadata, f"onnxruntime {onnxruntime.__version__}")

    def _inputs(self, batch: int) -> dict[str, Tensor]:
        return random_inputs(self.inputs, batch=batch, seed=self.seed)

    def _compared(
        self,
        name: str,
        run: Callable[[dict[str, Tensor]], Tensor],
        metadata: Mapping[str, Any],
        note: str = "",
    ) -> Result:
        differences, problems = [], []
        for i, batch in enumerate(BATCHES, 1):
            inputs = random_inputs(self.inputs, batch=batch, seed=self.seed + i)
            with torch.no_grad():
                expected, found = self.network(**inputs), run(inputs)
            if found.shape != expected.shape or not torch.isfinite(expected).all():
                problems.append(f"batch of {batch}: {list(found.shape)} instead of finite {list(expected.shape)}")
            else:
                differences.append((found - expected).abs().max().item())
        largest = max(differences, default=0.0)
        if largest > TOLERANCE:
            problems.append(f"differs by {largest:.1e} from the network, more than {TOLERANCE:.0e}")
        if metadata["version"] != self.metadata["version"] or metadata["network_data_format"]["inputs"] != self.inputs:
            problems.append("does not hold the bundle's metadata")
        parts = [f"differs by {largest:.0e}", "batches of 1 and 3", self.weights, *([note] if note else [])]
        return Result(self.bundle.name, name, problems, ", ".join(parts))


def random_inputs(formats: Mapping[str, Any], *, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Tensors as ``network_data_format#inputs`` describes them, by the names of the network's arguments.

    Args:
        formats: the description of each input.
        batch: first axis of each tensor.
        seed: of the random numbers: floats in [0, 1), integers within ``value_range``.

    Example:
        >>> image = {"num_channels": 3, "spatial_shape": [8, 8], "dtype": "float32", "value_range": [0, 1]}
        >>> tracts = {"num_channels": 4, "spatial_shape": [2], "dtype": "int64", "value_range": [-1, 5]}
        >>> {name: (x.shape, x.dtype) for name, x in random_inputs({"image": image, "tracts": tracts}).items()}
        {'image': (torch.Size([1, 3, 8, 8]), torch.float32), 'tracts': (torch.Size([1, 4, 2]), torch.int64)}
    """
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, tensor in formats.items():
        shape = (batch, tensor["num_channels"], *_get_fake_spatial_shape(tensor["spatial_shape"]))
        dtype = getattr(torch, tensor["dtype"])
        if dtype.is_floating_point:
            made[name] = torch.rand(shape, generator=generator).to(dtype)
        else:
            low, high = (int(value) for value in tensor["value_range"])
            made[name] = torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    return made


def make_room(network: nn.Module, rows: int = 12) -> None:
    """Rows of invented patients, where an untrained network keeps none yet of its training cohort.

    Args:
        network: its ``make_room`` sizes such buffers as those of a state dict; networks without it keep none.
        rows: patients.
    """
    room = getattr(network, "make_room", None)
    empty = [(name, buffer) for name, buffer in network.named_buffers() if buffer.ndim and not len(buffer)]
    if room is not None and empty:
        room({name: buffer.new_zeros(rows, *buffer.shape[1:]) for name, buffer in empty})


def fill_empty_buffers(network: nn.Module, *, seed: int = 0) -> None:
    """Random numbers for buffers that training fills (biomarkers, banks): of zeros, nothing would be compared."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and buffer.numel() and not buffer.any() and not name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


@contextmanager
def quiet() -> Iterator[None]:
    """No logs, warnings or progress of what runs inside; the exception hook that configs set is put back."""
    hook, level = sys.excepthook, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.excepthook = hook
        logging.disable(level)
