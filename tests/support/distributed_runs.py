"""Bundles in two processes: commands of ``monai.bundle run`` one after the other, as torchrun would start each.

Run as a script by torchrun, with a JSON list of argument lists; a command may end with the planned interruption.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from ignite.engine import Events

from shared.distributed.processes import rank, stop
from shared.networks import ContrastiveNetwork, IRCLAutoencoder

ROOT = Path(__file__).parents[2]


class Interrupted(RuntimeError):
    """The planned end of a run."""


class Witness:
    """Keeps the gradients of the first iteration, and the memory bank after it, of every rank."""

    def __init__(self, path, network, bank=None):
        self.path, self.network, self.bank = Path(path), network, bank

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine):
        content = {"gradients": {k: p.grad.clone() for k, p in self.network.named_parameters() if p.grad is not None}}
        if self.bank is not None:
            content |= {key: value.clone() for key, value in self.bank.state_dict().items()}
        torch.save(content, self.path.with_name(f"{self.path.name}_{rank()}.pt"))


class Stop:
    """Ends the run when an epoch begins, as a loss of power would; once, so that the same settings go on."""

    def __init__(self, epoch, marker):
        self.epoch, self.marker = epoch, Path(f"{marker}_{rank()}")

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_STARTED(once=self.epoch), self)

    def __call__(self, engine):
        if not self.marker.exists():
            self.marker.touch()
            raise Interrupted


class TwoViews:
    """The image and its mirror image in float64, nothing drawn: the same views whoever makes them."""

    def __init__(self, size):
        self.size, self.generator = size, torch.Generator()

    def __call__(self, images):
        x = torch.nn.functional.interpolate(images.double() / 255, (self.size, self.size))
        first, second = x.chunk(2)
        return torch.cat([first, second.flip(3)])


class LivelyAutoencoder(IRCLAutoencoder):
    """In float64 and without biases: untrained embeddings that differ by more than rounding."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.double()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)

    def forward(self, x):
        return super().forward(x.double())


class DoubleNetwork(ContrastiveNetwork):
    """In float64."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.double()


def arguments(bundle, *configs, data, out, run_id="run", overlay=None, **overrides):
    """Arguments of ``monai.bundle run``."""
    folder = ROOT / "bundles" / bundle / "configs"
    files = [str(folder / f"{name}.json") for name in configs] + ([str(overlay)] if overlay else [])
    places = {"bundle_root": folder.parent, "dataset_dir": data, "ckpt_dir": out / "models", "output_dir": out / "eval"}
    options = ["--config_file", str(files), "--run_id", run_id, "--final_id", "stay_joined"]
    for key, value in (places | overrides).items():
        options += [f"--{key}", str(value)]
    return options


def torchrun(commands, *, processes=2):
    """Run the commands in that many processes; what they printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # NCCL gives each process a GPU of its own: more than a machine may have
    command = [*launch, __file__, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-9000:]
    return done.stdout + done.stderr


def _interrupted(error):
    while error is not None:
        if isinstance(error, Interrupted) or type(error).__name__ == "Interrupted":
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        sys.argv[1:] = ["run", *command]
        try:
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        except Exception as error:
            if not _interrupted(error):
                raise
    stop()
