import json

import pytest
import torch

from shared.checkpoint import load_checkpoint, load_weights, save_checkpoint
from shared.errors import CheckpointError, DataError
from shared.networks import IRCLClassifier
from shared.settings import check_overrides, save_settings, trained_network, trained_settings

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


# --- what a trained model is made of ------------------------------------------------------------------------------


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


# --- misspelt overrides -------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.json").write_text(
        json.dumps({"pretrain": {"epochs": 80, "learning_rate": 0.1}, "seed": 0, "ckpt_dir": "m", "bf16": 1})
    )
    (tmp_path / "cpu.json").write_text(json.dumps({"+pretrain#epochs": 12, "mixup_ratio": 2}))
    return [str(tmp_path / "train.json"), str(tmp_path / "cpu.json")]


def command(files, *arguments):
    return ["/env/site-packages/monai/bundle/__main__.py", "run", *arguments, "--config_file", str(files)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "1", "--ckpt_dir", "out", "--run_id", "train_run"],
        ["--pretrain#epochs", "3", "--pretrain::learning_rate=1e-3", "--mixup_ratio=4"],
        ["--logging_file", "logging.conf", "--meta_file=x.json", "--bf16", "-1"],
        [],
    ],
)
def test_keys_of_any_of_the_files_are_taken(files, arguments):
    check_overrides(command(files, *arguments))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ckptdir", r"--ckptdir is no key of .*train.json.*cpu.json.*Did you mean --ckpt_dir\?"),
        ("--mixup-ration=3", r"--mixup-ration is no key of .* Did you mean --mixup_ratio\?"),
        ("--pretrian#epochs", r"--pretrian#epochs is no key of .* Did you mean --pretrain#epochs\?"),
        ("--pretrain#epocs", r"--pretrain#epocs is no key of .* Did you mean --pretrain#epochs"),
        ("--xyz", r"--xyz is no key of [^?]*$"),
    ],
)
def test_a_misspelt_override_is_refused_with_a_suggestion(files, argument, message):
    with pytest.raises(DataError, match=message):
        check_overrides(command(files, argument, "3"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "false"], r"--seed false: .*counts as true; write False"),
        (["--pretrain#epochs=null"], r"--pretrain#epochs null: .*as a text.*small JSON"),
        (["--mixup_ratio", "{'a': [false, 1]}"], r"\[false, 1\].*counts as true; write False"),
        (["--seed", "FALSE"], r"--seed FALSE: .*write False"),
        (["--ckpt_dir", "None"], r"--ckpt_dir None: .*ignored.*small JSON"),
    ],
)
def test_a_value_that_would_arrive_as_another_one_is_refused(files, arguments, message):
    with pytest.raises(DataError, match=message):
        check_overrides(command(files, *arguments))


def test_values_that_arrive_as_they_read_are_taken(files):
    check_overrides(command(files, "--seed", "True", "--pretrain#epochs", "none", "--ckpt_dir", "[False,'a none']"))
    check_overrides(command(files, "--seed", "[1,None]", "--ckpt_dir", "['/data/null','false']"))


@pytest.mark.parametrize("form", ["{0}", "['{0}','{1}']", '["{0}", "{1}"]', "[{0},{1}]"])
def test_config_files_are_found_in_any_form(files, form):
    prefix = command([], "--sed", "1")[:-2]
    for tail in (["--config_file", form.format(*files)], [f"--config_file={form.format(*files)}"]):
        check_overrides([*prefix[:2], "--seed", "1", *tail])
        with pytest.raises(DataError, match=r"Did you mean --seed"):
            check_overrides([*prefix, *tail])


def test_other_commands_are_left_alone(files):
    check_overrides(["pytest", "run", "--nonsense", "1", "--config_file", files[0]])
    check_overrides([command(files)[0], "download", "--nonsense", "1"])
    check_overrides([command(files)[0], "run", "--nonsense", "1"])  # no configuration to compare with
    check_overrides([])
