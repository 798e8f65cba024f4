"""Tiny networks, short trainings and small cohorts of the three bundles: what their tests share."""

import subprocess
import sys
from pathlib import Path

from tests.support.tiny_glioma import write_cohort

ROOT = Path(__file__).parents[2]

SMALL = {
    "glioma_idh": {
        "preparing#size": 16,
        "preparing#num_points": 32,
        "preparing#radii": [8.0, 14.0],
        "preparing#num_voxels": 8,
        "network_def#image#channels": [4, 8],
        "network_def#image#hidden": [8],
        "network_def#points#channels": [4, 8],
        "network_def#points#hidden": [8],
        "network_def#brain#channels": [8],
        "network_def#brain#hidden": [8],
        "network_def#projection": [8, 8, 16],
        "network_def#attribute_widths": [16, 8],
        "network_def#embedding_dim": 8,
        "edges#fa_widths": [8, 8],
        "nodes#epochs": 2,
        "edges#epochs": 2,
        "contrast#epochs": 3,
        "contrast#batch_size": 5,
        "train#epochs": 6,
        "val_interval": 6,
        "bf16": False,
    },
    "ircl_mvi": {
        "network_def#channels": [8, 16, 32],
        "network_def#num_biomarkers": 2,
        "network_def#views": 2,
        "network_def#dim": 16,
        "network_def#num_heads": 2,
        "network_def#mlp_dim": 16,
        "pretrain#epochs": 3,
        "pretrain#max_epochs": 3,
        "pretrain#batch_size": 36,
        "train#epochs": 3,
        "mixup_ratio": 1,
        "bf16": False,
    },
    "sscl_crc": {
        "cache_size": 64,
        "size": 64,
        "train#size": 64,
        # not fewer than 8: PyTorch 2.13's strided 1 x 1 convolution crashes then on CPUs without AVX-512
        "network_def#encoder#channels": [8, 8, 8, 16],
        "pretrain#size": 48,
        "pretrain#projection": [16, 8],
        "pretrain#epochs": 2,
        "pretrain#batch_size": 16,
        "train#samples_per_epoch": 32,
        "train#batch_size": 16,
        "finetune_epochs": 2,
        "views": 2,
        "bf16": False,
    },
}
_PHANTOMS = {
    "ircl_mvi": ["make_phantom_cohort.py", "--patients", "24", "--test-patients", "4", "--folds", "2"],
    "sscl_crc": [
        *("make_phantom_patches.py", "--patches", "40", "--test-patches", "12", "--unlabelled", "8", "--folds", "2"),
        *("--size", "96", "--per-slide", "4"),
    ],
}


def small_settings(bundle):
    """Overrides for a tiny network and a short training."""
    return dict(SMALL[bundle])


def small_data(bundle, folder):
    """A prepared cohort in ``folder``: 24 patients and 4 to test, 40 patches and 12, 20 gliomas and 6."""
    if bundle == "glioma_idh":
        return write_cohort(folder)
    script, *options = _PHANTOMS[bundle]
    command = [sys.executable, ROOT / "scripts" / script, "--output", folder, *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder
