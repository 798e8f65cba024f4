import math

import pytest
import torch

from shared.errors import DataError
from shared.losses import BiLevelContrastiveLoss, EdgeContrastiveLoss, InfoNCELoss
from tests.references.bilevel import bilevel, contrast
from tests.support.two_processes import PROCESSES, in_two_processes, mean_of_processes, small_network

TEMPERATURES = (0.7, 0.1, 0.01)


def make(batch, dim=8, *, seed=0, noise=0.5, dtype=torch.float64, count=2):
    """Noisy embeddings of random samples in so many modalities."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    found = [samples + noise * torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in range(count)]
    return tuple(z.to(dtype).requires_grad_() for z in found)


def value_and_gradients(function, inputs):
    loss = function(*inputs)
    return loss.detach(), torch.autograd.grad(loss, inputs)


def same_tract(tracts):
    tracts = torch.as_tensor(tracts)
    return tracts[:, None] == tracts


# --- against the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("tracts", [None, [0, 1, 2, 0, 1, 3, 4], [5, 5, 5, 5, 5, 5, 1]])
def test_equals_equation_1(tracts, temperature, decoupled):
    query, key = make(7)
    exclude = None if tracts is None else same_tract(tracts)
    masked = None if exclude is None else exclude.tolist()
    expected = contrast(query.tolist(), key.tolist(), temperature, masked, decoupled)
    loss = InfoNCELoss(temperature, decoupled)
    assert loss(query, key, exclude).item() == pytest.approx(expected, rel=1e-12, abs=1e-13)
    assert loss(query.float(), key.float(), exclude).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8, 1.0])
def test_equals_equations_4_to_7(weight, decoupled):
    image, points = make(6, 8)
    tumour, brain = make(6, 5, seed=1)
    expected = bilevel(*(z.tolist() for z in (image, points, tumour, brain)), 0.1, weight, decoupled)
    loss = BiLevelContrastiveLoss(0.1, weight, decoupled)(image, points, tumour, brain)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_its_defaults_are_the_papers():
    given = make(5, 8, count=4)
    assert BiLevelContrastiveLoss()(*given) == BiLevelContrastiveLoss(0.1, 0.8, True)(*given)
    assert InfoNCELoss()(*given[:2]) == InfoNCELoss(0.1, decoupled=True)(*given[:2])


def test_the_terms_are_those_of_the_equations():
    image, points, tumour, brain = given = make(6, 8, count=4)
    terms, one = BiLevelContrastiveLoss(0.2).parts(*given), InfoNCELoss(0.2)
    assert list(terms) == ["I2P", "P2I", "B2T"]
    assert terms["I2P"] == one(image, points) and terms["P2I"] == one(points, image)
    assert terms["B2T"] == one(brain, tumour) != one(tumour, brain)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_gradcheck(temperature, decoupled):
    exclude = same_tract([0, 1, 2, 0])
    pair = make(4, 3, seed=3)
    assert torch.autograd.gradcheck(lambda q, k: InfoNCELoss(temperature, decoupled)(q, k, exclude), pair)
    assert torch.autograd.gradcheck(BiLevelContrastiveLoss(temperature, 0.8, decoupled), make(4, 3, seed=4, count=4))


# --- closed forms and invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [2, 20, 300])
def test_identical_embeddings_tell_nothing(batch, temperature):
    z = torch.full((batch, 5), 0.3)
    assert InfoNCELoss(temperature)(z, 2 * z).item() == pytest.approx(math.log(batch - 1), rel=1e-5, abs=1e-5)
    plain = InfoNCELoss(temperature, decoupled=False)(z, 2 * z)
    assert plain.item() == pytest.approx(math.log(batch), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_orthogonal_samples_may_make_the_decoupled_loss_negative(temperature):
    z = torch.eye(6)
    expected = math.log(5) - 1 / temperature
    assert InfoNCELoss(temperature)(z, z).item() == pytest.approx(expected, rel=1e-5)
    plain = InfoNCELoss(temperature, decoupled=False)(z, z).item()
    assert plain == pytest.approx(math.log1p(5 * math.exp(-1 / temperature)), rel=1e-4)
    assert plain > 0 or temperature < 0.05  # exp(-100) in float32 is 0 beside nothing


def test_what_is_decoupled_pulls_pairs_that_are_told_apart_already():
    """The point of leaving the positive out: its pull does not fade as the loss falls."""
    query, key = make(8, 32, noise=0.05)
    pulls = [
        value_and_gradients(InfoNCELoss(0.1, decoupled), (query, key))[1][0].abs().max() for decoupled in (True, False)
    ]
    assert pulls[0] > 50 * pulls[1] > 0


def test_excluded_pairs_have_no_say():
    query, key = make(6)
    exclude = same_tract([0, 1, 0, 2, 3, 4])
    loss, gradients = value_and_gradients(lambda q, k: InfoNCELoss(0.2)(q, k, exclude), (query, key))
    kept = [[j for j in range(6) if j != i and not exclude[i, j]] for i in range(6)]
    cosines = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(key, dim=1).t() / 0.2
    expected = torch.stack([cosines[i, kept[i]].logsumexp(0) - cosines[i, i] for i in range(6)]).mean()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (query, key)))
    # the diagonal does not matter, nor does excluding nothing
    assert InfoNCELoss(0.2)(query, key, exclude & ~torch.eye(6, dtype=torch.bool)) == loss
    assert InfoNCELoss(0.2)(query, key, torch.zeros(6, 6, dtype=torch.bool)) == InfoNCELoss(0.2)(query, key) != loss


@pytest.mark.parametrize("decoupled", [True, False])
def test_samples_permute_and_image_and_points_swap(decoupled):
    image, points, tumour, brain = given = make(9, 6, count=4)
    loss = BiLevelContrastiveLoss(0.3, 0.7, decoupled)
    value, gradients = value_and_gradients(loss, given)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved, moved_gradients = value_and_gradients(loss, tuple(z[order] for z in given))
    torch.testing.assert_close((moved, *moved_gradients), (value, *(g[order] for g in gradients)))
    torch.testing.assert_close(loss(points, image, tumour, brain), value)
    assert (loss(image, points, brain, tumour) - value).abs() > 1e-4  # Eq. 6 has one direction only
    exclude = same_tract([0, 0, 1, 2, 3, 4, 5, 2, 2])
    one = InfoNCELoss(0.3, decoupled)
    torch.testing.assert_close(one(image[order], points[order], exclude[order][:, order]), one(image, points, exclude))


def test_patients_swapped_between_modalities_cost_more():
    image, points = make(12, 16, noise=0.3)
    loss = InfoNCELoss(0.1)
    assert loss(image, points.roll(1, 0)) > loss(image, points) + 2


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_the_length_of_an_embedding_does_not_count(scale):
    pair = make(10, dtype=torch.float32)
    loss, gradients = value_and_gradients(InfoNCELoss(0.2), pair)
    longer = tuple((z * scale).detach().requires_grad_() for z in pair)
    found, found_gradients = value_and_gradients(InfoNCELoss(0.2), longer)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(tuple(g * scale for g in found_gradients), gradients, rtol=1e-4, atol=1e-5)


def test_an_embedding_of_length_zero_is_left_alone():
    query, key = (z.detach() for z in make(4, dtype=torch.float32))
    query[1] = 0.0
    loss, (gradient, other) = value_and_gradients(InfoNCELoss(), (query.requires_grad_(), key.requires_grad_()))
    assert not gradient[1].any() and gradient[0].any() and other.isfinite().all()
    cosines = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(key, dim=1).t() / 0.1
    assert not cosines[1].any()  # similarity 0 to all
    rows = [cosines[i, [j for j in range(4) if j != i]].logsumexp(0) - cosines[i, i] for i in range(4)]
    torch.testing.assert_close(loss, torch.stack(rows).mean())


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 0.1, 0.01])
@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0])
def test_float32_under_bf16_autocast_at_low_temperature(temperature, noise, decoupled):
    half = tuple(z.detach().to(torch.bfloat16).requires_grad_() for z in make(32, 16, noise=noise, count=4))
    loss = BiLevelContrastiveLoss(temperature, 0.8, decoupled)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradients = value_and_gradients(loss, half)
    assert value.dtype == torch.float32 and value.isfinite()
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients)
    exact = tuple(z.detach().double().requires_grad_() for z in half)
    expected, expected_gradients = value_and_gradients(loss, exact)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=2e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):  # what is left is bf16's own rounding
        assert (gradient.double() - wanted).abs().max() <= 1e-2 * wanted.abs().max() + 1e-6


def test_scores_from_one_end_of_the_range_to_the_other():
    """Opposite embeddings at temperature 0.01: exponents of -100 and 100."""
    z = torch.eye(5)
    assert InfoNCELoss(0.01)(z, -z).item() == pytest.approx(100 + math.log(4), rel=1e-6)
    towards = torch.cat([torch.ones(1, 5), -torch.ones(4, 5)]) / 5**0.5
    loss = InfoNCELoss(0.01)(towards, -towards)  # the first query's negatives all score 100, its key -100
    expected = contrast(towards.tolist(), (-towards).tolist(), 0.01)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_heads_trained_with_it_retrieve_the_patient():
    image, points = (z.detach().float() for z in make(16, 8, noise=0.3))
    points = points @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2))).Q  # another space
    head = torch.eye(8, requires_grad=True)

    def retrieved():
        z = torch.nn.functional.normalize(points @ head, dim=1) @ torch.nn.functional.normalize(image, dim=1).t()
        return (z.argmax(dim=1) == torch.arange(16)).float().mean().item()

    before = retrieved()
    for _ in range(150):
        _, (gradient,) = value_and_gradients(lambda head: InfoNCELoss(0.1)(points @ head, image), (head,))
        head = (head - 0.05 * gradient).detach().requires_grad_()
    assert before < 0.5 and retrieved() > 0.8


# --- for a trainer, and messages ----------------------------------------------------------------------------------


def test_the_edge_loss_takes_both_projections_as_one_prediction():
    query, key = make(5)
    exclude = same_tract([0, 1, 0, 2, 3])
    assert EdgeContrastiveLoss(InfoNCELoss(0.2))((query, key), exclude) == InfoNCELoss(0.2)(query, key, exclude)


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    for loss in (InfoNCELoss, BiLevelContrastiveLoss):
        with pytest.raises(DataError, match=f"temperature must be a number above 0 .*got {temperature}"):
            loss(temperature)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_weight_must_be_a_share(weight):
    with pytest.raises(DataError, match=f"weight .* must lie in 0 to 1 .*got {weight}"):
        BiLevelContrastiveLoss(weight=weight)


@pytest.mark.parametrize(("a", "b"), [((4, 8), (3, 8)), ((4, 8), (4, 7)), ((4, 8, 1), (4, 8, 1)), ((4,), (4,))])
def test_shapes_must_fit(a, b):
    with pytest.raises(DataError) as error:
        InfoNCELoss()(torch.ones(a), torch.ones(b))
    assert f"got {list(a)} and {list(b)}" in str(error.value) and "[B, D]" in str(error.value)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_sample_alone_has_no_negatives(batch):
    with pytest.raises(DataError, match=f"at least 2; got {batch}. Raise the batch size"):
        InfoNCELoss()(torch.ones(batch, 4), torch.ones(batch, 4))


@pytest.mark.parametrize("exclude", [torch.zeros(3, 3), torch.zeros(3, 4, dtype=torch.bool)])
def test_exclude_must_fit(exclude):
    kind = str(exclude.dtype).removeprefix("torch.")
    with pytest.raises(DataError) as error:
        InfoNCELoss()(torch.eye(3), torch.eye(3), exclude)
    assert f"exclude must be bool [B, B] = [3, 3], got {kind} {list(exclude.shape)}" in str(error.value)


def test_a_batch_of_one_tract_is_refused():
    z = torch.eye(4)
    with pytest.raises(DataError, match=r"leaves 2 of 4 without \(first: \[1, 3\]\)"):
        exclude = torch.zeros(4, 4, dtype=torch.bool)
        exclude[[1, 3]] = True
        InfoNCELoss()(z, z, exclude)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_embeddings_must_be_finite(bad):
    query, key = torch.ones(5, 4), torch.ones(5, 4)
    query[3, 1] = key[0, 0] = bad
    with pytest.raises(DataError, match=r"2 of 10 are not \(first: query\[3\], key\[0\]\)\. Lower the learning"):
        InfoNCELoss()(query, key)


def test_all_four_come_from_the_same_patients():
    with pytest.raises(DataError, match="embeddings of the same patients, got batches of 4, 4, 3, 3"):
        BiLevelContrastiveLoss()(torch.eye(4), torch.eye(4), torch.eye(3), torch.eye(3))


def test_it_prints_its_settings():
    assert str(InfoNCELoss(0.2, False)) == "InfoNCELoss(temperature=0.2, decoupled=False, gather=True)"
    assert "weight=0.8" in str(BiLevelContrastiveLoss()) and "temperature=0.1" in str(BiLevelContrastiveLoss())


# --- several processes --------------------------------------------------------------------------------------------

TRACTS = [0, 1, 2, 3, 0, 4, 2, 5, 6, 0, 1, 7]


def train_step(pair, exclude, loss):
    network = small_network()
    value = loss(*(network(z.detach()) for z in pair), exclude)
    value.backward()
    return value.item(), network[0].weight.grad.clone()


def run_process(rank):
    rows = slice(rank * 6, (rank + 1) * 6)
    share = [z[rows] for z in make(12)]
    found = {}
    for name, exclude in (("all", None), ("tracts", same_tract(TRACTS)[rows])):
        value, gradient = train_step(share, exclude, InfoNCELoss(0.1))
        found[name] = value, mean_of_processes(gradient)
    found["alone"] = train_step(share, None, InfoNCELoss(0.1, gather=False))
    bad = [z.detach().clone() for z in make(4)]
    if rank == 1:
        bad[1][2] = math.nan
    try:
        InfoNCELoss()(*bad)
    except DataError as error:
        found["nan"] = str(error)
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    return in_two_processes(run_process, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize(("name", "exclude"), [("all", None), ("tracts", same_tract(TRACTS))])
def test_two_processes_make_the_step_of_one(processes, name, exclude):
    value, gradient = train_step(make(12), exclude, InfoNCELoss(0.1))
    assert gradient.abs().max() > 1e-4
    assert sum(found[name][0] for found in processes) / PROCESSES == pytest.approx(value, abs=1e-12)
    for found in processes:
        torch.testing.assert_close(found[name][1], gradient, rtol=1e-9, atol=1e-12)


def test_without_gathering_each_process_has_its_own_loss(processes):
    for rank, found in enumerate(processes):
        value, gradient = train_step([z[rank * 6 : (rank + 1) * 6] for z in make(12)], None, InfoNCELoss(0.1))
        assert found["alone"][0] == value and torch.equal(found["alone"][1], gradient)


def test_all_processes_say_what_is_wrong_in_one(processes):
    assert "ranks [1] are not finite" in processes[0]["nan"] and "1 of 8 are not (first: key[2])" in processes[1]["nan"]
