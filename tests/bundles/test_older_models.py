"""Models of version 0.1.0 stay valid: their ``model.json`` and the names of their weights give the same predictions.

The expected numbers were computed by 0.1.0's code: the weights follow from their names alone, so that no file is kept.
"""

import hashlib
import json
import math
from inspect import signature

import pytest
import torch

from shared.bundle import TrainedModel, load_model, trained_network
from shared.bundle.record import _ADDED, weights_digest
from shared.data import Datalist, GliomaDatalist
from shared.engines import AdditiveStage
from shared.errors import CheckpointError
from shared.handlers import FitAdditive
from shared.networks import GliomaClassifier, IRCLClassifier, SSCLClassifier
from shared.transforms import SequenceDropout

IRCL = {
    "num_images": 4,
    "num_biomarkers": 2,
    "num_modalities": 2,
    "per_modality": True,
    "channels": [4, 8],
    "embedding_dim": 128,
    "dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 8,
    "dropout": 0.5,
    "attention_temperature": 0.5,
    "num_classes": 2,
    "num_covariates": 1,
    "pooling": "modality",
    "bottleneck": False,
    "views": 2,
}
SSCL = {
    "encoder": {"block": "basic", "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stages": [3, 4]},
    "num_classes": 2,
    "dropout": 0.2,
}
MODELS = {
    "ircl_mvi": (
        "shared.networks.IRCLClassifier",
        IRCL,
        "a7dcdc3b6587d3d5",
        [[-1.814709, -1.959581], [-1.747815, -1.6704]],
    ),
    "sscl_crc": (
        "shared.networks.SSCLClassifier",
        SSCL,
        "c4da83489d6835bf",
        [[1.421048, 1.071206], [1.399799, 1.084695]],
    ),
}


def fill(state):
    """Weights that follow from their names and shapes."""
    found = {}
    for name, value in state.items():
        start = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + start % 100).reshape(value.shape)
        if not value.is_floating_point():
            found[name] = torch.ones_like(value)
        elif name.endswith(("running_var", "biomarkers")) or value.ndim == 1:
            found[name] = (1 + 0.3 * wave).to(value.dtype)
        else:
            found[name] = (wave / math.sqrt(value[0].numel())).to(value.dtype)
    return found


def names_digest(state):
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(state.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inputs(bundle):
    x = torch.sin(torch.arange(2 * 4 * 16 * 16) * 0.37).reshape(2, 4, 16, 16) * 0.5 + 0.5
    if bundle == "sscl_crc":
        return (torch.sin(torch.arange(2 * 3 * 32 * 32) * 0.37).reshape(2, 3, 32, 32) * 0.5 + 0.5,)
    return x, torch.tensor([[0.3], [-1.2]])


@pytest.mark.parametrize("bundle", MODELS)
def test_a_model_of_0_1_0_predicts_the_same(bundle, tmp_path):
    network, settings, names, expected = MODELS[bundle]
    (tmp_path / "model.json").write_text(json.dumps({"network": settings, "num_classes": 2}))
    train_config = tmp_path / "train.json"
    train_config.write_text("{}")
    built = trained_network(network, tmp_path, train_config)
    assert names_digest(built.state_dict()) == names, "names or shapes of the weights changed"
    state = fill(built.state_dict())
    torch.save(state, tmp_path / "model.pt")
    content = {"network": settings, "num_classes": 2, "weights": weights_digest(state)}
    (tmp_path / "model.json").write_text(json.dumps(content))
    load_model(tmp_path / "model.pt", built)
    with torch.no_grad():
        found = built.eval()(*inputs(bundle))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert TrainedModel(tmp_path, train_config).num_classes == 2


def test_a_setting_that_an_older_model_lacks_is_compared_by_its_default(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"network": IRCL}))
    given = ("shared.networks.IRCLClassifier", tmp_path, tmp_path / "train.json")
    assert trained_network(*given, attention="prototype").predictor.attention == "prototype"
    with pytest.raises(
        CheckpointError, match='network_def#attention is "self", the model was trained with "prototype"'
    ):
        trained_network(*given, attention="self")


# of each setting that came later, who takes it and as which argument; of two, the component itself
LATER = {
    "network_def#attention": (IRCLClassifier, "attention"),
    "network_def#additive": (GliomaClassifier, "additive"),
    "use_modalities": (Datalist, "use_modalities"),
    "train#layer_decay": (SSCLClassifier.parameter_groups, "decay"),
    "cross_fit#folds": (GliomaDatalist, "folds"),
    "datalist#held_out": (GliomaDatalist, "held_out"),
    "contrast#sequence_dropout": (SequenceDropout, "probability"),
    "contrast#dropout": (SequenceDropout, None),
    "additive#covariate_penalty": (AdditiveStage, "covariate_penalty"),
    "train#additive": (FitAdditive, None),
    "train#additive#strength": (FitAdditive, "strength"),
}


def test_a_setting_that_an_older_checkpoint_lacks_is_what_its_component_does_without_it():
    given = {key: kind.__name__ for key, (kind, name) in LATER.items() if name is None}
    given |= {key: signature(kind).parameters[name].default for key, (kind, name) in LATER.items() if name}
    assert given == _ADDED


def test_an_older_model_has_no_additive_predictor_and_answers_by_its_prototypes(tmp_path):
    older = {key: value for key, value in IRCL.items() if key not in ("additive", "answer", "attention")}
    (tmp_path / "model.json").write_text(json.dumps({"network": older}))
    given = ("shared.networks.IRCLClassifier", tmp_path, tmp_path / "train.json")
    built = trained_network(*given, answer=None)
    assert built.additive is None and built.answer == "prototype"
    assert not [name for name in built.state_dict() if name.startswith("additive")]
    assert trained_network(*given, answer="prototype").answer == "prototype"
    with pytest.raises(ValueError, match='answer must be "prototype" or, where `additive` is given'):
        trained_network(*given, answer="additive")


def test_which_trained_predictor_answers_is_a_switch(tmp_path):
    settings = {**IRCL, "additive": {"num_biomarkers": 3, "views": 2}, "answer": "additive"}
    (tmp_path / "model.json").write_text(json.dumps({"network": settings}))
    given = ("shared.networks.IRCLClassifier", tmp_path, tmp_path / "train.json")
    found = {answer: trained_network(*given, answer=answer).eval() for answer in (None, "additive", "prototype")}
    assert {answer: net.answer for answer, net in found.items()} == {
        None: "additive",
        "additive": "additive",
        "prototype": "prototype",
    }
    state, logits = fill(found[None].state_dict()), {}
    # the first member's encoder is the network's own
    state |= {f"additive.encoders.0.{name[8:]}": x for name, x in state.items() if name.startswith("encoder.")}
    for answer, net in found.items():
        net.load_state_dict(state)
        with torch.no_grad():
            logits[answer] = net(*inputs("ircl_mvi"))
    assert torch.equal(logits[None], logits["additive"])
    # the prototype transformer's prediction is that of a model without an additive predictor
    torch.testing.assert_close(logits["prototype"], torch.tensor(MODELS["ircl_mvi"][3]), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="network_def#additive"):
        trained_network(*given, additive={"num_biomarkers": 4, "views": 2})
