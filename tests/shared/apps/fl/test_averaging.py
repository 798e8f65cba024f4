"""FedAvg against its formula, and through MONAI's client on a bundle: one site's federation is plain training."""

import sys
from pathlib import Path

import pytest
import torch

from shared.apps.fl import fed_avg, site_algo, weighted_mean
from tests.support.small import small_settings
from tests.support.tiny_patches import write_patch_data

CONFIGS = Path(__file__).parents[4] / "bundles/sscl_crc/configs"


def states(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"weight": torch.randn(3, 2, generator=generator), "steps": torch.tensor(5 + number)} for number in range(count)
    ]


def test_the_mean_is_that_of_a_loop_in_float64():
    sites, shares = states(3), [7, 2, 5]
    found = weighted_mean(sites, shares)
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for state, share in zip(sites, shares, strict=True):
        for row in range(3):
            for column in range(2):
                expected[row, column] += share / 14 * float(state["weight"][row, column])
    torch.testing.assert_close(found["weight"].double(), expected, atol=1e-7, rtol=0)
    assert found["weight"].dtype == torch.float32 and found["steps"] == 5


def test_shares_count_and_one_site_is_itself_bit_by_bit():
    sites = states(2)
    doubled = weighted_mean([sites[0], sites[0], sites[1]], [1, 1, 1])
    torch.testing.assert_close(doubled["weight"], weighted_mean(sites, [2, 1])["weight"])
    assert torch.equal(weighted_mean(sites[:1], [3])["weight"], sites[0]["weight"])


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, -2]])
def test_a_site_without_a_share_is_refused(shares):
    with pytest.raises(ValueError, match="share above 0"):
        weighted_mean(states(2), shares)


def test_sites_of_other_networks_are_refused():
    with pytest.raises(ValueError, match="same network"):
        weighted_mean([{"a": torch.ones(1)}, {"b": torch.ones(1)}], [1, 1])


def settings(data, out, **more):
    places = {"dataset_dir": str(data), "ckpt_dir": str(out), "output_dir": str(out), "fold": -1}
    overrides = (
        small_settings("sscl_crc")
        | places
        | {"train#pretrained": None, "finetune_epochs": 4, "device": "$torch.device('cpu')"}
    )
    return {
        "configs": [str(CONFIGS / f"{name}.json") for name in ("train", "cpu")],
        "stage": "train",
        "local_epochs": 2,
        "overrides": overrides | more,
    }


def test_one_sites_federation_is_plain_training_and_two_sites_give_the_mean(tmp_path):
    hook = sys.excepthook
    data = [tmp_path / "north", tmp_path / "south"]
    for folder, seed in zip(data, (0, 1), strict=True):
        write_patch_data(folder, training=6, testing=2, each=2, seed=seed)
    plain = site_algo(name="plain", **settings(data[0], tmp_path / "plain"))
    start = {key: value.clone() for key, value in plain.get_weights().weights.items()}
    plain.trainer.state.max_epochs = 4
    plain.trainer.run()
    expected = plain.get_weights().weights

    site = site_algo(name="north", **settings(data[0], tmp_path / "a"))
    found = fed_avg([site], start, rounds=2)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(not torch.equal(found[key], start[key]) for key in expected)

    pair = [site_algo(name=f"{k}", **settings(folder, tmp_path / f"b{k}")) for k, folder in enumerate(data)]
    mean = fed_avg(pair, start, rounds=1)
    # MONAI's clients still hold what they sent
    sent = [algo.get_weights().weights for algo in pair]
    assert not torch.equal(sent[0]["head.weight"], sent[1]["head.weight"])
    torch.testing.assert_close(mean["head.weight"], (sent[0]["head.weight"] + sent[1]["head.weight"]) / 2)
    sys.excepthook = hook
