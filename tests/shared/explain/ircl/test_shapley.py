import numpy as np
import pytest
import torch
from torch import nn

from shared.explain import biomarker_shapley, exact_shapley
from tests.references.ircl_explain import shapley_by_permutations


class Predictor(nn.Module):
    """One attention to the patient's prototypes, residual, head; hidden or empty prototypes are masked out."""

    def __init__(self, dim, biomarkers, covariates=0):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(dim + covariates, 2)
        self.biomarkers = biomarkers
        self.calls = 0

    def forward(self, h, assignment, covariates=None, present=None, row=None):
        self.calls += 1
        self.present = present
        if row is not None:
            h, assignment, covariates = h[row], assignment[row], None if covariates is None else covariates[row]
        member = nn.functional.one_hot(assignment, self.biomarkers).to(h.dtype)
        prototypes = member.transpose(1, 2) @ h / member.sum(1).clamp(min=1).unsqueeze(-1)
        visible = member.sum(1) > 0
        visible = visible if present is None else visible & present
        score = self.query(h) @ self.key(prototypes).transpose(1, 2)
        weight = score.masked_fill(~visible[:, None], -1e30).softmax(-1) * visible[:, None]
        token = torch.tanh(h + weight @ self.value(prototypes)).mean(1)
        token = token if covariates is None else torch.cat([token, covariates], dim=1)
        return 3 * self.head(self.dropout(token))


class Classifier(nn.Module):
    def __init__(self, dim=5, biomarkers=6, covariates=0):
        super().__init__()
        self.register_buffer("biomarkers", torch.zeros(biomarkers, 4))
        self.predictor = Predictor(dim, biomarkers, covariates)


@pytest.fixture
def case():
    torch.manual_seed(0)
    classifier = Classifier().double()
    h = torch.randn(7, 9, 5, dtype=torch.float64)
    assignment = torch.randint(0, 6, (7, 9))
    assignment[0] = 2  # shows one biomarker only
    assignment[1] = assignment[1] % 3
    return classifier, h, assignment


def _probability(classifier, h, assignment, present=None):
    classifier.eval()
    with torch.no_grad():
        return classifier.predictor(h, assignment, present=present).softmax(1)[:, 1]


def _every_coalition(classifier, h, assignment, players=6):
    """Worth of all 2 ** K coalitions, with no regard to which biomarkers occur: [2 ** K, B]."""
    codes = torch.arange(1 << players)
    present = ((codes[:, None] >> torch.arange(players)) & 1).bool()
    return torch.stack([_probability(classifier, h, assignment, row.expand(len(h), -1)) for row in present])


def test_exact_values_of_a_glove_game_in_closed_form():
    # players 0 and 1 hold a left glove, 2 the right one; a pair is worth 1
    worth = np.array([float(bool(code & 3) and bool(code & 4)) for code in range(8)])
    assert exact_shapley(worth) == pytest.approx([1 / 6, 1 / 6, 4 / 6], abs=1e-15)


@pytest.mark.parametrize("players", [1, 2, 5, 7])
def test_exact_values_against_all_permutations(players):
    worth = np.random.default_rng(players).standard_normal((1 << players, 2))
    found = exact_shapley(worth)
    assert found.shape == (players, 2) and found.dtype == np.float64
    for column in range(2):
        naive = shapley_by_permutations(
            lambda members, column=column: worth[sum(1 << m for m in members), column], players
        )
        assert found[:, column] == pytest.approx(naive, abs=1e-12)


def test_efficiency_symmetry_and_dummy_at_sixteen_players():
    weight = np.random.default_rng(0).standard_normal(16)
    weight[3], weight[5] = weight[4], 0.0
    code = np.arange(1 << 16)
    total = ((code[:, None] >> np.arange(16)) & 1) @ weight
    found = exact_shapley(np.tanh(total))
    assert found.sum() == pytest.approx(np.tanh(total[-1]), abs=1e-12)
    assert found[3] == pytest.approx(found[4], abs=1e-12)
    assert abs(found[5]) < 1e-14


def test_enumerating_what_occurs_equals_enumerating_everything(case):
    full = exact_shapley(_every_coalition(*case).numpy()).T
    values = biomarker_shapley(*case, batch_size=4096).values
    np.testing.assert_allclose(values.numpy(), full, rtol=0, atol=1e-13)
    occurring = (case[2].unsqueeze(-1) == torch.arange(6)).any(1)
    assert (values[~occurring] == 0).all() and (values[occurring] != 0).all()
    assert occurring[0].sum() == 1
    # 2 ** p coalitions of the p biomarkers each patient shows, all different, none with one it does not show
    seen = case[0].predictor.present
    counts = [2 ** int(row.sum()) for row in occurring]
    assert len(seen) == sum(counts)
    for part, row in zip(seen.split(counts), occurring, strict=True):
        assert len(part.unique(dim=0)) == len(part) and not part[:, ~row].any()


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_values_add_up_to_the_prediction(case, output):
    classifier, h, assignment = case
    result = biomarker_shapley(*case, output=output)
    predicted = _probability(classifier, h, assignment)
    hidden = _probability(classifier, h, assignment, torch.zeros(7, 6, dtype=torch.bool))
    if output == "logit":
        predicted, hidden = predicted.logit(), hidden.logit()
    torch.testing.assert_close(result.full, predicted, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.base, hidden, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.base + result.values.sum(1), result.full, rtol=0, atol=1e-12)


def test_equals_shaps_exact_explainer(case):
    shap = pytest.importorskip("shap")
    classifier, h, assignment = case
    values = biomarker_shapley(*case).values

    def masker(visible, players):
        return (visible.astype(float)[None],)

    masker.shape = lambda players: (1, 6)
    for i in range(len(h)):

        def worth(rows, i=i):
            present = torch.from_numpy(np.asarray(rows) > 0.5)
            count = len(present)
            return _probability(
                classifier, h[i].expand(count, -1, -1), assignment[i].expand(count, -1), present
            ).numpy()

        found = shap.explainers.Exact(worth, masker)(np.ones((1, 6))).values[0]
        assert found == pytest.approx(values[i].numpy(), abs=1e-12)


def test_chunks_and_batches_do_not_matter(case):
    classifier, h, assignment = case
    whole = biomarker_shapley(*case)
    classifier.predictor.calls = 0
    small = biomarker_shapley(*case, batch_size=5)
    assert classifier.predictor.calls > 20
    alone = torch.cat([biomarker_shapley(classifier, h[i : i + 1], assignment[i : i + 1]).values for i in range(7)])
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=1e-13)
    torch.testing.assert_close(alone, whole.values, rtol=0, atol=1e-13)
    classifier.predictor.calls = 0
    biomarker_shapley(*case, batch_size=4096)
    assert classifier.predictor.calls == 1


def test_covariates_reach_the_predictor_and_the_mode_is_restored(case):
    torch.manual_seed(1)
    classifier = Classifier(covariates=2).double().train()
    classifier.predictor.head.eval()
    known = torch.randn(7, 2, dtype=torch.float64)
    result = biomarker_shapley(classifier, case[1], case[2], known)
    assert classifier.training and classifier.predictor.dropout.training and not classifier.predictor.head.training
    classifier.eval()
    with torch.no_grad():
        expected = classifier.predictor(case[1], case[2], known).softmax(1)[:, 1]
    torch.testing.assert_close(result.full, expected, rtol=0, atol=1e-12)
    assert not result.values.requires_grad


def test_errors_name_the_limit(case):
    with pytest.raises(ValueError, match="at most 16 players, got 12"):
        exact_shapley(np.zeros(12))
    with pytest.raises(ValueError, match="at most 16 players"):
        exact_shapley(np.zeros(1 << 17))
    with pytest.raises(ValueError, match='"probability" or "logit", got \'odds\''):
        biomarker_shapley(*case, output="odds")
    many = Classifier(biomarkers=20)
    with pytest.raises(ValueError, match="at most 16 biomarkers per patient, one shows 18"):
        biomarker_shapley(many, torch.randn(1, 18, 5), torch.arange(18)[None])
