"""Networks whose answer is a sum over places, so that the true map is known."""

import torch
from torch import nn

from shared.networks import IRCLClassifier
from tests.support.tiny import lively_images, tiny_classifier


class AdditiveNetwork(nn.Module):
    """Log odds: a weight of each cell times the cell's mean brightness, plus a bias.

    Args:
        images: of a patient.
        size: of an image.
        cell: side of a cell.
        seed: of the weights.
    """

    def __init__(self, images, size, *, cell=4, bias=0.3, seed=0):
        super().__init__()
        self.cell, self.bias = cell, bias
        self.linear = nn.Linear(images * (size // cell) ** 2, 1, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(
                torch.randn(self.linear.weight.shape, generator=torch.Generator().manual_seed(seed))
            )

    def contributions(self, image):
        """Log odds that each cell adds, ``[B, m, h, w]``."""
        means = nn.functional.avg_pool2d(image, self.cell)
        return means * self.linear.weight.reshape(1, *means.shape[1:])

    def forward(self, image, covariates=None):
        """Logits ``[B, 2]``."""
        odds = self.contributions(image).sum((1, 2, 3)) + self.bias
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


def tumours(count=5, num_images=4, size=16, *, modalities=2, seed=1):
    """Lively images that are 0 outside an ellipse of the patient, which cuts through places."""
    x = lively_images(count, num_images, size, seed=seed) + 0.01
    generator = torch.Generator().manual_seed(seed + 100)
    axis = torch.arange(size) + 0.5
    for patient in x:
        for image in range(num_images // modalities):
            (r, c), (a, b) = size * (0.35 + 0.3 * torch.rand(2, 2, generator=generator))
            inside = ((axis[:, None] - r) / (0.6 * a)) ** 2 + ((axis - c) / (0.6 * b)) ** 2 <= 1
            patient[image :: num_images // modalities] *= inside
    if modalities > 1:  # 0 in one modality is still tumour
        x[:, 0, size // 2 - 2 : size // 2 + 1, size // 2 - 2 : size // 2 + 1] = 0
    return x


def tiny_additive(*, num_modalities=2, num_covariates=0, answer="additive", classifier=None, **settings):
    """A small IRCLClassifier whose additive predictor looks trained: biomarkers among the places, weights at random."""
    given = {"num_biomarkers": 5, "level": -1, "measure": "share", "views": 1, "members": 1, **settings}
    net = tiny_classifier(
        IRCLClassifier,
        num_modalities=num_modalities,
        per_modality=True,
        num_covariates=num_covariates,
        additive=given,
        answer=answer,
        **(classifier or {}),
    )
    generator, predictor = torch.Generator().manual_seed(5), net.additive
    x = tumours(12, modalities=num_modalities, seed=7)
    with torch.no_grad():
        for encoder in predictor.encoders[1:]:
            encoder.train()
            for _ in range(20):
                encoder(x.flatten(0, 1).unsqueeze(1))
            encoder.eval()
        for member in range(len(predictor.encoders)):
            found = predictor.features(x, member).unflatten(1, (num_modalities, -1))
            inside = predictor.coverage(x, found.shape[-1]).unflatten(1, (num_modalities, -1)) > 0
            for modality in range(num_modalities):
                places = found[:, modality].movedim(2, -1)[inside[:, modality]]
                chosen = torch.randperm(len(places), generator=generator)[: predictor.num_biomarkers]
                predictor.biomarkers[member, modality] = places[chosen]
        for name in ("weight", "bias", "covariate_weight", "covariate_mean"):
            buffer = getattr(predictor, name)
            buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype))
        predictor.mean.copy_(predictor.measured(x).mean(dim=0))
    return net
