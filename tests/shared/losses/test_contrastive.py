import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from shared.errors import DataError
from shared.losses import NTXentLoss, contrastive
from tests.references.contrastive import nt_xent
from tests.support.two_processes import PROCESSES, in_two_processes, mean_of_processes, small_network

TEMPERATURES = (0.7, 0.1, 0.01)  # the last is below 0.0144, where exponents are shifted


def make_views(batch, dim=8, *, seed=0, noise=0.5, dtype=torch.float64):
    """Two noisy views of random samples."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    views = [samples + noise * torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    return tuple(view.to(dtype).requires_grad_() for view in views)


def value_and_gradients(function, views):
    loss = function(*views)
    return loss.detach(), torch.autograd.grad(loss, views)


def plain(temperature):
    """The loss as autograd differentiates it, from the whole matrix."""

    def loss(view_a, view_b):
        z = normalize(torch.cat((view_a, view_b)), dim=1)
        scores = (z @ z.t() / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
        return cross_entropy(scores, torch.arange(len(z)).roll(len(view_a)))

    return loss


# --- against the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [2, 3, 17])
def test_equals_simclr_equation_1(batch, temperature):
    views = make_views(batch)
    expected = nt_xent(*(view.tolist() for view in views), temperature)
    assert NTXentLoss(temperature)(*views).item() == pytest.approx(expected, rel=1e-12, abs=1e-13)
    single = [view.float() for view in views]
    assert NTXentLoss(temperature)(*single).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.fixture(params=["half the matrix", "whole rows"])
def way(request, monkeypatch):
    """Both ways of computing; the second is otherwise that of several processes and of exponents out of range."""
    if request.param == "whole rows":
        monkeypatch.setattr(contrastive, "_symmetric", lambda *_: None)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("batch", [5, 32, 101])
def test_gradient_is_that_of_the_whole_matrix_in_any_number_of_blocks(way, monkeypatch, batch, temperature):
    views = make_views(batch, 16)
    loss, gradients = value_and_gradients(plain(temperature), views)
    for rows in (1000, 64, 7):
        monkeypatch.setattr(contrastive, "_ROWS", rows)
        found, found_gradients = value_and_gradients(NTXentLoss(temperature), views)
        torch.testing.assert_close(found, loss, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found_gradients, gradients, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            assert torch.equal(NTXentLoss(temperature)(*views), found)


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_gradcheck(way, temperature):
    views = make_views(4, 3, seed=3)
    assert torch.autograd.gradcheck(NTXentLoss(temperature), views)
    fixed = views[1].detach()
    assert torch.autograd.gradcheck(lambda view: 3.0 * NTXentLoss(temperature)(view.tanh(), fixed), views[:1])


def test_a_second_derivative_is_refused():
    views = make_views(4)
    with pytest.raises(RuntimeError, match="first derivative only, and create_graph=True asks"):
        torch.autograd.grad(NTXentLoss()(*views), views, create_graph=True)


# --- closed forms and invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 128, 300])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_identical_embeddings_cost_log_2n_minus_1(batch, temperature):
    view = torch.full((batch, 5), 0.3)
    loss = NTXentLoss(temperature)(view, 2 * view)
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_orthogonal_samples_with_equal_views(temperature):
    view = torch.eye(6)
    expected = math.log1p(10 * math.exp(-1 / temperature))
    assert NTXentLoss(temperature)(view, view).item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_views_swap_and_samples_permute(temperature):
    views = make_views(20)
    loss, (gradient_a, gradient_b) = value_and_gradients(NTXentLoss(temperature), views)
    swapped, (swapped_b, swapped_a) = value_and_gradients(NTXentLoss(temperature), views[::-1])
    torch.testing.assert_close((swapped, swapped_a, swapped_b), (loss, gradient_a, gradient_b))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    moved, (moved_a, _) = value_and_gradients(NTXentLoss(temperature), tuple(view[order] for view in views))
    torch.testing.assert_close((moved, moved_a), (loss, gradient_a[order]))
    exchanged = [torch.cat((a[:7], b[7:])) for a, b in (views, views[::-1])]
    torch.testing.assert_close(NTXentLoss(temperature)(*exchanged), loss)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_the_length_of_an_embedding_does_not_count(scale):
    views = make_views(10, dtype=torch.float32)
    loss, gradients = value_and_gradients(NTXentLoss(0.2), views)
    longer = tuple((view * scale).detach().requires_grad_() for view in views)
    found, found_gradients = value_and_gradients(NTXentLoss(0.2), longer)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(tuple(g * scale for g in found_gradients), gradients, rtol=1e-4, atol=1e-6)
    for view, gradient in zip(views, gradients, strict=True):
        assert (view * gradient).sum(dim=1).abs().max() < 1e-6  # no pull along the embedding


def test_an_embedding_of_length_zero_is_left_alone():
    view_a, view_b = (view.detach() for view in make_views(4, dtype=torch.float32))
    view_a[1] = 0.0
    views = view_a.requires_grad_(), view_b.requires_grad_()
    loss, (gradient_a, gradient_b) = value_and_gradients(NTXentLoss(), views)
    torch.testing.assert_close(loss, plain(0.7)(*views))
    assert not gradient_a[1].any() and gradient_a[0].any() and gradient_b.isfinite().all()


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 0.03, 0.027, 0.01])
@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0])
def test_float32_under_bf16_autocast_at_low_temperature(temperature, noise):
    half = tuple(view.detach().to(torch.bfloat16).requires_grad_() for view in make_views(64, 32, noise=noise))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = value_and_gradients(NTXentLoss(temperature), half)
    assert loss.dtype == torch.float32 and loss.isfinite() and loss >= 0
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients)
    exact = tuple(view.detach().double().requires_grad_() for view in half)
    expected, expected_gradients = value_and_gradients(plain(temperature), exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=2e-7)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):  # what is left is their own rounding
        assert (gradient.double() - wanted).abs().max() <= 4e-3 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize(("temperature", "noise"), [(0.05, 0.1), (0.03, 0.3), (0.02, 0.3), (0.01, 0.45)])
def test_near_zero_nothing_cancels(way, temperature, noise):
    """Cross-entropy in float32 is off by some 1e-8 in loss and gradient, however small they are."""
    views = make_views(64, 32, noise=noise, dtype=torch.float32)
    exact = tuple(view.detach().double().requires_grad_() for view in views)
    expected, expected_gradients = value_and_gradients(plain(temperature), exact)
    assert 1e-9 < expected < 1e-3
    loss, gradients = value_and_gradients(NTXentLoss(temperature), views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_embeddings_spread_over_the_whole_range_of_exponents(way):
    """A cluster and one pair opposite to it at the lowest temperature: scores from -100 to 100."""
    view = torch.eye(1, 8, dtype=torch.float64) + 0.01 * make_views(16)[0].detach()
    view[0] *= -1
    views = view.clone().requires_grad_(), view.roll(3, 0).requires_grad_()
    expected, expected_gradients = value_and_gradients(plain(0.01), views)
    single = tuple(part.detach().float().requires_grad_() for part in views)
    loss, gradients = value_and_gradients(NTXentLoss(0.01), single)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert (gradient.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_exponents_out_of_range_are_taken_row_by_row():
    spread = torch.eye(8), -torch.eye(8)
    assert contrastive._symmetric(torch.cat(spread), 0.01, True) is None
    assert contrastive._symmetric(torch.cat(spread), 0.015, True) is not None
    loss, (gradient,) = value_and_gradients(
        lambda view: NTXentLoss(0.01)(view, -view), (torch.eye(8).requires_grad_(),)
    )
    assert loss.item() == pytest.approx(100 + math.log(14), rel=1e-6) and gradient.isfinite().all()


def test_a_head_trained_with_it_makes_the_views_agree():
    view_a, view_b = (view.detach().float() for view in make_views(16, 8, noise=3.0))
    head, losses = torch.eye(8, requires_grad=True), []
    for _ in range(40):
        loss, (gradient,) = value_and_gradients(lambda head: NTXentLoss(0.1)(view_a @ head, view_b @ head), (head,))
        head = (head - 0.2 * gradient).detach().requires_grad_()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan, math.inf])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(DataError, match=f"temperature must be a number above 0 .*got {temperature}"):
        NTXentLoss(temperature)


@pytest.mark.parametrize(("a", "b"), [((4, 8), (3, 8)), ((4, 8), (4, 7)), ((4, 8, 1), (4, 8, 1)), ((4,), (4,))])
def test_shapes_must_fit(a, b):
    with pytest.raises(DataError) as error:
        NTXentLoss()(torch.ones(a), torch.ones(b))
    assert f"got {list(a)} and {list(b)}" in str(error.value) and "[B, D]" in str(error.value)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_sample_alone_has_no_negatives(batch):
    with pytest.raises(DataError, match=f"at least 2; got {batch}. Raise the batch size, or drop the last"):
        NTXentLoss()(torch.ones(batch, 4), torch.ones(batch, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_embeddings_must_be_finite(bad):
    view_a, view_b = torch.ones(5, 4), torch.ones(5, 4)
    view_a[3, 1] = view_b[0, 0] = bad
    with pytest.raises(DataError, match=r"2 of 10 are not \(first: view_a\[3\], view_b\[0\]\)\. Lower the learning"):
        NTXentLoss()(view_a, view_b)


def test_it_prints_its_settings():
    assert str(NTXentLoss(0.2, gather=False)) == "NTXentLoss(temperature=0.2, gather=False)"


# --- several processes --------------------------------------------------------------------------------------------


def train_step(views, loss, network):
    network.zero_grad()
    value = loss(*(network(view) for view in views))
    value.backward()
    return value.item(), network[0].weight.grad.clone()


def own_share(views, rank):
    return [view.detach()[rank * len(view) // PROCESSES : (rank + 1) * len(view) // PROCESSES] for view in views]


def run_process(rank):
    found, views = {}, make_views(12)
    share = own_share(views, rank)
    for temperature in TEMPERATURES:
        network = small_network()
        value, gradient = train_step(share, NTXentLoss(temperature), network)
        with torch.no_grad():
            unchanged = NTXentLoss(temperature)(*(network(view) for view in share)).item()
        found[temperature] = value, unchanged, mean_of_processes(gradient)
    found["alone"] = train_step(share, NTXentLoss(gather=False), small_network())
    one = [view[rank : rank + 1].detach().float() for view in views]
    found["one each"] = NTXentLoss()(*one).item()
    errors = {"batch": make_views(4 + rank), "nan": make_views(4), "both": make_views(4 + rank)}
    if rank == 1:
        for name in ("nan", "both"):
            errors[name][0].detach()[2] = math.nan
    for name, given in errors.items():
        try:
            NTXentLoss()(*given)
        except DataError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    return in_two_processes(run_process, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_two_processes_make_the_step_of_one(processes, temperature):
    value, gradient = train_step(make_views(12), NTXentLoss(temperature), small_network())
    assert gradient.abs().max() > 1e-4
    for found in processes:
        assert found[temperature][:2] == pytest.approx((value, value), abs=1e-12)
        torch.testing.assert_close(found[temperature][2], gradient, rtol=1e-9, atol=1e-12)


def test_without_gathering_each_process_has_its_own_loss(processes):
    views = make_views(12)
    for rank, found in enumerate(processes):
        value, gradient = train_step(own_share(views, rank), NTXentLoss(), small_network())
        assert found["alone"][0] == value and torch.equal(found["alone"][1], gradient)


def test_one_sample_per_process_has_the_others_as_negatives(processes):
    expected = NTXentLoss()(*(view[:2].float() for view in make_views(12))).item()
    assert [found["one each"] for found in processes] == pytest.approx([expected] * PROCESSES, rel=1e-5)


def test_all_processes_say_what_is_wrong_in_one(processes):
    for found in processes:
        assert "one shape and precision, got rank 0: [4, 8] float64, rank 1: [5, 8] float64" in found["batch"]
        assert found["both"].startswith("2 problems:") and "one shape" in found["both"] and "finite" in found["both"]
    assert "ranks [1] are not finite" in processes[0]["nan"]
    assert "1 of 8 are not (first: view_a[2])" in processes[1]["nan"]
