"""Biomarkers of two models matched by their maps, with values by hand."""

from types import SimpleNamespace

import pytest
import torch

from shared.explain import biomarker_stability


class Predictor:
    """Maps ``[patients, modalities, 1, places]`` and amounts ``[patients, modalities, biomarkers]`` as they are given.

    Case k of the cohort holds the number k as its image.
    """

    def __init__(self, maps, amounts, weight):
        self.maps, self.amounts = torch.tensor(maps), torch.tensor(amounts, dtype=torch.float64)
        self.weight = torch.tensor(weight, dtype=torch.float64)[None]
        self.num_modalities, self.num_biomarkers = self.amounts.shape[1:]

    def to(self, device):
        return self

    def log_odds(self, per_class):
        return per_class

    def explain(self, image):
        case = int(image)
        return image, self.maps[case][None], self.amounts[case][None, None]


CASES = [{"image": torch.tensor(number)} for number in range(2)]


def compared(*predictors):
    return biomarker_stability([SimpleNamespace(additive=predictor) for predictor in predictors], CASES)


def test_overlap_is_the_mean_dice_of_matched_biomarkers_and_by_area_weighs_the_first_models():
    amounts = [[[0.5, 0.5]], [[0.1, 0.9]]]
    first = Predictor([[[[0, 0, -1, 1]]], [[[0, 1, -1, 1]]]], amounts, [[1.0, 2.0]])
    # numbered the other way round, and the first patient's second place is of the other biomarker
    other = Predictor([[[[1, 0, 0, -1]]], [[[1, 0, -1, -1]]]], amounts, [[2.0, 1.0]])
    (row,) = compared(first, other)
    assert row["models"] == [0, 1]
    # inside both: first 0 0 0 1, other 1 0 1 0
    assert row["overlap"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
    assert row["overlap_by_area"] == pytest.approx((3 * 2 * 2 / 5 + 1 * 2 * 1 / 3) / 4)


def test_effects_are_those_of_one_sd_and_follow_the_matching():
    maps = [[[[0, 1, 2]]], [[[0, 1, 2]]]]
    # the first model's SDs are 3, 2, 1 halves, its means rise: 1, 2, 3 tens
    rising = [[[8.5, 19.0, 29.5]], [[11.5, 21.0, 30.5]]]
    alike = [[[0.0] * 3], [[1.0] * 3]]
    first, other = Predictor(maps, rising, [[1.0, 1.0, 1.0]]), Predictor(maps, alike, [[3.0, 2.0, 1.0]])
    assert compared(first, other)[0]["effects"] == 1.0
    renumbered = Predictor([[[[2, 0, 1]]]] * 2, alike, [[2.0, 1.0, 3.0]])
    assert compared(first, renumbered)[0]["effects"] == 1.0
    assert compared(first, Predictor(maps, alike, [[1.0, 1.0, 1.0]]))[0]["effects"] is None


def test_chance_puts_the_places_of_the_tumour_in_another_order():
    alone = Predictor([[[[0, -1, -1, 0]]], [[[0, 0, -1, -1]]]], [[[1.0]], [[1.0]]], [[1.0]])
    assert compared(alone, alone)[0]["chance"] == 1.0  # of one biomarker every order is the same


def test_biomarkers_are_matched_within_their_modality():
    codes = torch.tensor([[0, 1, 2, 2, -1], [1, 1, 2, 0, 0]])
    amounts, weight = [[[0.0] * 3] * 2, [[1.0] * 3] * 2], torch.arange(6.0).reshape(2, 3)
    orders = torch.tensor([[2, 0, 1], [1, 0, 2]])  # the first model's number k is the other's orders[modality][k]
    maps = [codes, torch.where(codes < 0, -1, codes + 3)]
    renumbered = [torch.where(codes < 0, -1, orders[m][codes] + 3 * m) for m in range(2)]
    first, other = (torch.stack(x, 1)[:, :, None].tolist() for x in (maps, renumbered))
    own = torch.zeros(2, 3).scatter(1, orders, weight)
    (row,) = compared(Predictor(first, amounts, weight.tolist()), Predictor(other, amounts, own.tolist()))
    assert (row["overlap"], row["overlap_by_area"], row["effects"]) == (1.0, 1.0, 1.0)
    (row,) = compared(Predictor(first, amounts, weight.tolist()), Predictor(other, amounts, (-own).tolist()))
    assert row["effects"] == -1.0
    assert biomarker_stability([SimpleNamespace()] * 2, CASES) == []
