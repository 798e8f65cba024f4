"""A bundle's network built from its configs, run on what its metadata describes, exported, read back and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out
from monai.data import load_net_with_metadata, save_net_with_metadata
from torch import Tensor, nn
from torch.jit.frontend import FrontendError

from shared.errors import DataError
from shared.packaging.checks import Result
from shared.packaging.contents import read_metadata
from shared.packaging.inputs import fill_empty_buffers, make_room, quiet, random_inputs

TOLERANCE = 1e-4
BATCHES = (1, 3)
ALONE = (1, 1)
_BATCH = torch.export.Dim("batch", min=1)


class ExportChecks:
    """The checks that need the network: what it takes and gives, and its exports.

    The network is the trained one (``models/model.pt`` with ``inference.json``) where there is one and no overlay is
    asked for; else ``train.json``'s with random weights, kept in ``folder``.

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
        self.batches: Sequence[int] = BATCHES
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
        by = "MONAI's verify_net_in_out"
        try:
            verify_net_in_out(
                "network_def",
                meta_file=str(self.bundle / "configs/metadata.json"),
                config_file=self.configs,
                device="cpu",
                extra_forward_args=others,
                **self.places,
            )
        except DataError as error:
            # a network that knows its training cohort answers nothing before it was trained
            by = f"a check of our own, without a cohort MONAI's cannot ({str(error)[:60]})"
        with torch.no_grad():
            pred = self.network(**self._inputs(2))
        wanted = self.metadata["network_data_format"]["outputs"]["pred"]
        found = (tuple(pred.shape[:2]), str(pred.dtype).removeprefix("torch."))
        expected = ((2, wanted["num_channels"]), wanted["dtype"])
        problems = [] if found == expected else [f"pred has shape, dtype {found}, not {expected}"]
        return Result(self.bundle.name, name, problems, f"{', '.join(self.inputs)} -> {list(pred.shape)}; {by}")

    def torchscript(self, name: str) -> Result:
        """``ckpt_export`` with metadata; what cannot be scripted is traced."""
        path = self.folder / "model.ts"
        try:
            ckpt_export(
                "network_def",
                filepath=str(path),
                ckpt_file=str(self.checkpoint),
                meta_file=str(self.bundle / "configs/metadata.json"),
                config_file=self.configs,
                **self.places,
            )
            how = "scripted"
        except (RuntimeError, NotImplementedError, FrontendError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            how = f"traced, not scriptable ({lines[0].strip()[:80] if lines else type(error).__name__})"
            traced = torch.jit.trace(self.network, example_kwarg_inputs=self._inputs(1), check_trace=False)
            save_net_with_metadata(traced, str(path), include_config_vals=False, meta_values=self.metadata)
        loaded, metadata, _ = load_net_with_metadata(str(path), map_location=torch.device("cpu"))
        # what was traced may hold for the batch size it was traced with only
        batches = BATCHES if how == "scripted" else ALONE
        return self._compared(name, lambda inputs: loaded(**inputs), metadata, how, batches)

    def exported(self, name: str) -> Result:
        """``torch.export`` to a ``.pt2`` that holds the metadata; any batch size, else one patient at a time."""
        path = self.folder / "model.pt2"
        try:
            self.program, self.batches = self._program(2, {key: {0: _BATCH} for key in self.inputs}), BATCHES
        except Exception:
            self.program, self.batches = self._program(1, None), ALONE
        torch.export.save(self.program, path, extra_files={"metadata.json": json.dumps(self.metadata)})
        extra = {"metadata.json": ""}
        loaded = torch.export.load(path, extra_files=extra).module()
        metadata = json.loads(extra["metadata.json"])
        return self._compared(name, lambda inputs: loaded(**inputs), metadata, "", self.batches)

    def _program(self, batch: int, shapes: Any) -> torch.export.ExportedProgram:
        return torch.export.export(self.network, (), kwargs=self._inputs(batch), dynamic_shapes=shapes)

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

        return self._compared(name, run, metadata, f"onnxruntime {onnxruntime.__version__}", self.batches)

    def _inputs(self, batch: int) -> dict[str, Tensor]:
        return random_inputs(self.inputs, batch=batch, seed=self.seed)

    def _compared(
        self,
        name: str,
        run: Callable[[dict[str, Tensor]], Tensor],
        metadata: Mapping[str, Any],
        note: str,
        batches: Sequence[int],
    ) -> Result:
        differences, problems = [], []
        for i, batch in enumerate(batches, 1):
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
        if metadata.get("version") != self.metadata["version"]:
            problems.append("does not hold the bundle's metadata")
        sizes = "batches of 1 and 3" if batches is BATCHES else "one patient at a time only"
        parts = [f"differs by {largest:.0e}", sizes, self.weights, *([note] if note else [])]
        return Result(self.bundle.name, name, problems, ", ".join(parts))
