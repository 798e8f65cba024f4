"""Grad-CAM's speed and memory beside a plain forward pass, MONAI's and pytorch-grad-cam's, and how far the maps differ.

ResNet50 on 32 patches of 224 pixels, last stage, one thread, CPU time, interleaved, medians. Run it from anywhere:

    python benchmarks/grad_cam.py                        # about three minutes on the CPU, 4 GB
    python benchmarks/grad_cam.py --images 8 --repeats 3

Peers that are not installed are left out; they are no requirements of this repository (pytorch-grad-cam imports
torchvision, opencv and ttach for other methods than Grad-CAM; empty modules stand in for those of them not installed):

    pip install --no-deps grad-cam==1.5.7 opencv-python-headless

MONAI's maps are 1 where ours are 0: they are turned round before they are compared. All explain the same class of every
image. Where there is CUDA it runs there, in wall time between synchronisations. A table of target and finding closes
the run.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

PEERS = ("MONAI", "pytorch-grad-cam")
STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "ttach")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, metavar="B", help="patches in a batch (default: 32)")
    parser.add_argument("--size", type=int, default=224, metavar="S", help="their side (default: 224)")
    parser.add_argument("--repeats", type=int, default=5, metavar="R", help="of every call (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs: no verdicts")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args(arguments)


def peer_grad_cam() -> tuple[Any, Any] | None:
    """pytorch-grad-cam's GradCAM and its target, or None."""
    if not importlib.util.find_spec("pytorch_grad_cam") or not importlib.util.find_spec("cv2"):
        return None
    missing = [name for name in STAND_INS if not importlib.util.find_spec(name.split(".")[0])]
    sys.modules.update({name: MagicMock(__spec__=None) for name in missing})
    try:
        peer = importlib.import_module("pytorch_grad_cam").GradCAM
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    finally:
        for name in missing:
            del sys.modules[name]
    return peer, target


def resnet(device: Any) -> Any:
    import torch
    from monai.networks.nets import resnet50

    torch.manual_seed(0)
    settings = {"spatial_dims": 2, "n_input_channels": 3, "conv1_t_stride": 2, "no_max_pool": False}
    return resnet50(**settings, bias_downsample=False, num_classes=2).to(device).eval()


def smooth_patches(count: int, size: int, device: Any) -> Any:
    """Patches that differ from place to place and from one another."""
    import torch

    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1).to(device)


def explainers(network: Any, images: Any, target: int) -> dict[str, Callable]:
    """Each way to a map of ``target``; each with a network of its own, since the peers leave their hooks in it."""
    import torch
    from monai.visualize import GradCAM as MonaiGradCAM

    from shared.explain import GradCAM

    def forward() -> Any:
        with torch.no_grad():
            return network(images)

    ours, monai = GradCAM(network, "layer4"), MonaiGradCAM(copy.deepcopy(network), "layer4")
    calls = {
        "forward": forward,
        "ours": lambda: ours(images, target),
        "MONAI": lambda: 1 - monai(images, class_idx=target),
    }
    if (peer := peer_grad_cam()) is not None:
        copied = copy.deepcopy(network)
        cam, targets = peer[0](copied, [copied.layer4]), [peer[1](target)] * len(images)
        calls["pytorch-grad-cam"] = lambda: torch.from_numpy(cam(images, targets))[:, None].to(images.device)
    return calls


def added_peak(call: Callable, device: Any) -> float:
    """MiB that a call adds to the peak of what is allocated on CUDA, or resident in this process (Linux)."""
    import torch
    from _timing import resident_peak

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident_peak()
    call()
    return resident_peak() - before


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    import torch
    from _timing import Finding, interleaved, product, report, summary

    torch.set_num_threads(1)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if given.tiny:
        given.images, given.size, given.repeats = 2, 64, 1
    print(
        f"torch {torch.__version__}; on {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'one thread'}"
    )
    network, images = resnet(device), smooth_patches(given.images, given.size, device)
    with torch.no_grad():
        target = int(network(images).mean(dim=0).argmax())
    calls = explainers(network, images, target)
    maps = calls["ours"]()
    shown = int(maps.flatten(1).any(dim=1).sum())
    memory = {name: added_peak(call, device) for name, call in calls.items()}
    seconds = interleaved({**calls, "GEMM": product(device)}, given.repeats, device)
    differs = {name: float((calls[name]() - maps).abs().max()) for name in PEERS if name in calls}
    report(f"Grad-CAM of {given.images} patches of {given.size} pixels, ResNet50 (seconds)", [seconds])
    report("added to the peak (MiB)", [memory])
    report("maps, largest difference", [{"not all zero": shown, **differs}])
    ratio = seconds["ours"] / seconds["forward"]
    findings = [Finding("Grad-CAM / forward pass", "<= 1.3", f"{ratio:.2f}", ratio <= 1.3)]
    for name in PEERS:
        if name not in calls:
            findings.append(Finding(f"Grad-CAM / {name}", "<= 0.5", "not installed"))
            continue
        ratio = seconds["ours"] / seconds[name]
        findings += [
            Finding(f"Grad-CAM / {name}", "<= 0.5", f"{ratio:.2f}", ratio <= 0.5),
            Finding("  the same map, up to polarity", "<= 1e-4", f"{differs[name]:.1e}", differs[name] <= 1e-4),
            Finding("  memory / its", "-", f"{memory['ours'] / max(memory[name], 1):.2f}"),
        ]
    summary(findings, judged=not given.tiny)
    return 0


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
