import copy
import math

import pytest
import torch
from torch.nn.functional import normalize

from shared.losses import MemoryBank, MemoryBankContrastiveLoss
from shared.losses import bank_streaming as streaming
from tests.references import ircl_losses as reference


def make_bank(size, dim=8, *, seed=0, **settings):
    bank = MemoryBank(size, dim, **settings)
    bank.seed(torch.arange(size), torch.randn(size, dim, generator=torch.Generator().manual_seed(seed)))
    return bank


def make_groups(size, patients, *, seed=0):
    """Parent patients of each row: one for the first third, two for the mixed rest."""
    groups = torch.randint(patients, (size, 2), generator=torch.Generator().manual_seed(seed))
    groups[: size // 3, 1] = -1
    return groups


def make_batch(bank, batch=6, width=5, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    z = normalize(torch.randn(batch, bank.dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)
    indices = torch.randint(bank.size, (batch,), generator=generator)
    positives = torch.randint(-bank.size // 2, bank.size, (batch, width), generator=generator).clamp(min=-1)
    return z, indices, positives


# --- the bank against the paper -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.5, 0.005])
@pytest.mark.parametrize("include_self", [False, True])
def test_entropy_equals_equation_4(include_self, temperature):
    bank = make_bank(37, temperature=temperature)
    expected = torch.tensor(reference.entropies(bank.embeddings.tolist(), temperature, include_self))
    torch.testing.assert_close(bank.entropy(include_self), expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 40, 300])
def test_positives_equal_algorithm_1(size):
    bank, groups = make_bank(size, dim=16), make_groups(size, 5)
    for epoch, listed in ((1, groups), (8, None), (40, groups), (80, groups), (96, None)):
        expected = reference.algorithm_1(
            bank.embeddings.tolist(), 0.07, epoch, 80, 2, None if listed is None else listed.tolist()
        )
        found = [[j for j in row if j >= 0] for row in bank.positives(epoch, 80, 2, listed).tolist()]
        assert found == expected
        if size == 300:  # one comparison of the quadratic loop is enough
            break


def test_positives_select_the_floor_of_the_share_of_epochs():
    bank = make_bank(50)
    for epoch in (1, 7, 33, 80, 200):
        selected = (bank.positives(epoch, 80, 1) >= 0).any(dim=1)
        assert selected.sum() == min(50, 50 * epoch // 80)
        if 0 < selected.sum() < 50:
            entropy = bank.entropy()
            assert entropy[selected].max() <= entropy[~selected].min()


def test_positives_are_rebuilt_at_each_update():
    bank = make_bank(30)
    before = bank.positives(20, 80, 2)
    bank.update(torch.arange(30), torch.randn(30, 8, generator=torch.Generator().manual_seed(9)) * 5)
    after = bank.positives(20, 80, 2)
    assert (after >= 0).any(dim=1).sum() == 7
    assert not torch.equal(before, after)
    assert torch.equal(after, bank.positives(20, 80, 2))


def test_positives_literal_entropy_changes_the_selection_only():
    bank = make_bank(60, dim=4)
    entropy = bank.entropy(include_self=True)
    selected = (bank.positives(20, 80, 1, include_self=True) >= 0).flatten()
    assert set(torch.nonzero(selected).flatten().tolist()) == set(entropy.argsort()[:15].tolist())


def test_identical_embeddings_have_the_entropy_of_a_uniform_distribution():
    bank = MemoryBank(300, 4)
    bank.seed(torch.arange(300), torch.ones(300, 4))
    torch.testing.assert_close(bank.entropy(), torch.full((300,), math.log(299)), atol=1e-5, rtol=0)
    torch.testing.assert_close(bank.entropy(include_self=True), torch.full((300,), math.log(300)), atol=1e-5, rtol=0)


def test_outliers_look_concentrated_only_when_self_is_included():
    cluster = torch.tensor([[1.0, 0.0]]) + 0.05 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    bank = MemoryBank(21, 2)
    bank.seed(torch.arange(21), torch.cat([cluster, torch.tensor([[-1.0, 0.0]])]))
    assert bank.entropy(include_self=True).argmin() == 20
    assert bank.entropy()[20] > 2.0


def test_a_permuted_bank_gives_permuted_results():
    bank, groups = make_bank(150), make_groups(150, 6)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    moved = MemoryBank(150, 8)
    moved.seed(torch.arange(150), bank.embeddings[order])
    torch.testing.assert_close(moved.entropy(), bank.entropy()[order], atol=1e-5, rtol=0)
    expected = bank.nearest(order, 3, groups)
    found = moved.nearest(torch.arange(150), 3, groups[order])
    assert torch.equal(torch.where(found >= 0, order[found], -1), expected)


def test_results_do_not_depend_on_the_blocks(monkeypatch):
    bank, groups = make_bank(200), make_groups(200, 6)
    expected = bank.entropy(), bank.positives(8, 10, 4, groups)
    for name, value in {"_BLOCK": 7, "_CHUNK": 16, "_TILE": 500, "_PAIRS": 300}.items():
        monkeypatch.setattr(streaming, name, value)
    torch.testing.assert_close(bank.entropy(), expected[0], atol=1e-5, rtol=0)
    assert torch.equal(bank.positives(8, 10, 4, groups), expected[1])


# --- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_no_neighbour_shares_a_group_and_no_row_is_its_own(columns):
    bank = make_bank(400, dim=3)
    groups = torch.randint(-1, 9, (400, columns), generator=torch.Generator().manual_seed(3))
    found = bank.nearest(torch.arange(400), 6, groups)
    assert (found >= 0).sum() > 2000
    for row, neighbours in enumerate(found.tolist()):
        assert row not in neighbours
        own = {g for g in groups[row].tolist() if g >= 0}
        for neighbour in neighbours:
            assert neighbour < 0 or not own & set(groups[neighbour].tolist())
        assert len({n for n in neighbours if n >= 0}) == sum(n >= 0 for n in neighbours)


def test_neighbours_come_most_similar_first_for_any_rows():
    bank = make_bank(260)
    rows = torch.tensor([259, 0, 131, 0])
    scores = bank.embeddings[rows] @ bank.embeddings.T
    scores[torch.arange(4), rows] = -2
    assert torch.equal(bank.nearest(rows, 10), scores.topk(10).indices)
    assert torch.equal(bank.nearest(rows.tolist(), 10), scores.topk(10).indices)


def test_more_neighbours_than_candidates_gives_all_then_minus_one():
    bank = make_bank(5)
    groups = torch.tensor([[0], [0], [1], [2], [-1]])
    found = bank.nearest([0, 4], 200, groups)
    assert found.shape == (2, 200)
    assert set(found[0, :3].tolist()) == {2, 3, 4} and (found[0, 3:] == -1).all()
    assert set(found[1, :4].tolist()) == {0, 1, 2, 3} and (found[1, 4:] == -1).all()


def test_one_row_has_no_neighbours_and_no_entropy():
    bank = make_bank(1)
    assert bank.nearest([0], 2).tolist() == [[-1, -1]]
    assert bank.entropy().tolist() == [0.0]
    assert bank.positives(80, 80, 2).tolist() == [[-1, -1]]


def test_everybody_in_one_group_has_no_neighbours():
    bank = make_bank(140)
    assert (bank.nearest(torch.arange(140), 2, torch.zeros(140, 1, dtype=torch.long)) == -1).all()
    assert bank.nearest(torch.empty(0, dtype=torch.long), 2).shape == (0, 2)


# --- updating -----------------------------------------------------------------------------------------------------


def test_update_equals_the_loop_and_keeps_unit_norm():
    bank = make_bank(20, momentum=0.5)
    untouched = bank.embeddings.clone()
    indices = torch.tensor([3, 17, 3, 0, 3])  # row 3 is updated three times, in this order
    z = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    expected = reference.momentum_update(bank.embeddings.tolist(), indices.tolist(), z.tolist(), 0.5)
    bank.update(indices, z)
    torch.testing.assert_close(bank.embeddings, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(bank.embeddings.norm(dim=1), torch.ones(20), atol=1e-6, rtol=0)
    rest = [row for row in range(20) if row not in (0, 3, 17)]
    assert torch.equal(bank.embeddings[rest], untouched[rest])


def test_update_keeps_rows_that_would_vanish_or_are_not_finite():
    bank = make_bank(4)
    before = bank.embeddings.clone()
    z = torch.stack([-before[0], torch.full((8,), torch.nan), torch.full((8,), torch.inf)])
    bank.update(torch.tensor([0, 1, 2]), z)
    assert torch.equal(bank.embeddings, before)


def test_bank_never_joins_the_graph_and_stays_float32_under_autocast():
    bank = make_bank(10)
    z = normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    expected = copy.deepcopy(bank)
    expected.update(torch.arange(3), z.to(torch.bfloat16).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bank.update(torch.arange(3), z.to(torch.bfloat16))
        entropy, nearest = bank.entropy(), bank.nearest(torch.arange(10), 3)
    assert bank.embeddings.dtype == entropy.dtype == torch.float32
    assert not bank.embeddings.requires_grad and not entropy.requires_grad
    assert torch.equal(bank.embeddings, expected.embeddings)
    assert torch.equal(entropy, expected.entropy()) and torch.equal(nearest, expected.nearest(torch.arange(10), 3))
    assert list(bank.parameters()) == []


def test_checkpoint_does_not_know_the_size():
    holder = torch.nn.ModuleDict({"bank": make_bank(10), "head": torch.nn.Linear(2, 1)})
    assert list(holder.state_dict()) == ["head.weight", "head.bias"]
    other = torch.nn.ModuleDict({"bank": make_bank(99), "head": torch.nn.Linear(2, 1)})
    other.load_state_dict(holder.state_dict())


def test_bank_filled_from_outside_counts_as_seeded():
    bank = MemoryBank(6, 8)
    with pytest.raises(RuntimeError, match="6 of 6 are empty"):
        bank.entropy()
    bank.embeddings.copy_(make_bank(6).embeddings)
    assert torch.equal(bank.entropy(), make_bank(6).entropy())
    bank.embeddings[4] = 0
    with pytest.raises(RuntimeError, match=r"1 of 6 are empty \(first: 4\)"):
        bank.entropy()
    bank.update(torch.tensor([4]), make_bank(6).embeddings[4:5])
    torch.testing.assert_close(bank.entropy(), make_bank(6).entropy())


@pytest.mark.parametrize(
    "use",
    [
        lambda bank: bank.entropy(),
        lambda bank: bank.nearest([0], 1),
        lambda bank: bank.positives(1, 80, 2),
        lambda bank: MemoryBankContrastiveLoss(bank)(torch.ones(1, 8), torch.tensor([0]), torch.tensor([[1]])),
    ],
)
def test_a_bank_not_wholly_seeded_says_so(use):
    bank = MemoryBank(10, 8)
    bank.seed(torch.arange(7), torch.randn(7, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError, match=r"3 of 10 are empty \(first: 7, 8, 9\). Call seed\(indices, z\)"):
        use(bank)


def test_bad_input_is_named():
    bank = make_bank(10)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0"):
        MemoryBank(10, 8, temperature=0)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        MemoryBank(10, 8, momentum=1)
    with pytest.raises(ValueError, match=r"size >= 1 and dim >= 1, got size=0"):
        MemoryBank(0, 8)
    with pytest.raises(ValueError, match=r"must be finite and not zero; those of rows \[5\]"):
        bank.seed(torch.tensor([4, 5]), torch.stack([torch.ones(8), torch.zeros(8)]))
    with pytest.raises(ValueError, match=r"embeddings \[B, 8\], got \[2\] and \[2, 9\]"):
        bank.update(torch.tensor([4, 5]), torch.ones(2, 9))
    with pytest.raises(IndexError, match=r"bank of 10 are 0 to 9, got -1 to 4"):
        bank.update(torch.tensor([4, -1]), torch.ones(2, 8))
    with pytest.raises(IndexError, match=r"got 10 to 10"):
        bank.nearest([10], 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bank.nearest([1], 0)
    with pytest.raises(ValueError, match=r"groups must be \[N, G\] .* 10, got \[9, 1\]"):
        bank.nearest([1], 1, torch.zeros(9, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="epochs are counted from 1, got epoch=0"):
        bank.positives(0, 80, 2)


# --- Eq. 5 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize(("temperature", "scale"), [(0.07, 1.0), (1.0, 3.0), (0.01, 1.0)])
def test_loss_equals_equation_5(exclude_self, temperature, scale):
    bank = make_bank(50, temperature=temperature)
    loss = MemoryBankContrastiveLoss(bank, exclude_self=exclude_self)
    for seed in range(4):
        z, indices, positives = make_batch(bank, seed=seed, dtype=torch.float64)
        expected = reference.contrastive_loss(
            (z * scale).tolist(),
            bank.embeddings.tolist(),
            indices.tolist(),
            positives.tolist(),
            temperature,
            exclude_self,
        )
        assert loss(z * scale, indices, positives).item() == pytest.approx(expected, rel=1e-10)
        assert loss((z * scale).float(), indices, positives).item() == pytest.approx(expected, rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("columns", [7, 1024])
def test_gradient_equals_autograd_of_the_whole_matrix(monkeypatch, columns, exclude_self, bounded):
    monkeypatch.setattr(streaming, "_COLUMNS", columns)
    monkeypatch.setattr("shared.losses.memory_bank._SAFE", 1e9 if bounded else 0.0)
    bank = make_bank(60, temperature=0.1)
    z, indices, positives = make_batch(bank, dtype=torch.float64)
    positives[0] = -1
    members = torch.zeros(len(z), 60, dtype=torch.bool)
    for row, (k, listed) in enumerate(zip(indices.tolist(), positives.tolist(), strict=True)):
        members[row, [j for j in listed if j >= 0] + [k]] = True
    z.requires_grad_()
    scores = z @ bank.embeddings.double().T / 0.1
    if exclude_self:
        own = torch.zeros_like(members).scatter(1, indices[:, None], True)
        scores, members = scores.masked_fill(own, -torch.inf), members & ~own
    has = members.any(dim=1)
    expected = (scores.logsumexp(1) - scores.masked_fill(~members, -torch.inf).logsumexp(1))[has].mean()
    (gradient,) = torch.autograd.grad(expected, z)
    value = MemoryBankContrastiveLoss(bank, exclude_self)(z, indices, positives)
    (3 * value).backward()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(z.grad, 3 * gradient, rtol=1e-8, atol=1e-10)
    assert bool(has[0]) is not exclude_self and bool((z.grad[0] == 0).all()) is exclude_self


@pytest.mark.parametrize("exclude_self", [False, True])
def test_gradcheck(exclude_self):
    bank = make_bank(12, dim=4)
    z, indices, positives = make_batch(bank, batch=3, dtype=torch.float64)
    loss = MemoryBankContrastiveLoss(bank, exclude_self)
    assert torch.autograd.gradcheck(lambda x: loss(x, indices, positives), z.requires_grad_())


def test_identical_embeddings_give_log_of_rows_per_positive():
    bank = MemoryBank(40, 4)
    bank.seed(torch.arange(40), torch.ones(40, 4))
    z = normalize(torch.ones(2, 4), dim=1)
    listed = torch.tensor([[5, 6, 7], [5, -1, -1]])
    value = MemoryBankContrastiveLoss(bank)(z, torch.tensor([0, 1]), listed)
    assert value.item() == pytest.approx((math.log(40 / 4) + math.log(40 / 2)) / 2, rel=1e-5)
    value = MemoryBankContrastiveLoss(bank, exclude_self=True)(z, torch.tensor([0, 1]), listed)
    assert value.item() == pytest.approx((math.log(39 / 3) + math.log(39 / 1)) / 2, rel=1e-5)


def test_everything_positive_costs_nothing():
    bank = make_bank(9)
    z, indices, _ = make_batch(bank)
    value = MemoryBankContrastiveLoss(bank)(z.requires_grad_(), indices, torch.arange(9).repeat(6, 1))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=2e-6)
    assert z.grad.abs().max() < 1e-5


def test_order_repeats_and_self_among_the_positives_do_not_matter():
    bank = make_bank(30)
    z, indices, positives = make_batch(bank)
    for exclude_self in (False, True):
        loss = MemoryBankContrastiveLoss(bank, exclude_self)
        expected = loss(z, indices, positives)
        repeated = torch.cat([positives.flip(1), indices[:, None], positives], dim=1)
        torch.testing.assert_close(loss(z, indices, repeated), expected)


def test_a_permuted_bank_or_batch_gives_the_same_loss():
    bank = make_bank(70)
    z, indices, positives = make_batch(bank)
    expected = MemoryBankContrastiveLoss(bank)(z, indices, positives)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(4))
    place = order.argsort()
    moved = MemoryBank(70, 8)
    moved.seed(torch.arange(70), bank.embeddings[order])
    listed = torch.where(positives >= 0, place[positives.clamp(min=0)], -1)
    torch.testing.assert_close(MemoryBankContrastiveLoss(moved)(z, place[indices], listed), expected)
    torch.testing.assert_close(MemoryBankContrastiveLoss(bank)(z.flip(0), indices.flip(0), positives.flip(0)), expected)


@pytest.mark.parametrize("width", [0, 3])
def test_excluding_self_with_no_other_positive_is_zero_with_a_gradient(width):
    bank = make_bank(10)
    z, indices, _ = make_batch(bank)
    value = MemoryBankContrastiveLoss(bank, exclude_self=True)(
        z.requires_grad_(), indices, torch.full((6, width), -1, dtype=torch.long)
    )
    value.backward()
    assert value.item() == 0.0 and (z.grad == 0).all()
    lonely = make_bank(1)
    value = MemoryBankContrastiveLoss(lonely, exclude_self=True)(
        z[:1], torch.tensor([0]), torch.full((1, width), -1, dtype=torch.long)
    )
    assert value.item() == 0.0
    assert MemoryBankContrastiveLoss(bank)(z, indices, torch.full((6, width), -1, dtype=torch.long)) > 0


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_half_precision_under_autocast_stays_finite_and_close(scale):
    bank = make_bank(90)
    z, indices, positives = make_batch(bank)
    z = (z * scale).to(torch.bfloat16).requires_grad_()
    loss = MemoryBankContrastiveLoss(bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(z, indices, positives)
        mixed = loss(torch.nn.functional.linear(z, torch.eye(8)), indices, positives)
    value.backward()
    assert value.dtype == torch.float32 and z.grad.isfinite().all()
    torch.testing.assert_close(value, mixed)
    torch.testing.assert_close(value.double(), loss(z.detach().double(), indices, positives), rtol=1e-5, atol=1e-5)


def test_no_grad_gives_the_same_value_and_the_bank_gets_no_gradient():
    bank = make_bank(25)
    z, indices, positives = make_batch(bank)
    loss = MemoryBankContrastiveLoss(bank)
    expected = loss(z.requires_grad_(), indices, positives)
    bank.update(indices, z)  # after the forward pass, as in training: the gradient is the forward's
    expected.backward()
    assert z.grad.abs().max() > 0 and bank.embeddings.grad is None and not bank.embeddings.requires_grad
    with torch.no_grad():
        value = loss(z, indices, positives)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(z, indices, positives).detach())


def test_descending_the_loss_draws_an_embedding_to_its_positives():
    bank = make_bank(30)
    z = normalize(torch.randn(1, 8, generator=torch.Generator().manual_seed(5)), dim=1).requires_grad_()
    loss = MemoryBankContrastiveLoss(bank)
    optimiser = torch.optim.SGD([z], lr=0.05)
    before = (normalize(z.detach(), dim=1) @ bank.embeddings[4]).item()
    for _ in range(50):
        optimiser.zero_grad()
        loss(normalize(z, dim=1), torch.tensor([3]), torch.tensor([[4, -1]])).backward()
        optimiser.step()
    assert (normalize(z.detach(), dim=1) @ bank.embeddings[4]).item() > before + 0.1


def test_loss_names_what_does_not_fit():
    bank = make_bank(10)
    loss = MemoryBankContrastiveLoss(bank)
    z, indices, positives = make_batch(bank)
    with pytest.raises(ValueError, match=r"z \[B, 8\], indices \[B\] and positives \[B, P\], got \[6, 7\]"):
        loss(z[:, :7], indices, positives)
    with pytest.raises(ValueError, match=r"got \[6, 8\], \[5\]"):
        loss(z, indices[:5], positives)
    with pytest.raises(IndexError, match=r"bank of 10 are 0 to 9, got 0 to 10"):
        loss(z, indices, torch.full_like(positives, 10).index_fill(1, torch.tensor([0]), -1))
    with pytest.raises(IndexError, match=r"got -2 to -2"):
        loss(z, torch.full_like(indices, -2), positives)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu():
    bank, groups = make_bank(300), make_groups(300, 8)
    z, indices, positives = make_batch(bank)
    there = copy.deepcopy(bank).cuda()
    torch.testing.assert_close(there.entropy().cpu(), bank.entropy(), atol=1e-4, rtol=1e-4)
    assert torch.equal(there.positives(40, 80, 2, groups).cpu(), bank.positives(40, 80, 2, groups))
    for exclude_self in (False, True):
        here, device = z.clone().requires_grad_(), z.clone().cuda().requires_grad_()
        expected = MemoryBankContrastiveLoss(bank, exclude_self)(here, indices, positives)
        value = MemoryBankContrastiveLoss(there, exclude_self)(device, indices, positives)
        expected.backward(), value.backward()
        torch.testing.assert_close(value.cpu(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(device.grad.cpu(), here.grad, atol=1e-4, rtol=1e-4)


def test_momentum_is_the_share_of_the_old_row():
    bank = make_bank(6, momentum=0.9)
    before, z = bank.embeddings.clone(), normalize(torch.ones(1, 8), dim=1)
    bank.update(torch.tensor([4]), z)
    expected = normalize(0.9 * before[4].double() + 0.1 * z[0].double(), dim=0)
    torch.testing.assert_close(bank.embeddings[4].double(), expected, atol=1e-6, rtol=0)
