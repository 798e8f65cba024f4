"""The first epochs of contrast: encoders are shielded for as many as asked, also where training goes on."""

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from shared.handlers import UnimodalFirst
from shared.losses import BiLevelContrastiveLoss, GliomaLoss
from tests.support.tiny_brains import glioma_network


def loss(**settings):
    return GliomaLoss(BiLevelContrastiveLoss(), **settings)


@pytest.mark.parametrize(
    ("unimodal", "settings", "expected"),
    [
        (True, {}, [True, True, False, False]),
        (False, {}, [False] * 4),
        # where their classifiers have no weight, nothing would teach shielded encoders
        (True, {"unimodal_weight": 0}, [False] * 4),
        (True, {"classification_weight": 0}, [False] * 4),
    ],
)
def test_encoders_are_shielded_for_the_first_epochs(unimodal, settings, expected):
    net = glioma_network(objective="multitask", unimodal=unimodal)
    features = SimpleNamespace(features=SimpleNamespace(glioma=net))
    seen = []
    for start in (0, 1, 3):
        engine = Engine(lambda engine, batch: seen.append(net.shielded))
        UnimodalFirst(features, loss(**settings), 0.5).attach(engine)
        engine.add_event_handler(Events.STARTED, lambda engine, start=start: setattr(engine.state, "epoch", start))
        net.shielded = False
        engine.run([0], max_epochs=4)
    # from the start, after one epoch, after three
    assert seen == expected + expected[1:] + expected[3:]
    with pytest.raises(ValueError, match="between 0 and 1, got 40"):
        UnimodalFirst(features, loss(), 40)
