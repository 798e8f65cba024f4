import json

import pytest
import torch

from shared.bundle.settings import save_settings, trained_network, trained_settings
from shared.checkpoint import load_checkpoint, load_weights, save_checkpoint
from shared.errors import CheckpointError
from shared.networks import IRCLClassifier

TINY = {"num_images": 4, "channels": [4, 8], "embedding_dim": 6, "dim": 8, "num_heads": 2, "mlp_dim": 8}


@pytest.fixture
def config(tmp_path):
    """A training configuration whose numbers are not those of the trained model below."""
    path = tmp_path / "train.json"
    content = {
        "num_slices": 3,
        "roi": {"num_slices": "@num_slices", "size": 64},
        "network_def": {"_target_": "shared.networks.IRCLClassifier", **TINY, "num_layers": 1, "views": 8},
    }
    path.write_text(json.dumps(content))
    return path


def test_settings_of_the_trained_model_win_over_the_configuration(tmp_path, config):
    assert trained_settings(tmp_path, config, "roi") == {"num_slices": 3, "size": 64}
    save_settings(tmp_path, roi={"num_slices": 2, "size": 32}, covariates=["age"])
    assert trained_settings(tmp_path, config, "roi") == {"num_slices": 2, "size": 32}
    assert trained_settings(tmp_path, config, "covariates") == ["age"]


def test_the_trained_network_takes_its_own_weights(tmp_path, config):
    trained = IRCLClassifier(**TINY, num_layers=2, num_biomarkers=3, views=2).eval()
    save_settings(tmp_path, network=trained.settings)
    save_checkpoint(tmp_path / "model.pt", trained.state_dict())
    network = trained_network(IRCLClassifier, tmp_path, config).eval()
    load_weights(network, load_checkpoint(tmp_path / "model.pt"), "model.pt")
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(network(x), trained(x)) and network.views == 2
    assert trained_network(IRCLClassifier, tmp_path, config, views=trained.views).views == trained.views
    with pytest.raises(CheckpointError, match=rf"network_def#views is 5, the model was trained with {trained.views} "):
        trained_network(IRCLClassifier, tmp_path, config, views=5)


def test_without_a_trained_model_the_network_is_the_configurations(tmp_path, config):
    network = trained_network(IRCLClassifier, tmp_path, config)
    assert network.views == 8 and len(network.predictor.blocks) == 1
    assert trained_network(IRCLClassifier, tmp_path, config, views=1).views == 1


@pytest.mark.parametrize("content", [b'{"roi": {"size"', b"", b"\xff\xfe\x00\x80", b"[1, 2]", b"3", b'{"network": {}}'])
def test_a_damaged_model_json_is_named_with_its_remedy(tmp_path, config, content):
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.json is damaged or of another version .*--run_id train_run"):
        trained_settings(tmp_path, config, "roi")


def test_a_model_json_with_unknown_settings_is_of_another_version(tmp_path, config):
    save_settings(tmp_path, network={**TINY, "num_queries": 5})
    with pytest.raises(CheckpointError, match=r"model.json is damaged or of another version .*num_queries"):
        trained_network(IRCLClassifier, tmp_path, config)


def test_speed_is_the_machines_and_no_setting_of_the_model(tmp_path, config):
    def network(width, bf16=False):
        return width, bf16

    save_settings(tmp_path, network={"width": 3, "bf16": True})
    assert trained_network(network, tmp_path, config, bf16=False) == (3, False)


def test_model_json_may_name_networks_and_nothing_else(tmp_path, config):
    save_settings(
        tmp_path,
        network={
            "class": "monai.networks.nets.Classifier",
            "in_shape": [1, 8, 8],
            "classes": 2,
            "channels": [2],
            "strides": [2],
        },
    )
    assert type(trained_network(IRCLClassifier, tmp_path, config)).__name__ == "Classifier"
    save_settings(tmp_path, network={"class": "os.system", "command": "true"})
    with pytest.raises(CheckpointError, match=r"'os\.system', which is none of MONAI's"):
        trained_network(IRCLClassifier, tmp_path, config)


def test_what_is_of_the_training_alone_is_no_setting_of_the_model(tmp_path, config):
    def network(width, freeze=False):
        return width

    save_settings(tmp_path, network={"width": 3})
    assert trained_network(network, tmp_path, config, freeze=True) == 3
    with pytest.raises(CheckpointError, match="network_def#depth is 2, the model was trained with"):
        trained_network(network, tmp_path, config, depth=2)
