import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from shared.errors import DataError
from shared.explain import BiomarkerMask, centred_box_map, gaussian_divergence, localisation_scores, random_map
from tests.references.ircl_explain import gaussian_kl, mask_objective, mean_and_variance


class Encoder(nn.Module):
    """A small real encoder: convolutions, batch norm, dropout, unit embedding; returns (h, z)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        h = self.dropout(self.body(x).mean(dim=(2, 3)))
        return h, functional.normalize(self.head(h), dim=1)


class Quadrant(nn.Module):
    """An embedding that depends on the image's upper left quadrant only."""

    def forward(self, x):
        side = x.shape[-1] // 2
        cells = functional.avg_pool2d(x[:, :, :side, :side], 2).flatten(1)
        return functional.normalize(torch.cat([cells, torch.full_like(cells[:, :1], 0.3)], dim=1), dim=1)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder().double()


def _case(encoder, count=3):
    torch.manual_seed(1)
    image = torch.rand(count, 1, 12, 12, dtype=torch.float64)
    return image, functional.normalize(torch.randn(count, 6, dtype=torch.float64), dim=1)


def test_divergence_against_the_integral_of_the_densities():
    torch.manual_seed(0)
    mask = torch.rand(3, 1, 5, 4, dtype=torch.float64)
    found = gaussian_divergence(mask, prior_mean=0.2, prior_std=0.3, eps=1e-3)
    for one, value in zip(mask, found, strict=True):
        mean, variance = mean_and_variance(one.flatten().tolist())
        assert value.item() == pytest.approx(gaussian_kl(mean, variance, 0.2, 0.3, 1e-3), abs=1e-9)


def test_divergence_is_zero_at_the_prior_and_finite_for_a_constant_mask():
    mask = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2).requires_grad_()
    assert gaussian_divergence(mask, prior_mean=0.5, prior_std=0.5, eps=1e-30).item() == pytest.approx(0, abs=1e-12)
    for level in (0.0, 0.5, 1.0):
        constant = torch.full((2, 1, 4, 4), level, requires_grad=True)
        divergence = gaussian_divergence(constant, prior_mean=0.1, prior_std=0.3)
        closed = math.log(0.3) - 0.5 * math.log(1e-6) + (1e-6 + (level - 0.1) ** 2) / 0.18 - 0.5
        assert divergence.tolist() == pytest.approx([closed] * 2, rel=1e-5)
        (gradient,) = torch.autograd.grad(divergence.sum(), constant)
        assert gradient.isfinite().all()


def test_objective_against_naive_loops(encoder):
    image, target = _case(encoder)
    settings = {"prior_mean": 0.2, "prior_std": 0.3, "eps": 1e-3}
    explained = BiomarkerMask(steps=1, start=0.7, noise=0.5, seed=4, **settings).explain(encoder, image, target)
    noise = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logits = (math.log(0.7 / 0.3) + 0.5 * noise)[0, 0].tolist()

    def encode(rows):
        with torch.no_grad():
            return encoder.eval()(torch.tensor(rows, dtype=torch.float64)[None, None])[1][0].tolist()

    for i in range(len(image)):
        naive = mask_objective(encode, image[i, 0].tolist(), logits, target[i].tolist(), **settings)
        assert explained.history[0, i].item() == pytest.approx(naive, abs=1e-8)
        final = explained.mask[i, 0].logit().tolist()
        naive = mask_objective(encode, image[i, 0].tolist(), final, target[i].tolist(), **settings)
        assert explained.history[-1, i].item() == pytest.approx(naive, abs=1e-8)
        parts = explained.distance_after[i] + explained.divergence[i]
        assert parts.item() == pytest.approx(naive, abs=1e-8)


def test_one_step_is_adam_on_the_naive_gradient(encoder):
    image, target = _case(encoder, 1)
    settings = {"prior_mean": 0.2, "prior_std": 0.3, "eps": 1e-3}
    mask = BiomarkerMask(steps=1, learning_rate=0.1, start=0.6, **settings)(encoder, image, target)
    encoder.eval()
    q = torch.full((1, 1, 12, 12), math.log(0.6 / 0.4), dtype=torch.float64, requires_grad=True)
    distance = (encoder(image * q.sigmoid())[1] - target).abs().sum()
    (distance + gaussian_divergence(q.sigmoid(), **settings).sum()).backward()
    # the first step of Adam is lr * g / (|g| + 1e-8)
    expected = (q - 0.1 * q.grad / (q.grad.abs() + 1e-8)).sigmoid()
    torch.testing.assert_close(mask, expected.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"grid": 4}, {"total_variation": 2.0, "noise": 0.1}, {"chunk": 2}])
def test_batch_equals_each_image_alone(encoder, settings):
    image, target = _case(encoder, 5)
    explainer = BiomarkerMask(steps=25, **settings)
    together = explainer.explain(encoder, image, target)
    alone = [explainer.explain(encoder, image[i : i + 1], target[i : i + 1]) for i in range(5)]
    for name in ("mask", "distance_before", "distance_after", "distance_removed", "divergence"):
        torch.testing.assert_close(
            getattr(together, name), torch.cat([getattr(one, name) for one in alone]), rtol=0, atol=1e-8
        )
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(explainer(encoder, image[order], target[order]), together.mask[order], rtol=0, atol=1e-8)


def test_double_makes_float32_input_independent_of_its_batch(encoder):
    image, target = _case(encoder, 4)
    image, target, network = image.float(), target.float(), encoder.float()
    explainer = BiomarkerMask(steps=40, double=True)
    together = explainer(network, image, target)
    alone = torch.cat([explainer(network, image[i : i + 1], target[i : i + 1]) for i in range(4)])
    assert together.dtype == torch.float32 and next(network.parameters()).dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_the_network_is_left_as_it_was_found(encoder):
    image, target = _case(encoder)
    encoder.train()
    encoder.body.eval()
    encoder.head.requires_grad_(False)
    encoder.body[0].weight.grad = torch.ones_like(encoder.body[0].weight)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    mask = BiomarkerMask(steps=3)(encoder, image, target)
    assert not mask.requires_grad
    assert encoder.training and encoder.dropout.training and not encoder.body.training and not encoder.body[1].training
    assert encoder.body[0].weight.requires_grad and not encoder.head.weight.requires_grad
    assert torch.equal(encoder.body[0].weight.grad, torch.ones_like(encoder.body[0].weight))
    assert all(p.grad is None for n, p in encoder.named_parameters() if n != "body.0.weight")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(DataError):  # and also after a failure inside
        BiomarkerMask(steps=3)(encoder, image, target[:, :4])
    assert encoder.training and encoder.body[0].weight.requires_grad and not encoder.head.weight.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(encoder, context):
    image, target = _case(encoder)
    expected = BiomarkerMask(steps=5)(encoder, image, target)
    with context():
        found = BiomarkerMask(steps=5)(encoder, image * 1, target * 1)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_accepts_a_bare_embedding_and_a_tuple_that_ends_in_it(encoder):
    image, target = _case(encoder)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = encoder

        def forward(self, x):
            return self.inner(x)[1]

    explainer = BiomarkerMask(steps=3)
    assert torch.equal(explainer(encoder, image, target), explainer(Bare(), image, target))


def test_empty_and_constant_images_give_finite_masks(encoder):
    image = torch.stack([torch.zeros(1, 12, 12), torch.full((1, 12, 12), 0.4), torch.ones(1, 12, 12)]).double()
    explained = BiomarkerMask(steps=30).explain(encoder, image, _case(encoder)[1])
    for name in ("mask", "distance_before", "distance_after", "distance_removed", "divergence", "history"):
        assert getattr(explained, name).isfinite().all(), name
    assert explained.history.shape == (31, 3)
    # an empty image's embedding cannot depend on its mask, so only the prior's mean is fitted
    assert explained.mask[0].std() < 1e-6 < explained.mask[1].std()


def test_optimisation_lowers_the_objective_and_fits_the_prior(encoder):
    image, target = _case(encoder)
    explained = BiomarkerMask(steps=150, prior_mean=0.3, prior_std=0.3, kl_weight=5.0).explain(encoder, image, target)
    assert (explained.history[-1] < explained.history[0] - 1).all()
    assert (explained.divergence < 0.1).all()
    means = explained.mask.mean(dim=(1, 2, 3))
    assert ((means - 0.3).abs() < 0.1).all()


def test_mask_finds_the_quadrant_that_matters_and_beats_the_controls():
    torch.manual_seed(0)
    image = 0.3 + 0.7 * torch.rand(6, 1, 16, 16)
    target = Quadrant()(image)
    truth = torch.zeros(6, 1, 16, 16)
    truth[:, :, :8, :8] = 1
    explained = BiomarkerMask(steps=200, prior_mean=0.25, prior_std=0.4).explain(Quadrant(), image, target)
    scores = localisation_scores(explained.mask, truth)
    box, noise = (localisation_scores(m, truth) for m in (centred_box_map(truth.shape), random_map(truth.shape)))
    assert (scores["pointing"] == 1).all()
    assert (scores["energy_ratio"] > 2.5).all()
    assert (scores["energy_ratio"] > 2 * box["energy_ratio"]).all()
    assert (scores["energy_ratio"] > 2 * noise["energy_ratio"]).all()
    # sufficient: what is kept is at the biomarker; necessary: what is hidden is not
    assert (explained.distance_after < 0.2 * explained.distance_removed).all()


def test_a_coarse_grid_and_total_variation_make_smoother_masks(encoder):
    image, target = _case(encoder)

    def roughness(**settings):
        mask = BiomarkerMask(steps=60, **settings)(encoder, image, target)
        return mask.diff(dim=-1).abs().mean().item() + mask.diff(dim=-2).abs().mean().item()

    plain = roughness()
    assert roughness(grid=3) < 0.7 * plain
    assert roughness(total_variation=20.0) < 0.7 * plain


def test_errors_say_what_arrived(encoder):
    image, target = _case(encoder)
    with pytest.raises(DataError, match=r"one biomarker \[B, E\].*got \(3, 1, 12, 12\) and \(2, 6\)"):
        BiomarkerMask()(encoder, image, target[:2])
    with pytest.raises(DataError, match=r"as wide as the embedding: \(3, 4\) beside \(3, 6\)"):
        BiomarkerMask()(encoder, image, target[:, :4])
    image[1, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match=r"image at position \[1\].*NaN"):
        BiomarkerMask()(encoder, image, target)
    with pytest.raises(ValueError, match=r"got steps=0, prior_mean=1.5, noise=-1"):
        BiomarkerMask(steps=0, prior_mean=1.5, noise=-1)


class Roughness(nn.Module):
    """An embedding that depends on how much neighbouring pixels differ, wherever they are."""

    def forward(self, x):
        rough = 20 * x.diff(dim=-1).square().mean(dim=(1, 2, 3))
        return functional.normalize(torch.stack([rough, torch.full_like(rough, 0.2)], dim=1), dim=1)


def test_blurred_filling_leaves_zeros_and_constants_alone_and_removes_detail():
    torch.manual_seed(0)
    image = torch.zeros(2, 1, 24, 24)
    image[0, 0, 4:20, 4:20] = 0.7
    image[1, 0, 4:20, 4:20] = 0.5 + 0.2 * torch.rand(16, 16)
    filling = BiomarkerMask(fill="blur", blur=0.1)._filling(image)
    assert (filling[image == 0] == 0).all()
    torch.testing.assert_close(filling[0], image[0], atol=1e-5, rtol=0)
    assert filling[1, 0, 4:20, 4:20].std() < 0.4 * image[1, 0, 4:20, 4:20].std()
    assert (BiomarkerMask()._filling(image) == 0).all()


def test_blurred_filling_finds_a_texture_that_holes_hide():
    torch.manual_seed(0)
    image = torch.full((4, 1, 16, 16), 0.5)
    truth = torch.zeros_like(image)
    for i, (row, column) in enumerate([(1, 1), (9, 2), (2, 9), (9, 9)]):
        truth[i, 0, row : row + 5, column : column + 5] = 1
    image += truth * 0.8 * (torch.rand(image.shape) - 0.5)
    smooth, rough = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    rivals = torch.stack([rough, smooth]).repeat(4, 1, 1)
    settings = {
        "steps": 80,
        "distance_weight": 0.0,
        "contrast": 1.0,
        "removal": 1.0,
        "prior_mean": 0.1,
        "prior_std": 0.3,
    }
    found = {
        fill: localisation_scores(
            BiomarkerMask(fill=fill, start=0.5, **settings)(Roughness(), image, rivals[:, 0], rivals), truth
        )
        for fill in ("zero", "blur")
    }
    assert found["blur"]["pointing"].mean() == 1
    assert found["blur"]["energy_ratio"].mean() > 1.3 * found["zero"]["energy_ratio"].mean()
    assert found["blur"]["iou"].mean() > 1.5 * found["zero"]["iou"].mean()


def test_turning_shows_the_encoder_all_eight_views_and_repeats_with_its_seed(encoder):
    image, target = _case(encoder)
    seen = []

    watcher = nn.Sequential(encoder)
    watcher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    masks = [BiomarkerMask(steps=40, turn=True, seed=s)(watcher, image, target) for s in (3, 3, 4)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    corners = {tuple((x[0, 0] - x[0, 0].min())[[0, 0, -1, -1], [0, -1, 0, -1]].argsort().tolist()) for x in seen[:40]}
    assert len(corners) == 8


def test_unknown_filling_is_refused():
    with pytest.raises(ValueError, match=r"fill must be 'zero' .*'blur', got 'black'"):
        BiomarkerMask(fill="black")
    with pytest.raises(ValueError, match="blur=0"):
        BiomarkerMask(blur=0)


def test_contrast_is_added_and_what_the_rest_still_shows_is_punished():
    """The objective by its formula: cross-entropies of the shown and of the hidden part, the latter at most 5."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 3, generator=generator, dtype=torch.float64)

    class Linear(nn.Module):
        def forward(self, x):
            return functional.normalize(x.flatten(1) @ weight, dim=1)

    image = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    rivals = functional.normalize(torch.randn(2, 4, 3, generator=generator, dtype=torch.float64), dim=2)
    own, target = torch.tensor([1, 3]), rivals[torch.arange(2), torch.tensor([1, 3])]
    settings = {"distance_weight": 0.0, "kl_weight": 0.0, "contrast": 0.7, "removal": 2.0, "temperature": 0.2}
    found = BiomarkerMask(**settings)._objective(Linear(), image, 0 * image, mask, target, rivals, own)
    for k in range(2):
        surprise = []
        for part in (mask[k] * image[k], (1 - mask[k]) * image[k]):
            z = part.flatten() @ weight
            scores = (rivals[k] @ (z / z.norm()) / 0.2).tolist()
            surprise.append(math.log(sum(math.exp(s) for s in scores)) - scores[own[k]])
        assert found[k].item() == pytest.approx(0.7 * surprise[0] - 2.0 * min(surprise[1], 5.0))
