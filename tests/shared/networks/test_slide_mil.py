"""Attention over a slide's tiles: the naive reference's numbers, parts that sum to the logit, a frozen encoder."""

import pytest
import torch

from shared.data.slides.bags import SlideBags
from shared.networks import SlideMIL
from tests.references.slide_mil import moments, slide_mil

ENCODER = {"block": "basic", "layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SlideMIL(ENCODER, hidden=5, dropout=0.5).eval()


def drawn(*counts):
    """Slides of so many tiles; one feature never changes."""
    slides = [3 + 2 * torch.randn(count, 8) for count in counts]
    for tiles in slides:
        tiles[:, 3] = 1.5
    return slides


def expected(network, tiles):
    numbers = {name: value.double().tolist() for name, value in network.state_dict().items() if "encoder" not in name}
    pair = {key: (numbers[f"{key}.weight"], numbers[f"{key}.bias"]) for key in ("attention.value", "attention.gate")}
    score, head = numbers["attention.score.weight"][0], (numbers["head.weight"], numbers["head.bias"])
    return slide_mil(tiles.double().tolist(), numbers["mean"], numbers["spread"], *pair.values(), score, head)


def test_numbers_are_the_references(network):
    slides = drawn(7, 2, 12)
    network.standardise(torch.stack([torch.stack([x.mean(0), x.square().mean(0)]) for x in slides]))
    mean, spread = moments([x.double().tolist() for x in slides])
    assert network.mean.tolist() == pytest.approx(mean, abs=1e-5)
    assert network.spread.tolist() == pytest.approx(spread, rel=1e-4) and spread[3] == float("inf")
    for tiles in slides:
        logits, attention, contributions = expected(network, tiles)
        found = network.details(tiles[None])
        assert found.logits[0].tolist() == pytest.approx(logits, abs=1e-5)
        assert found.attention[0].tolist() == pytest.approx(attention, abs=1e-6)
        torch.testing.assert_close(found.contributions[0], torch.tensor(contributions).double(), atol=1e-5, rtol=0)
        assert network(tiles[None])[0].tolist() == pytest.approx(logits, abs=1e-5)


def test_a_feature_that_no_training_slide_changes_says_nothing_in_a_new_one(network):
    network.standardise(torch.stack([torch.stack([x.mean(0), x.square().mean(0)]) for x in drawn(7, 2, 12)]))
    (new,) = drawn(5)
    other = new.clone()
    other[:, 3] += 0.2
    assert torch.equal(network(new[None]), network(other[None]))


def test_contributions_and_bias_are_the_logit_however_many_tiles(network):
    found = network.details(torch.randn(1, 20000, 8))
    assert (found.contributions.sum(dim=1) + network.head.bias - found.logits).abs().max() < 1e-6


def test_a_slide_in_a_batch_is_the_slide_alone(network):
    slides = drawn(3, 9)
    entries = [{"image": str(number), "patient": "A", "label": number} for number in range(2)]
    bags = SlideBags(entries, lambda entry: slides[int(entry["image"])])
    batch = bags.collate([bags[0], bags[1]])
    found = network.details(batch["image"], batch["mask"])
    for row, tiles in enumerate(slides):
        alone = network.details(tiles[None])
        torch.testing.assert_close(found.logits[row], alone.logits[0])
        torch.testing.assert_close(found.contributions[row, : len(tiles)], alone.contributions[0])
    assert found.attention[0, 3:].eq(0).all() and found.contributions[0, 3:].eq(0).all()


def test_the_encoder_stays_as_it_is(network):
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network.train()
    assert network.dropout.training and not any(module.training for module in network.encoder.modules())
    optimizer = torch.optim.AdamW(network.parameters(), 0.1, weight_decay=0.5)
    h = network.encoder(torch.rand(4, 3, 64, 64))
    network(h[None]).sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in network.encoder.state_dict().items())


def test_images_are_refused(network):
    with pytest.raises(ValueError, match="takes features of tiles"):
        network(torch.rand(2, 3, 64, 64))


def test_tiles_are_drawn_anew_and_classes_evenly():
    entries = [{"image": str(n), "patient": "A", "label": int(n == 3)} for n in range(4)]
    bags = SlideBags(entries, lambda entry: torch.arange(50.0)[:, None], tiles=10)
    one, other = (set(bags[0]["image"].flatten().tolist()) for _ in range(2))
    assert len(one) == len(other) == 10 and one != other
    assert bags.balanced_weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
