"""Training of IRCL: a stage II epoch on cached features, and a step of stage I in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _timing import Finding, interleaved, product, report

CONFIGS = Path(__file__).resolve().parents[1] / "bundles" / "ircl_mvi" / "configs"


def settings(*names: str) -> Any:
    """MONAI's parser of the bundle's configs, ``train.json`` and these overlays."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", *names)])
    parser["bundle_path"] = None  # it only serves packaged bundles
    return parser


def overlays(paper_size: bool) -> tuple[str, ...]:
    """The overlays of the paper's size, or of the CPU's."""
    return ("paper",) if paper_size else ("cpu",)


def noise_cases(count: int, images: int, size: int) -> Any:
    """Cases in memory whose images are noise: time does not depend on what they show."""
    import torch
    from monai.transforms import EnsureTyped

    from shared.data import CaseDataset

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, images, size, size, generator=generator)
    data = [{"patient": f"P{i}", "image": x[i], "label": i % 2} for i in range(count)]
    return CaseDataset(data, EnsureTyped("image", track_meta=False), progress=False)


def stage_two(*, device: Any, tiny: bool = False, paper_size: bool = False) -> list[Finding]:
    """An epoch of stage II: features encoded once against the encoder run in every epoch, same steps otherwise."""
    import torch
    from torch.utils.data import DataLoader

    from shared.data import FeatureRows, MixupTable
    from shared.engines import PrepareFeatures

    rows, ratio = [], float("inf")
    for views in (1,) if tiny else (8, 1):
        config = settings(*overlays(paper_size))
        config["network_def"]["views"] = views
        torch.manual_seed(0)
        network = config.get_parsed_content("network_def").to(device)
        size, batch = config["roi#size"], config["train#batch_size"]
        cases = noise_cases(4 if tiny else 12 if paper_size else 24, network.num_images, size)
        table = MixupTable(len(cases), ratio=2)
        features = FeatureRows(cases, network, table, device=device)
        images = cases.stack("image").to(device)
        labels = torch.nn.functional.one_hot(cases.stack("label").long(), 2).float().to(device)
        optimizer = torch.optim.AdamW(network.predictor.parameters(), lr=config["train#learning_rate"])
        loss, prepare = torch.nn.CrossEntropyLoss(), PrepareFeatures()
        loader = DataLoader(features, batch_size=batch, shuffle=True)

        def step(h, label, assignment, covariates, network=network, optimizer=optimizer, loss=loss) -> None:
            optimizer.zero_grad()
            loss(network.predictor(h, assignment, covariates), label).backward()
            optimizer.step()

        def cached(loader=loader, prepare=prepare, network=network, step=step) -> None:
            network.predictor.train()
            for data in loader:
                h, label, known, _ = prepare(data, device)
                step(h, label, *known)

        def encoded(network=network, table=table, images=images, labels=labels, batch=batch, step=step) -> None:
            network.predictor.train()
            for entries in torch.randperm(len(table)).split(batch):
                with torch.no_grad():
                    h, z = network.encode(table.mix(images, entries))
                    assignment = network.assign(z)[0]
                step(h, table.mix(labels, entries), assignment, torch.zeros(len(entries), 0, device=device))

        calls = {"cached epoch": cached, "re-encoding epoch": encoded, "GEMM": product(device)}
        interleaved(calls, 1, device)  # the features are encoded here, once
        seconds = interleaved(calls, 1 if tiny or paper_size else 5, device)
        gain = seconds["re-encoding epoch"] / seconds["cached epoch"]
        ratio = min(ratio, gain)
        rows.append(
            {
                "pixels": size,
                "views": views,
                "cases": len(table),
                **seconds,
                "cached / GEMM": seconds["cached epoch"] / seconds["GEMM"],
                "re-encoding / cached": gain,
            }
        )
    report("Stage II, an epoch of training steps (seconds)", rows)
    return [Finding("stage II epoch, re-encoding / cached", ">= 10", f"{ratio:.1f}", ratio >= 10)]


def stage_one(*, device: Any, tiny: bool = False, paper_size: bool = False) -> list[Finding]:
    """A step of stage I (L1 without VGG16, Eq. 5, Adam, bank update): float32 against bfloat16 and channels-last."""
    from shared.engines import bf16_is_fast
    from shared.losses import PerceptualReconstructionLoss

    config = settings(*overlays(paper_size))
    channels = config["network_def#channels"]
    batch = 4 if tiny else config["pretrain#batch_size"]
    reconstruction = PerceptualReconstructionLoss().to(device)
    rows, findings = [], []
    for size in (64,) if paper_size else (32, 64):
        calls = {
            "fp32": _step(reconstruction, channels, size, batch, device, bf16=False),
            "bf16 + channels-last": _step(reconstruction, channels, size, batch, device, bf16=True),
            "GEMM": product(device),
        }
        slow = paper_size and str(device) == "cpu"
        interleaved(calls, 1 if slow or tiny else 3, device)
        seconds = interleaved(calls, 1 if slow or tiny else 5, device)
        gain = seconds["fp32"] / seconds["bf16 + channels-last"]
        rows.append(
            {
                "channels": "-".join(map(str, channels)),
                "pixels": size,
                "batch": batch,
                **seconds,
                "fp32 / GEMM": seconds["fp32"] / seconds["GEMM"],
                "fp32 / bf16": gain,
            }
        )
        findings.append(Finding(f"stage I step at {size} px, fp32 / bf16 + channels-last", "-", f"{gain:.2f}"))
    native = "" if bf16_is_fast(device) else " not"
    report(f"Stage I, a training step (seconds; bfloat16 is{native} in this hardware)", rows)
    return findings


def _step(reconstruction: Any, channels: list[int], size: int, batch: int, device: Any, *, bf16: bool) -> Any:
    """A training step of stage I on a bank of 60 cases of 9 images, as the bundle's trainer does it."""
    import torch

    from shared.data import ContrastiveRows, MixupTable
    from shared.engines import AutocastInferer, PrepareRows
    from shared.losses import IRCLPretrainLoss, MemoryBank, MemoryBankContrastiveLoss
    from shared.networks import IRCLAutoencoder

    torch.manual_seed(0)
    memory_format = torch.channels_last if bf16 else torch.contiguous_format
    network = IRCLAutoencoder(channels).to(device, memory_format=memory_format).train()
    table = MixupTable(20, ratio=2)
    rows = ContrastiveRows(torch.rand(20, 9, size, size), table, num_modalities=3, device=device)
    bank = MemoryBank(len(rows), 128).to(device)
    bank.seed(torch.arange(len(rows)), torch.randn(len(rows), 128))
    loss = IRCLPretrainLoss(reconstruction, MemoryBankContrastiveLoss(bank), rows)
    loss.inter_positives = bank.positives(1, 1, 2, groups=rows.groups.to(device)).cpu()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    prepare, inferer = PrepareRows(rows, channels_last=bf16), AutocastInferer(bf16)

    def step() -> None:
        image, target = prepare({"row": torch.randint(len(rows), (batch,))}, device)
        optimizer.zero_grad()
        prediction = inferer(image, network)
        loss(prediction, target).backward()
        optimizer.step()
        bank.update(target["row"].to(device), prediction[-1].detach())

    return step
