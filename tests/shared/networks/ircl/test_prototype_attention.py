import pytest
import torch
from sklearn.linear_model import LogisticRegression

from shared.networks import PrototypeAttention, PrototypeTransformer
from shared.networks.ircl.prototype_attention import biomarker_prototypes
from tests.references import ircl_networks as reference


def random_patients(count=3, images=5, width=8, biomarkers=4, *, seed=0, dtype=torch.float64):
    """Features and assignments in which the last biomarker is always empty."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(count, images, width, generator=generator, dtype=torch.float64).to(dtype)
    return h, torch.randint(biomarkers - 1, (count, images), generator=generator)


def tiny(**settings):
    torch.manual_seed(0)
    given = {"dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 12, **settings}
    net = PrototypeTransformer(6, num_images=4, num_biomarkers=3, **given).eval()
    with torch.no_grad():  # norms and biases away from their starting values, so that leaving one out is seen
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


# --- against the paper --------------------------------------------------------------------------------------------


def test_prototypes_equal_equation_7():
    h, assignment = random_patients()
    found, occupied = biomarker_prototypes(h, assignment, 4)
    for patient in range(len(h)):
        means, counts = reference.prototypes(h[patient].tolist(), assignment[patient].tolist(), 4)
        torch.testing.assert_close(found[patient], torch.tensor(means, dtype=torch.float64))
        assert occupied[patient].tolist() == [count > 0 for count in counts]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("hidden", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_equals_equations_8_and_9_head_by_head(heads, hidden, temperature):
    torch.manual_seed(1)
    attention = PrototypeAttention(8, heads, temperature).double()
    h, assignment = random_patients()
    present = torch.tensor([k not in hidden for k in range(4)]).expand(len(h), 4)
    found = attention(h, assignment, 4, present)
    prototypes, occupied = biomarker_prototypes(h, assignment, 4)
    shares = attention.weights(h, prototypes, occupied & present)
    names = ("query", "key", "value", "output")
    parameters = {name: [p.tolist() for p in getattr(attention, name).parameters()] for name in names}
    for patient in range(len(h)):
        expected, weights = reference.prototype_attention(
            h[patient].tolist(), assignment[patient].tolist(), 4, parameters, heads, temperature, hidden
        )
        torch.testing.assert_close(found[patient], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
        if weights is not None:
            torch.testing.assert_close(shares[patient], torch.tensor(weights, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("pooling", "groups"), [("mean", 1), ("modality", 2)])
def test_transformer_equals_a_loop(pooling, groups):
    net = tiny(pooling=pooling, num_modalities=2, temperature=0.7).double()
    h, assignment = torch.randn(2, 4, 6, dtype=torch.float64), torch.tensor([[0, 0, 2, 1], [2, 2, 2, 2]])
    for patient in range(2):
        expected = reference.prototype_transformer(
            h[patient].tolist(),
            assignment[patient].tolist(),
            3,
            net.state_dict(),
            num_layers=2,
            num_heads=2,
            temperature=0.7,
            groups=groups,
        )
        assert net(h, assignment)[patient].tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("known", [True, False])
def test_many_settings_of_one_patient_equal_the_patient_repeated(known):
    net = tiny(num_covariates=2).double()
    h, assignment = torch.randn(3, 4, 6, dtype=torch.float64), torch.tensor([[0, 0, 2, 1], [2, 2, 2, 2], [1, 0, 1, 0]])
    covariates = torch.randn(3, 2, dtype=torch.float64) if known else None
    row = torch.tensor([0, 2, 2, 2, 0])
    present = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
    expected = net(h[row], assignment[row], covariates[row] if known else None, present)
    found = net(h, assignment, covariates, present, row)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    assert len(found.unique(dim=0)) == 5


# --- plain self-attention, the ablation ---------------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "groups"), [("mean", 1), ("modality", 2)])
def test_self_attention_equals_a_loop_in_which_every_image_is_its_own_prototype(pooling, groups):
    net = tiny(pooling=pooling, num_modalities=2, temperature=0.7, attention="self").double()
    h, own = torch.randn(2, 4, 6, dtype=torch.float64), torch.arange(4)
    for patient in range(2):
        expected = reference.prototype_transformer(
            h[patient].tolist(),
            own.tolist(),
            4,
            net.state_dict(),
            num_layers=2,
            num_heads=2,
            temperature=0.7,
            groups=groups,
        )
        for assignment in (torch.zeros(2, 4, dtype=torch.long), torch.tensor([[0, 0, 2, 1], [2, 2, 2, 2]])):
            assert net(h, assignment)[patient].tolist() == pytest.approx(expected, abs=1e-11)


def test_the_kind_of_attention_changes_no_name_and_no_starting_weight():
    one, other = tiny().state_dict(), tiny(attention="self").state_dict()
    assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_self_attention_has_no_biomarkers_to_hide_and_no_bottleneck():
    net, h = tiny(attention="self"), torch.randn(2, 4, 6)
    with pytest.raises(ValueError, match="has no biomarkers that could be hidden"):
        net(h, torch.zeros(2, 4, dtype=torch.long), present=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="A bottleneck of biomarkers needs attention to them"):
        tiny(attention="self", bottleneck=True)
    with pytest.raises(ValueError, match='attention must be "prototype" or "self", got \'none\''):
        tiny(attention="none")


# --- prototypes that are not there --------------------------------------------------------------------------------


def test_an_empty_prototype_gets_exactly_zero_attention():
    attention = PrototypeAttention(8, 2)
    h, assignment = random_patients(dtype=torch.float32)
    prototypes, occupied = biomarker_prototypes(h, assignment, 4)
    weights = attention.weights(h, prototypes, occupied)
    assert (~occupied).any() and (weights.transpose(0, 3)[:, 0, 0].T[~occupied] == 0).all()
    assert (weights.movedim(3, 1)[~occupied] == 0).all() and (weights.movedim(3, 1)[occupied] > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    # as if the biomarker did not exist at all
    torch.testing.assert_close(attention(h, assignment, 3), attention(h, assignment, 4))


def test_hiding_one_biomarker_is_the_same_as_never_having_seen_its_prototype():
    attention = PrototypeAttention(8, 2)
    h, _ = random_patients(1, dtype=torch.float32)
    present = torch.tensor([[True, False]])
    hidden = attention(h, torch.tensor([[0, 0, 1, 1, 0]]), 2, present)
    # values behind the hidden prototype must not matter, so other features there change nothing of the others
    changed = h.clone()
    changed[:, 2:4] += 5.0
    other = attention(changed, torch.tensor([[0, 0, 1, 1, 0]]), 2, present)
    torch.testing.assert_close(hidden[:, [0, 1, 4]], other[:, [0, 1, 4]])
    assert not torch.allclose(attention(h, torch.tensor([[0, 0, 1, 1, 0]]), 2), hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_hidden_is_finite_forward_and_backward(dtype):
    net = tiny().to(dtype)
    h = torch.randn(2, 4, 6, dtype=dtype, requires_grad=True)
    logits = net(h, torch.tensor([[0, 1, 2, 0], [1, 1, 1, 1]]), present=torch.zeros(2, 3, dtype=torch.bool))
    logits.sum().backward()
    assert logits.isfinite().all() and h.grad.isfinite().all() and (h.grad != 0).any()


def test_all_hidden_leaves_only_the_output_bias():
    attention = PrototypeAttention(8, 2)
    h, assignment = random_patients(dtype=torch.float32)
    found = attention(h, assignment, 4, torch.zeros(3, 4, dtype=torch.bool))
    torch.testing.assert_close(found, attention.output.bias.expand_as(found))


def test_softmax_stays_in_float32_under_autocast():
    attention = PrototypeAttention(8, 2)
    h, assignment = random_patients(dtype=torch.float32)
    prototypes, occupied = biomarker_prototypes(h, assignment, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.weights(h, prototypes, occupied).dtype == torch.float32
        assert attention(h, assignment, 4).isfinite().all()


# --- covariates ---------------------------------------------------------------------------------------------------


def test_fit_covariates_starts_at_the_logistic_regression():
    net = tiny(num_covariates=2)
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(40, 2, generator=generator) * torch.tensor([10.0, 0.5]) + torch.tensor([50.0, 1.0])
    labels = ((known[:, 0] - 50) / 10 - known[:, 1] + torch.randn(40, generator=generator) > 0).long()
    net.fit_covariates(known, labels)
    standard = (known - known.mean(0)) / known.std(0)
    expected = LogisticRegression().fit(standard.numpy(), labels.numpy())
    with torch.no_grad():
        net.head.weight[:, :-2] = 0  # the covariates alone
        logits = net(torch.randn(40, 4, 6, generator=generator), torch.zeros(40, 4, dtype=torch.long), known)
    found = logits.softmax(dim=1).numpy()
    assert abs(found - expected.predict_proba(standard.numpy())).max() < 1e-5
    assert abs(found[:, 1] - 0.5).max() > 0.3


def test_fit_covariates_of_three_classes_and_of_a_constant_one():
    net = tiny(num_covariates=2, num_classes=3)
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(30) % 3
    known = torch.stack([labels + torch.randn(30, generator=generator), torch.full((30,), 7.0)], 1)
    net.fit_covariates(known, labels)
    assert net.head.weight.isfinite().all()
    with torch.no_grad():
        net.head.weight[:, :-2] = 0
        logits = net(torch.zeros(30, 4, 6), torch.zeros(30, 4, dtype=torch.long), known)
    standard = ((known - known.mean(0)) / known.std(0).clamp(min=1e-6)).numpy()
    fit = LogisticRegression().fit(standard, labels.numpy())
    assert abs(logits.softmax(1).numpy() - fit.predict_proba(standard)).max() < 1e-5


def test_missing_covariates_stand_for_the_cohorts_mean():
    net = tiny(num_covariates=2)
    net.covariate_mean.copy_(torch.tensor([50.0, 1.0]))
    net.covariate_std.copy_(torch.tensor([10.0, 0.5]))
    h, assignment = torch.randn(3, 4, 6), torch.tensor([[0, 1, 2, 0]]).expand(3, 4)
    torch.testing.assert_close(net(h, assignment), net(h, assignment, torch.tensor([[50.0, 1.0]]).expand(3, 2)))
    one_more = net(h, assignment, torch.tensor([[60.0, 1.0]]).expand(3, 2))
    expected = net(h, assignment) + net.head.weight[:, -2]  # one standard deviation of the first
    torch.testing.assert_close(one_more, expected)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrototypeAttention(10, 4), "num_heads must divide dim: 10 is no multiple of 4 heads"),
        (lambda: PrototypeAttention(8, 4, 0.0), "temperature must be positive, got 0.0"),
        (lambda: tiny(pooling="max"), 'pooling must be "mean" or "modality", got \'max\''),
        (lambda: tiny(num_modalities=3), "4 images are no multiple of 3 modalities"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_with_a_bottleneck_all_that_is_known_of_a_patient_comes_through_biomarkers():
    def logits(bottleneck, present):
        torch.manual_seed(0)
        settings = {"dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 16, "dropout": 0.0, "bottleneck": bottleneck}
        net = PrototypeTransformer(16, num_images=4, num_biomarkers=3, **settings).eval()
        with torch.no_grad():
            return net(torch.randn(5, 4, 16), torch.randint(3, (5, 4)), present=present)

    hidden, shown = torch.zeros(5, 3, dtype=torch.bool), torch.ones(5, 3, dtype=torch.bool)
    assert logits(True, hidden).std(dim=0).max() < 1e-6 < logits(True, shown).std(dim=0).min()
    assert logits(False, hidden).std(dim=0).min() > 1e-3
