"""A prediction that is a sum over places: imaging biomarkers as clusters of local features, each with one weight.

The biomarkers are those of Rao et al., Learning Latent Imaging Biomarkers (section 3.2: K-means of a contrastive
encoder's features, nearest biomarker of Eq. 6), found at every place of the tumour instead of once an image; a patient
is a histogram of them, as in the habitats of Gatenby et al., Quantitative Imaging in Cancer Evolution and Ecology
(Radiology 2013), and the logit is linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.networks.blocks import check_views, turned, turned_back

MEASURES = ("share", "area", "sqrt")


class BiomarkerClassifier(nn.Module):
    r"""Predict from how much of each biomarker a patient's tumour holds: the map of contributions is the prediction.

    Every place of an encoder's feature map that lies in the tumour is assigned to the nearest of its modality's K
    biomarkers (cosine similarity). With :math:`a_k` the area of biomarker k over the modality's slices, the log odds
    are

    .. math:: \mathrm{logit} = b + \sum_k w_k\, x_k + \sum_c v_c\, u_c,\qquad
              x_k = a_k / \textstyle\sum_j a_j,\ a_k\ \text{or}\ \sqrt{a_k}

    and a place of area :math:`s` with biomarker k contributes :math:`w_k x_k\, s / a_k`. Of several members (encoders
    of other seeds, each with its own biomarkers) logits and maps are averaged.

    The tumour is where any modality of a slice is not 0: the transforms zero everything else (``mask_background``);
    without that the whole window counts. A place that the tumour covers in part counts by the part covered.

    Args:
        encoders: one per member; ``features(x, last)`` gives the feature maps ``[B, D, h, w]`` up to that level.
        num_images: m, images per patient, modality by modality.
        num_biomarkers: K, per modality.
        num_modalities: modalities the images come from.
        width: D, channels of the level.
        level: which of the encoder's feature maps: 0 the finest, -1 the last.
        measure: ``"share"`` of the tumour, ``"area"`` (as a share of the window) or ``"sqrt"`` (its square root).
        num_classes: logits; the log odds of the maps are the last class's against the mean of the others'.
        num_covariates: clinical covariates that join the sum.
        views: 1, or 2 to 8 flips and right-angle rotations over which the features of a place are averaged, so that a
            pattern is the same biomarker whichever way it lies.

    Shape:
        - image: ``[B, m, H, W]``, covariates: ``[B, C]`` or None (taken as the training cohort's mean)
        - returns: logits ``[B, num_classes]``

    Raises:
        ValueError: an unknown ``measure``, or numbers that do not fit.

    Example:
        >>> from shared.networks import IRCLEncoder
        >>> net = BiomarkerClassifier([IRCLEncoder((8, 16))], num_images=3, num_biomarkers=4, width=16)
        >>> net(torch.rand(2, 3, 16, 16)).shape, net.biomarker_map(torch.rand(2, 3, 16, 16)).shape
        (torch.Size([2, 2]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        num_images: int,
        num_biomarkers: int = 16,
        *,
        num_modalities: int = 1,
        width: int = 512,
        level: int = -1,
        measure: str = "share",
        num_classes: int = 2,
        num_covariates: int = 0,
        views: int = 1,
    ):
        super().__init__()
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {MEASURES}, got {measure!r}.")
        check_views(views)
        if num_images % num_modalities:
            raise ValueError(f"{num_images} images are no multiple of {num_modalities} modalities.")
        self.encoders = nn.ModuleList(encoders).requires_grad_(False)
        members = len(self.encoders)
        self.num_images, self.num_modalities, self.num_biomarkers = num_images, num_modalities, num_biomarkers
        self.level, self.measure, self.views, self.num_covariates = level, measure, views, num_covariates
        per_biomarker = (members, num_modalities, num_biomarkers)
        self.register_buffer("biomarkers", torch.zeros(*per_biomarker, width))
        # double: a sum of hundreds of places shall be the logit to the last digit
        self.register_buffer("weight", torch.zeros(*per_biomarker, num_classes, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("covariate_weight", torch.zeros(num_covariates, num_classes, dtype=torch.float64))
        # means of the training cohort: what a patient is compared with
        self.register_buffer("mean", torch.zeros(*per_biomarker, dtype=torch.float64))
        self.register_buffer("covariate_mean", torch.zeros(num_covariates, dtype=torch.float64))

    def train(self, mode: bool = True) -> BiomarkerClassifier:
        """Nothing of it is trained by gradients: it stays in eval mode."""
        return super().train(False)

    def features(self, image: Tensor, member: int = 0) -> Tensor:
        """Unit features of every place, ``[B, m, D, h, w]``, averaged over the views."""
        if image.shape[1] != self.num_images:
            raise ValueError(f"The network takes {self.num_images} images per patient, got {image.shape[1]}.")
        x = image.flatten(0, 1).unsqueeze(1)
        total = torch.zeros(0)
        for i, encoder in enumerate(self.encoders):  # TorchScript indexes a ModuleList by constants alone
            if i == member:
                total = encoder.features(x, self.level)[-1].float()
                for view in range(1, self.views):
                    total = total + turned_back(encoder.features(turned(x, view), self.level)[-1].float(), view)
        return functional.normalize(total, dim=1).unflatten(0, (-1, self.num_images))

    def coverage(self, image: Tensor, size: int) -> Tensor:
        """Part of each of ``size`` x ``size`` places that the tumour covers, ``[B, m, size, size]``."""
        slices = self.num_images // self.num_modalities
        inside = (image.unflatten(1, (self.num_modalities, slices)) != 0).any(dim=1)
        covered = functional.avg_pool2d(inside.float(), image.shape[-1] // size).double()
        return covered.unsqueeze(1).expand(-1, self.num_modalities, -1, -1, -1).flatten(1, 2)

    def assign(self, features: Tensor, member: int = 0) -> Tensor:
        """Nearest biomarker of each place, ``[B, m, h, w]``, counted from 0 in each modality."""
        x = features.unflatten(1, (self.num_modalities, -1))
        similarity = torch.einsum("bmsdhw,mkd->bmskhw", x, self.biomarkers[member].to(x.dtype))
        return similarity.argmax(dim=3).flatten(1, 2)

    def places(self, image: Tensor, member: int = 0) -> tuple[Tensor, Tensor]:
        """Nearest biomarker of each place and the part of it that the tumour covers, both ``[B, m, h, w]``."""
        features = self.features(image, member)
        return self.assign(features, member), self.coverage(image, features.shape[-1])

    def amounts(self, assignment: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
        """Area of each biomarker (1: the whole window) and its measure x, both ``[B, M, K]``."""
        index = torch.arange(self.num_biomarkers, device=assignment.device)
        member = assignment.unflatten(1, (self.num_modalities, -1)).unsqueeze(-1) == index
        part = covered.unflatten(1, (self.num_modalities, -1)).unsqueeze(-1)
        area = (member * part).mean(dim=(2, 3, 4))
        if self.measure == "area":
            return area, area
        if self.measure == "sqrt":
            return area, area.sqrt()
        return area, area / area.sum(dim=2, keepdim=True).clamp(min=1e-12)

    @torch.jit.unused
    def measured(self, image: Tensor) -> Tensor:
        """How much of each biomarker each patient has (x), ``[B, members, M, K]`` float64."""
        members = range(len(self.encoders))
        return torch.stack([self.amounts(*self.places(image, member))[1] for member in members], dim=1)

    def forward(self, image: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits of each patient."""
        logits = self.bias.expand(image.shape[0], -1)
        members = self.biomarkers.shape[0]
        for member in range(members):
            assignment, covered = self.places(image, member)
            measure = self.amounts(assignment, covered)[1]
            logits = logits + torch.einsum("bmk,mkc->bc", measure, self.weight[member]) / members
        if self.num_covariates > 0:
            known = self.covariate_mean.expand(image.shape[0], -1) if covariates is None else covariates.double()
            logits = logits + known @ self.covariate_weight
        return logits.to(image.dtype)

    @torch.jit.unused
    def log_odds(self, per_class: Tensor) -> Tensor:
        """The last class's value less the mean of the others' (of two classes: the log odds of the second)."""
        return per_class[..., -1] - per_class[..., :-1].mean(dim=-1)

    @torch.jit.unused
    @torch.no_grad()
    def biomarker_map(self, image: Tensor, member: int = 0) -> Tensor:
        """Biomarker of each place, ``[B, m, h, w]`` long: k + K * modality, -1 outside the tumour."""
        return self._coded(*self.places(image, member))

    def _coded(self, assignment: Tensor, covered: Tensor) -> Tensor:
        slices = self.num_images // self.num_modalities
        modality = torch.arange(self.num_images, device=assignment.device) // slices
        return (assignment + self.num_biomarkers * modality[:, None, None]).masked_fill(covered == 0, -1)

    @torch.jit.unused
    @torch.no_grad()
    def contributions(self, image: Tensor) -> Tensor:
        """What each place adds to the log odds, ``[B, m, h, w]``: with ``bias`` and covariates, all of the logit."""
        return self.explain(image)[0]

    @torch.jit.unused
    @torch.no_grad()
    def explain(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contributions ``[B, m, h, w]``, biomarker map of the first member, and x ``[B, members, M, K]``: one pass."""
        members, slices = len(self.encoders), self.num_images // self.num_modalities
        weight = self.log_odds(self.weight)
        total, first, measures = image.new_zeros(1), image.new_zeros(1), []
        for member in range(members):
            assignment, covered = self.places(image, member)
            area, measure = self.amounts(assignment, covered)
            # a place's part of its biomarker's term; areas are shares of all the modality's places
            each = weight[member] * measure / area.clamp(min=1e-12) / (slices * covered.shape[-1] ** 2)
            place = each.repeat_interleave(slices, dim=1).gather(2, assignment.flatten(2))
            total = total + place.unflatten(2, covered.shape[2:]) * covered / members
            measures.append(measure)
            if member == 0:
                first = self._coded(assignment, covered)
        return total.to(image.dtype), first, torch.stack(measures, dim=1)


def biomarker_names(predictor: nn.Module, modalities: Sequence[str] | None = None) -> list[str]:
    """Names of the biomarkers: modality and a number from 0; with several members ``member.number``."""
    names = modalities or [f"modality {i}" for i in range(predictor.num_modalities)]
    members = len(predictor.encoders)
    before = [""] if members == 1 else [f"{member}." for member in range(members)]
    return [f"{name} {one}{k}" for one in before for name in names for k in range(predictor.num_biomarkers)]


def receptive_field(level: int, levels: int) -> int:
    """Side in pixels of what a place of an encoder's level sees: two 3 x 3 convolutions a level, pooling between.

    Example:
        >>> [receptive_field(level, 4) for level in (0, 1, 2, -1)]
        [5, 14, 32, 68]
    """
    side, step = 5, 1
    for _ in range(level % levels):
        side, step = side + step + 8 * step, 2 * step
    return side
