"""What an explanation of the glioma network explains: the logit of the answer, as a function of the embeddings.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023): the classifier of section 3.3
(MLP) and the population graph of section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import DataError
from shared.networks.glioma.network import GliomaNetwork, GliomaOutput

# (embeddings, case) -> logits [B] of the positive class
Target = Callable[[GliomaOutput, Mapping[str, Any]], Tensor]


class ClassifierLogit(nn.Module):
    """The logit of the network's own classifier (``objective="multitask"``), from the embeddings.

    Args:
        network: with a classifier.

    Shape:
        - returns: ``[B]``

    Raises:
        DataError: the network has no classifier.
    """

    def __init__(self, network: GliomaNetwork):
        super().__init__()
        if network.classifier is None:
            raise DataError(
                "The network has no classifier to explain: train it with objective 'multitask', or explain the "
                "population graph's answer."
            )
        self.classifier = network.classifier

    def forward(self, output: GliomaOutput, case: Mapping[str, Any]) -> Tensor:
        """Logits of the embeddings."""
        known = [u for u in (output.u_tumour, output.u_brain) if u is not None]
        return self.classifier(torch.cat(known, dim=1))[:, 0]


class EncoderLogit(nn.Module):
    """The logit of one encoder's own classifier (``unimodal``), from its embedding alone.

    Args:
        network: with such classifiers.
        encoder: ``"image"``, ``"points"`` or ``"brain"``.

    Shape:
        - returns: ``[B]``

    Raises:
        DataError: the encoder has no classifier of its own.
    """

    def __init__(self, network: GliomaNetwork, encoder: str):
        super().__init__()
        self.encoder, self.classifier = encoder, getattr(network, f"classify_{encoder}")
        if self.classifier is None:
            raise DataError(f"The {encoder} encoder has no classifier of its own to explain: train it with unimodal.")

    def forward(self, output: GliomaOutput, case: Mapping[str, Any]) -> Tensor:
        """Logits of the encoder's embedding."""
        return self.classifier(getattr(output, f"u_{self.encoder}"))[:, 0]


class AnswerLogit(nn.Module):
    """The logit of the whole answer, as a function of the patient's embeddings.

    The classifier's ``answer`` says whose it is: the population graph's, or the sum of the encoders' scores and the
    covariates. Of the graph the bank is fixed, and so is who is joined to the patient (a threshold has no derivative);
    the weights of these edges, correlations of its embedding with the bank's, are part of the answer and therefore of
    its gradient.

    Args:
        classifier: has ``classify(embeddings, covariates) -> logits [B]``, such as
            :class:`shared.networks.GliomaClassifier`.

    Shape:
        - returns: ``[B]``
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.answer = classifier

    def forward(self, output: GliomaOutput, case: Mapping[str, Any]) -> Tensor:
        """Logits of the embeddings, with the case's covariates where it has some."""
        covariates = case.get("covariates")
        if covariates is not None:
            first = next(u for u in (output.u_tumour, output.u_brain) if u is not None)
            covariates = torch.as_tensor(covariates).to(first).reshape(1, -1)
        return self.answer.classify(output, covariates)
