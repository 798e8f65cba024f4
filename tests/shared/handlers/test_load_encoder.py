import pytest
import torch
from ignite.engine import Engine

from shared.checkpoint import save_checkpoint
from shared.data import SlideBags
from shared.errors import CheckpointError
from shared.handlers import LoadEncoder, StartSlides
from shared.losses import BalancedCrossEntropyLoss
from shared.networks import ContrastiveNetwork, PatchEncoder, SlideMIL, SSCLClassifier, load_imagenet_weights

SMALL = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)}


def _start(handler, engine=None):
    engine = engine or Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([0], max_epochs=1)


def test_the_encoder_is_bitwise_the_pretrained_one(tmp_path):
    torch.manual_seed(0)
    pretrained, classifier = ContrastiveNetwork(SMALL, projection=(6,)), SSCLClassifier(SMALL | {"stages": (3, 4)})
    save_checkpoint(tmp_path / "pretrain.pt", {"network": pretrained.state_dict()})
    head = classifier.head.weight.clone()
    _start(LoadEncoder(tmp_path / "pretrain.pt", classifier))
    own = classifier.encoder.state_dict()
    assert all(torch.equal(own[key], value) for key, value in pretrained.encoder.state_dict().items())
    assert torch.equal(classifier.head.weight, head)


def test_a_model_of_slides_takes_a_finished_models_encoder_and_imagenet_weights_too(tmp_path):
    model = SSCLClassifier(SMALL)
    save_checkpoint(tmp_path / "model.pt", model.state_dict())
    save_checkpoint(tmp_path / "imagenet.pt", model.encoder.state_dict() | {"fc.weight": torch.zeros(1)})
    folded = PatchEncoder(**SMALL)
    load_imagenet_weights(folded, tmp_path / "imagenet.pt")
    entries = [{"image": "a.svs", "patient": "A", "label": 1}]
    for name, encoder in (("model.pt", model.encoder), ("imagenet.pt", folded)):
        found, bags = SlideMIL(SMALL), SlideBags(entries, lambda entry: torch.zeros(2, 16))
        _start(StartSlides(tmp_path / name, found, bags))
        own = found.encoder.state_dict()
        assert all(torch.equal(own[key], value) for key, value in encoder.state_dict().items()), name


def test_features_of_slides_are_standardised_over_all_training_slides_alike(tmp_path):
    save_checkpoint(tmp_path / "model.pt", SSCLClassifier(SMALL).state_dict())
    tiles = {"a": torch.full((1, 16), 3.0), "b": torch.tensor([[1.0] * 16, [5.0] * 16, [0.0] * 16])}
    entries = [{"image": name, "patient": name, "label": 1} for name in tiles]
    network = SlideMIL(SMALL)
    _start(StartSlides(tmp_path / "model.pt", network, SlideBags(entries, lambda entry: tiles[entry["image"]])))
    # means 3 and 2, mean squares 9 and 26 / 3
    torch.testing.assert_close(network.mean, torch.full((16,), 2.5))
    torch.testing.assert_close(network.spread, torch.full((16,), ((9 + 26 / 3) / 2 - 2.5**2) ** 0.5))


def test_from_scratch_nothing_is_loaded(tmp_path):
    classifier = SSCLClassifier(SMALL)
    before = classifier.encoder.conv1.weight.clone()
    _start(LoadEncoder(None, classifier))
    assert torch.equal(classifier.encoder.conv1.weight, before)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_balancing_loss_starts_the_head_at_the_frequencies(tmp_path, pretrained):
    path, classifier = tmp_path / "pretrain.pt", SSCLClassifier(SMALL)
    save_checkpoint(path, {"network": ContrastiveNetwork(SMALL, projection=(6,)).state_dict()})
    before = classifier.head.bias.detach().clone()
    loss = BalancedCrossEntropyLoss(torch.tensor([0, 1, 1, 1]), sampled=True)
    _start(LoadEncoder(path if pretrained else None, classifier, loss=loss))
    torch.testing.assert_close((classifier.head.bias.detach() - before).softmax(0), torch.tensor([0.25, 0.75]))


def test_a_stage_that_goes_on_keeps_its_own_encoder(tmp_path):
    classifier = SSCLClassifier(SMALL)
    engine = Engine(lambda engine, batch: None)
    engine.state.epoch = 3
    LoadEncoder(tmp_path / "not_there.pt", classifier)(engine)


def test_a_missing_or_foreign_checkpoint_is_named_with_the_remedy(tmp_path):
    classifier = SSCLClassifier(SMALL)
    with pytest.raises(CheckpointError, match=r"--run_id pretrain_run.*scratch\.json"):
        _start(LoadEncoder(tmp_path / "pretrain.pt", classifier))
    wider = ContrastiveNetwork(SMALL | {"channels": (8, 8, 8, 24)}, projection=(6,))
    save_checkpoint(tmp_path / "pretrain.pt", {"network": wider.state_dict()})
    with pytest.raises(CheckpointError, match="does not fit this network"):
        _start(LoadEncoder(tmp_path / "pretrain.pt", classifier))
