"""Views of 224-pixel patches a second on one core: this repository's batched augmentation against MONAI's transforms.

The same policy (random resized crop, flips, affine map, colour jitter, greyscale, blur) from the same decoded uint8
patches. MONAI's dictionary transforms work sample by sample, once as they come and once without tracking of metadata,
which is faster; the colour jitter, which MONAI lacks, is written below. (MONAI 1.6.1's lazy resampling fails on 2D
images when a random transform is not drawn.) CPU time of one thread, interleaved, medians; a matrix product (GEMM)
beside as the yardstick. From anywhere:

    python benchmarks/augmentation.py                    # views of 64, 96 and 224 pixels, about a minute
    python benchmarks/augmentation.py --sizes 96
    python benchmarks/augmentation.py --sizes 64 224 --batch 256 --repeats 5 --compile

kornia's batched augmentation is timed where it is installed, as it comes and, with --compile, under torch.compile
(compiled before it is timed; that takes minutes); it is no requirement of this repository:

    pip install --no-deps kornia==0.9.0 kornia_rs==0.2.0

A table of target and finding closes the run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

SOURCE, TARGET = 224, 2.5
POLICY = {
    "crop_scale": (0.2, 1.0),
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "affine_probability": 0.5,
    "rotation": 90,
    "translation": 0.1,
    "shear": 0.1,
    "zoom": 0.1,
    "jitter_probability": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "greyscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": (0.1, 2.0),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 224], help="sides of the views")
    parser.add_argument("--batch", type=int, default=64, help="views made at a time")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each, of which the median counts")
    parser.add_argument("--compile", action="store_true", help="also kornia's under torch.compile")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that the script runs: no verdicts")
    return parser.parse_args(arguments)


def patches(count: int, size: int) -> Any:
    """Seeded smooth colours as uint8 ``[N, 3, S, S]``: time does not depend on what they show."""
    import torch

    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).byte()


def colour_jitter(seed: int = 0) -> Callable[[Any], Any]:
    """Greyscale, brightness, contrast, saturation and hue of one image ``[3, H, W]``, one after the other."""
    import numpy as np
    import torch

    from shared.transforms.batched import YIQ

    rng = np.random.default_rng(seed)
    yiq = torch.tensor(YIQ)
    rgb, luma = torch.linalg.inv(yiq), yiq[0]

    def jitter(image: torch.Tensor) -> torch.Tensor:
        if rng.random() < POLICY["greyscale_probability"]:
            image = torch.tensordot(luma, image, 1).expand(3, -1, -1)
        if rng.random() >= POLICY["jitter_probability"]:
            return image
        brightness, contrast, saturation = (
            1 + rng.uniform(-POLICY[name], POLICY[name]) for name in ("brightness", "contrast", "saturation")
        )
        angle = 2 * np.pi * rng.uniform(-POLICY["hue"], POLICY["hue"])
        image = image * brightness
        image = image * contrast + (1 - contrast) * torch.tensordot(luma, image, 1).mean()
        image = image * saturation + (1 - saturation) * torch.tensordot(luma, image, 1)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        return torch.tensordot(rgb @ turn @ yiq, image, 1)

    return jitter


def monai_policy(size: int, source: int) -> Any:
    """The policy as MONAI's dictionary transforms of a uint8 patch."""
    from monai import transforms as mt

    keys, turn, jitter = "image", math.radians(POLICY["rotation"]), colour_jitter()
    return mt.Compose(
        [
            mt.Lambdad(keys, lambda x: x.float() / 255),
            mt.RandSpatialCropd(keys, round(source * POLICY["crop_scale"][0] ** 0.5), source, random_size=True),
            mt.Resized(keys, (size, size), mode="bilinear"),
            mt.RandFlipd(keys, prob=POLICY["horizontal_flip"], spatial_axis=1),
            mt.RandFlipd(keys, prob=POLICY["vertical_flip"], spatial_axis=0),
            mt.RandAffined(
                keys,
                prob=POLICY["affine_probability"],
                rotate_range=turn,
                shear_range=(POLICY["shear"],) * 2,
                translate_range=(POLICY["translation"] * size,) * 2,
                scale_range=(POLICY["zoom"],) * 2,
                padding_mode="reflection",
            ),
            mt.Lambdad(keys, jitter),
            mt.RandGaussianSmoothd(keys, POLICY["blur_sigma"], POLICY["blur_sigma"], prob=POLICY["blur_probability"]),
            mt.Lambdad(keys, lambda x: x.clamp(0, 1)),
        ]
    ).set_random_state(0)


def kornia_policy(size: int) -> Any:
    """The policy as kornia's batched transforms of uint8 patches, or None where it is not installed."""
    if importlib.util.find_spec("kornia") is None:
        return None
    ka = importlib.import_module("kornia.augmentation")
    shear, zoom = math.degrees(math.atan(POLICY["shear"])), 1 + POLICY["zoom"]
    jitter = [POLICY[name] for name in ("brightness", "contrast", "saturation", "hue")]
    # a Gaussian cut at three deviations
    kernel = (2 * math.ceil(3 * POLICY["blur_sigma"][1]) + 1,) * 2
    policy = ka.AugmentationSequential(
        ka.RandomResizedCrop((size, size), POLICY["crop_scale"], cropping_mode="resample"),
        ka.RandomHorizontalFlip(p=POLICY["horizontal_flip"]),
        ka.RandomVerticalFlip(p=POLICY["vertical_flip"]),
        ka.RandomAffine(
            POLICY["rotation"],
            translate=(POLICY["translation"],) * 2,
            scale=(1 / zoom, zoom),
            shear=(-shear, shear, -shear, shear),
            padding_mode="reflection",
            p=POLICY["affine_probability"],
        ),
        ka.ColorJitter(*jitter, p=POLICY["jitter_probability"]),
        ka.RandomGrayscale(p=POLICY["greyscale_probability"]),
        ka.RandomGaussianBlur(kernel, POLICY["blur_sigma"], p=POLICY["blur_probability"]),
    )
    return lambda images: policy(images.float() / 255)


def measure(size: int, *, source: int, batch: int, repeats: int, compiled: bool = False) -> dict[str, Any]:
    """Views a second at one size, and that both ways make views of alike brightness and spread."""
    import torch
    from _timing import interleaved, product
    from monai.data import set_track_meta

    from shared.transforms import ViewAugmentation

    images = patches(batch, source)
    samples = [{"image": image} for image in images]
    ours = ViewAugmentation(size, **POLICY)
    policy = monai_policy(size, source)

    def by_monai(tracked: bool) -> torch.Tensor:
        set_track_meta(tracked)
        return torch.stack([policy(dict(sample))["image"].as_subclass(torch.Tensor) for sample in samples])

    calls = {
        "ours": lambda: ours(images),
        "MONAI": lambda: by_monai(tracked=True),
        "MONAI, untracked": lambda: by_monai(tracked=False),
    }
    kornia = kornia_policy(size)
    if kornia is not None:
        calls["kornia"] = lambda: kornia(images)
        if compiled:
            compiled_kornia = torch.compile(kornia)
            calls["kornia, compiled"] = lambda: compiled_kornia(images)
            for _ in range(6):  # which samples are changed is drawn: other numbers of them are compiled anew
                compiled_kornia(images)
    made = {name: call() for name, call in calls.items()}
    seconds = interleaved(calls | {"GEMM": product()}, repeats)
    speed = {f"{name} views/s": batch / seconds[name] for name in calls}
    return {
        "size": size,
        **speed,
        "ours / MONAI": speed["ours views/s"] / max(speed["MONAI views/s"], speed["MONAI, untracked views/s"]),
        **{f"ours / {name}": speed["ours views/s"] / speed[f"{name} views/s"] for name in calls if "kornia" in name},
        **{f"{name} mean": float(views.mean()) for name, views in made.items()},
        **{f"{name} deviation": float(views.std()) for name, views in made.items()},
        "GEMM": seconds["GEMM"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    import torch
    from _timing import Finding, report, summary

    torch.set_num_threads(1)
    settings = {"source": SOURCE, "batch": given.batch, "repeats": given.repeats, "compiled": given.compile}
    if given.tiny:
        settings = {"source": 32, "batch": 4, "repeats": 1}
    rows = [measure(size, **settings) for size in ([16] if given.tiny else given.sizes)]
    report(f"views of {settings['source']}-pixel patches; GEMM in CPU seconds (torch {torch.__version__})", rows)
    findings = []
    for row in rows:
        ratio = row["ours / MONAI"]
        name = f"views a second / MONAI's faster way, {row['size']} px"
        findings.append(Finding(name, f">= {TARGET}", f"{ratio:.1f}", ratio >= TARGET))
        peers = [key for key in row if key.startswith("ours / kornia")]
        findings += [Finding(f"the same / {key.removeprefix('ours / ')}'s", "", f"{row[key]:.1f}") for key in peers]
    if importlib.util.find_spec("kornia") is None:
        findings.append(Finding("the same / kornia's", "", "pip install --no-deps kornia==0.9.0 kornia_rs==0.2.0"))
    summary(findings, judged=not given.tiny)
    return 0


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
