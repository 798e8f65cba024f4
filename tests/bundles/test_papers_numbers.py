"""Numbers that a paper states are those of the configs."""

import pytest
from monai.bundle import ConfigParser

from tests.support.bundle_runs import ROOT

PAPERS = {
    "ircl_mvi/train": {
        "pretrain#epochs": 80,
        "pretrain#update_every": 8,
        "pretrain#num_positives": 2,
        "pretrain#temperature": 0.07,
        "pretrain#momentum": 0.5,
        "network_def#embedding_dim": 128,
        "network_def#attention_temperature": 0.5,
        "mixup_ratio": 30,
        "mixup#alpha": 1.0,
    },
    "glioma_idh/train": {
        "contrast#tumour_weight": 0.8,
        "contrast#temperature": 0.1,
        "edges#temperature": 0.1,
        "contrast#decoupled": True,
        "contrast#rotation": 180.0,
        "network_def#attribute_widths": [2048, 1024, 512, 128, 32, 16],
        "network_def#edge_head": [32, 64, 128],
        "edges#fa_widths": [1024, 512, 128, 32, 16],
        "preparing#num_voxels": 1000,
        "preparing#num_points": 1024,
        "network_def#population#theta": 0.5,
        "network_def#graph": "both-brain",
    },
    "sscl_crc/paper": {"pretrain#temperature": 0.7, "pretrain#projection": [128], "network_def#encoder#stages": [4]},
}


@pytest.mark.parametrize(("config", "key"), [(config, key) for config, keys in PAPERS.items() for key in keys])
def test_numbers_that_a_paper_states_are_those_of_the_config(config, key):
    bundle, name = config.split("/")
    parser = ConfigParser()
    folder = ROOT / "bundles" / bundle / "configs"
    parser.read_config([str(folder / f"{one}.json") for one in dict.fromkeys(("train", name))])
    assert parser[key] == PAPERS[config][key]
