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
from shared.networks.glioma import GliomaNetwork, GliomaOutput
from shared.networks.population_edges import graph_inputs
from shared.networks.population_graph import PopulationGraphClassifier

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


class PopulationLogit(nn.Module):
    """The population graph's logit of a new patient, as a function of its embeddings; the bank is fixed.

    Who is joined to the patient is fixed, too (a threshold has no derivative); the weights of these edges, correlations
    of its embedding with the bank's, are part of the answer and therefore of its gradient.

    Args:
        population: trained, with its bank.
        variant: which embeddings are nodes and which make edges, see :data:`shared.networks.VARIANTS`.
        fixed_weights: take the edges' weights as constants instead.

    Shape:
        - returns: ``[B]``

    Example:
        >>> graph = PopulationGraphClassifier(6, edge_features=2)
        >>> graph.set_bank(torch.randn(9, 6), torch.randn(9, 2))
        >>> out = GliomaOutput(u_tumour=torch.randn(3, 4), u_brain=torch.randn(3, 2))
        >>> PopulationLogit(graph.eval())(out, {}).shape
        torch.Size([3])
    """

    def __init__(
        self, population: PopulationGraphClassifier, variant: str = "both-brain", *, fixed_weights: bool = False
    ):
        super().__init__()
        self.population, self.variant, self.fixed_weights = population, variant, fixed_weights

    def forward(self, output: GliomaOutput, case: Mapping[str, Any]) -> Tensor:
        """Logits of the embeddings; covariates where the graph takes some (``case["covariates"]``, else the mean)."""
        nodes, edges = graph_inputs(output.u_tumour, output.u_brain, self.variant)
        covariates = case.get("covariates") if self.population.num_covariates else None
        if covariates is not None:
            covariates = torch.as_tensor(covariates).to(nodes).reshape(1, -1).expand(len(nodes), -1)
        return self.population(nodes, edges.detach() if self.fixed_weights else edges, covariates)[:, 0]
