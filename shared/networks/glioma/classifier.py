"""The whole glioma classifier: brain network's encoders, three encoders with attention, population graph, and a sum.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), sections 3.2 to 3.4. One state
dict holds all that a prediction for a new patient needs; of the patients it was trained on, it holds embeddings and
labels, neither names nor images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.data.brain.point_graph import PointGraph
from shared.errors import DataError
from shared.networks.blocks import mlp
from shared.networks.glioma.additive import AdditiveAnswer
from shared.networks.glioma.brain_features import WIDTHS, EdgeEncoder, NodeAutoencoder
from shared.networks.glioma.network import ENCODERS, GliomaInputs, GliomaNetwork, GliomaOutput
from shared.networks.glioma.population_edges import VARIANTS, graph_inputs
from shared.networks.glioma.population_graph import PopulationGraphClassifier

STANDARDISE = ("unit", "none")
ANSWERS = ("graph", "additive")
_PATIENTS = ("bank_labels", "bank_nodes", "bank_edges")  # buffers with a row for each of them


def given_rows(batch: Mapping[str, Any]) -> GliomaInputs:
    """A batch of :func:`shared.data.glioma_inputs` as :class:`GliomaInputs`, its rows of voxels as nodes and edges."""
    names = {"region_rows": "nodes", "tract_rows": "edges"}
    return GliomaInputs(**{names.get(key, key): x for key, x in batch.items() if key != "covariates"})


class GliomaFeatures(nn.Module):
    """From a patient's crop, points and brain voxels to the embeddings: what the stages before the last one train.

    The encoders of the brain network's attributes are there where there is a brain encoder.

    Args:
        edge_index: the pairs of regions joined by a tract, ``[2, E]``.
        num_regions: R.
        in_channels: sequences of the MRI, C.
        num_voxels: V, sampled of each region and tract.
        attribute_widths: layers of the node and edge encoders, the attributes' width last.
        edge_head: layers of the projection head of Eq. 1.
        batch_norm: BatchNorm in these encoders.
        standardise: ``"unit"``: attributes of each region and each tract to mean 0, SD 1 over the patients that the
            encoders were trained on; ``"none"``: as they come (the paper).
        brain: see :class:`GliomaNetwork`, but its ``num_regions`` and ``in_channels``, which are known here.
        network: all further settings of :class:`GliomaNetwork`.

    Shape:
        - inputs: :class:`GliomaInputs`, nodes and edges the rows of voxels; None without the brain encoder
        - returns: :class:`GliomaOutput`

    Raises:
        ValueError: an unknown ``standardise``.
    """

    def __init__(
        self,
        edge_index: Any,
        *,
        num_regions: int = 90,
        in_channels: int = 4,
        num_voxels: int = 1000,
        attribute_widths: Sequence[int] = WIDTHS,
        edge_head: Sequence[int] = (32, 64, 128),
        batch_norm: bool = False,
        standardise: str = "unit",
        brain: Mapping[str, Any] | None = None,
        **network: Any,
    ):
        super().__init__()
        if standardise not in STANDARDISE:
            raise ValueError(f"standardise must be one of {STANDARDISE}, got {standardise!r}.")
        self.standardise = standardise
        width, tracts = attribute_widths[-1], len(edge_index[0])
        has_brain = "brain" in network.get("encoders", ENCODERS)
        rows = {"widths": attribute_widths, "batch_norm": batch_norm}
        self.nodes = NodeAutoencoder(in_channels * num_voxels, **rows) if has_brain else None
        self.edges = EdgeEncoder(in_channels * num_voxels, head=edge_head, **rows) if has_brain else None
        brain = {"num_regions": num_regions, "in_channels": width, **(brain or {})}
        self.glioma = GliomaNetwork(edge_index, in_channels=in_channels, brain=brain, **network)
        for name, count in (("node", num_regions), ("edge", tracts)) if has_brain else ():
            self.register_buffer(f"{name}_mean", torch.zeros(count, width))
            self.register_buffer(f"{name}_std", torch.ones(count, width))

    @torch.no_grad()
    def attributes(
        self, region_rows: Tensor, tract_rows: Tensor, *, standardised: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Attributes v^N ``[B, R, F]`` and v^E ``[B, E, F]``, as in evaluation whatever the mode."""
        modes = self.nodes.training, self.edges.training
        self.nodes.eval(), self.edges.eval()
        try:
            nodes, edges = self.nodes.encode(region_rows), self.edges.encode(tract_rows)
        finally:
            self.nodes.train(modes[0]), self.edges.train(modes[1])
        return self._scaled(nodes, edges) if standardised else (nodes, edges)

    def _scaled(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        return (nodes - self.node_mean) / self.node_std, (edges - self.edge_mean) / self.edge_std

    @torch.no_grad()
    def fit_attributes(self, nodes: Tensor, edges: Tensor) -> None:
        """Take the mean and SD of patients' raw attributes ``[N, R, F]``, ``[N, E, F]`` as the scale of all."""
        if self.standardise == "none":
            return
        for name, x in (("node", nodes), ("edge", edges)):
            x = x.double()
            mean, spread = x.mean(dim=0), x.std(dim=0)
            getattr(self, f"{name}_mean").copy_(mean)
            # a dead unit, the same for all, becomes 0
            getattr(self, f"{name}_std").copy_(spread.where(spread > 1e-6 * (1 + mean.abs()), 1.0))

    def unused(self, key: str) -> bool:
        """Whether a state dict's entry is of the brain network's encoders, where there is no brain encoder.

        Older versions built, trained and stored them all the same.
        """
        return self.nodes is None and key.startswith(("nodes.", "edges.", "node_", "edge_"))

    def forward(self, inputs: GliomaInputs) -> GliomaOutput:
        """Embeddings, projections and attention of each patient."""
        nodes, edges = inputs.nodes, inputs.edges
        if self.nodes is not None and self.edges is not None and nodes is not None and edges is not None:
            if torch.jit.is_scripting():  # for inference only
                nodes, edges = self._scaled(self.nodes.encode(nodes), self.edges.encode(edges))
            else:
                nodes, edges = self.attributes(nodes, edges)
        else:
            nodes, edges = None, None
        known = GliomaInputs(
            inputs.image, inputs.points, inputs.graph, nodes, edges, inputs.incidence, inputs.edge_mask
        )  # TorchScript knows no _replace
        return self.glioma(known)


class GliomaClassifier(nn.Module):
    """The features, frozen after their training, and the population graph that classifies by them.

    Beside it stands, with ``additive``, an :class:`AdditiveAnswer` on the encoders' own scores and the covariates;
    ``answer`` says which of the two the network gives.

    Args:
        edge_index: the pairs of regions joined by a tract, ``[2, E]``; they are in the state dict, too.
        objective: ``"contrastive"`` (the paper's, and the default of :class:`GliomaNetwork`), ``"multitask"`` (the
            bundle's, and the default here) or ``"unimodal"``, see there.
        unimodal: each encoder has a classifier of its own, see :class:`GliomaNetwork`.
        classification_weight: of the classifiers in the loss: with 0 they are not trained, so there are none.
        unimodal_weight: of the single encoders' classifiers in it, likewise.
        image: of the image encoder, but the three switches below.
        graph: nodes and edges of the population graph, one of Table 1 (``VARIANTS``); where the encoders give but one
            of u^T and u^B, that one.
        population: of :class:`PopulationGraphClassifier`.
        num_covariates: joined at the population graph's head.
        mlp_hidden: widths of the control, an MLP on the same embeddings.
        additive: whether there is an :class:`AdditiveAnswer`; only where each encoder has a score of its own.
        answer: ``"graph"`` or ``"additive"``.
        bf16: the image encoder in bfloat16.
        channels_last: its memory order.
        checkpointing: its blocks computed again in the backward pass.
        bank_size: patients of the population graph; as trained, so that a state dict fits at once; kept in
            ``settings`` when it is known.
        seen_size: no longer used; ``model.json`` of older versions has it.
        features: all further settings of :class:`GliomaFeatures`, those of its network among them.

    Attributes:
        settings: every argument, defaults too, as ``model.json`` keeps them: ``GliomaClassifier(**settings)``.

    Shape:
        - inputs of :meth:`embed`: see :class:`GliomaFeatures`; those of the call are its fields one by one, under the
          names of ``metadata.json``, so that exports have them as inputs; covariates: ``[B, k]`` or None
        - returns: logits ``[B, 2]``, the first of them 0

    Raises:
        ValueError: an unknown setting.
        DataError: the population graph has no bank yet.
    """

    def __init__(
        self,
        edge_index: Any,
        *,
        objective: str = "multitask",
        unimodal: bool = False,
        classification_weight: float = 1.0,
        unimodal_weight: float = 1.0,
        image: Mapping[str, Any] | None = None,
        graph: str = "both-brain",
        population: Mapping[str, Any] | None = None,
        num_covariates: int = 0,
        mlp_hidden: Sequence[int] = (64,),
        additive: bool = False,
        answer: str = "graph",
        bf16: bool = False,
        channels_last: bool = False,
        checkpointing: bool = False,
        bank_size: int = 0,
        seen_size: int = 0,
        **features: Any,
    ):
        own = {
            key: value for key, value in locals().items() if key not in ("self", "__class__", "seen_size", "features")
        }
        super().__init__()
        self.settings = _defaults(GliomaNetwork) | _defaults(GliomaFeatures) | features | own
        self.settings["edge_index"] = [[int(r) for r in row] for row in edge_index]
        if graph not in VARIANTS:
            raise ValueError(f"graph must be one of {', '.join(VARIANTS)} (nodes-edges, Table 1), got {graph!r}.")
        self.graph, self.answer = graph, answer
        self.features = GliomaFeatures(
            edge_index,
            objective=objective,
            unimodal=unimodal and unimodal_weight > 0,
            classifiers=classification_weight > 0,
            image={**(image or {}), "bf16": bf16, "channels_last": channels_last, "checkpointing": checkpointing},
            **features,
        )
        encoders, width = self.features.glioma.encoders, self.settings["embedding_dim"]
        has_brain = "brain" in encoders
        self.tumour_dim, self.brain_dim = width * (len(encoders) - has_brain), width * has_brain
        nodes, edges = self.graph_parts(GliomaOutput(u_tumour=self._empty("tumour"), u_brain=self._empty("brain")))
        self.population = PopulationGraphClassifier(
            nodes.shape[1], edge_features=edges.shape[1], num_covariates=num_covariates, **(population or {})
        )
        self.mlp = mlp([nodes.shape[1] + num_covariates, *mlp_hidden, 1])
        self.additive: AdditiveAnswer | None = None
        if additive and self.features.glioma.scored:
            self.additive = AdditiveAnswer(len(encoders), num_covariates)
        if answer not in ANSWERS or (answer == "additive" and self.additive is None):
            raise ValueError(
                'answer must be "graph" or, where `additive` is true and each encoder has a classifier of its own '
                f'(objective "multitask" with unimodal, or "unimodal"), "additive"; got {answer!r}. Without such '
                "classifiers train with --answer graph."
            )
        self.register_buffer("bank_labels", torch.zeros(0))
        kept = {name: buffer for name, buffer in self.named_buffers() if name.rpartition(".")[2] in _PATIENTS}
        self.make_room({name: buffer.new_zeros(bank_size, *buffer.shape[1:]) for name, buffer in kept.items()})

    def graph_parts(self, output: GliomaOutput) -> tuple[Tensor, Tensor]:
        """Node and edge features of the population graph."""
        tumour, brain = output.u_tumour, output.u_brain
        if tumour is not None and brain is not None:
            return graph_inputs(tumour, brain, self.graph)
        only = brain if tumour is None else tumour
        assert only is not None  # there is an encoder
        return only, only

    def embed(self, inputs: GliomaInputs) -> GliomaOutput:
        """Embeddings and attention."""
        return self.features(inputs)

    def classify(self, output: GliomaOutput, covariates: Tensor | None = None) -> Tensor:
        """Logits ``[B]`` of the answer."""
        if self.additive is not None and self.answer == "additive":
            return self.additive(self.features.glioma.scores(output), covariates).to(torch.float32)
        return self.graph_logits(output, covariates)

    def graph_logits(self, output: GliomaOutput, covariates: Tensor | None = None) -> Tensor:
        """Logits ``[B]`` of the population graph."""
        nodes, edges = self.graph_parts(output)
        return self.population(nodes, edges, covariates)[:, 0]

    @torch.jit.unused
    def answers(self, output: GliomaOutput, covariates: Tensor | None = None) -> dict[str, Tensor]:
        """Logits ``[B]`` of the graph and, where there is one, of the sum, by name."""
        found = {"graph": self.graph_logits(output, covariates)}
        if self.additive is not None:
            found["additive"] = self.additive(self.features.glioma.scores(output), covariates)
        return found

    @torch.jit.unused
    def contributions(self, output: GliomaOutput, covariates: Tensor | None = None) -> Tensor:
        """What each encoder, then each covariate, adds to the additive answer, ``[B, K + C]``.

        With ``additive.bias`` they are all of its logit.

        Raises:
            DataError: the network has no additive answer.
        """
        if self.additive is None:
            raise DataError("The network has no additive answer: train it with network_def#additive true.")
        return self.additive.contributions(self.features.glioma.scores(output), covariates)

    def forward(
        self,
        image: Tensor,
        points: Tensor | None = None,
        graph: PointGraph | None = None,
        region_rows: Tensor | None = None,
        tract_rows: Tensor | None = None,
        incidence: Tensor | None = None,
        covariates: Tensor | None = None,
        edge_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of both classes."""
        output = self.embed(GliomaInputs(image, points, graph, region_rows, tract_rows, incidence, edge_mask))
        logit = self.classify(output, covariates if self.population.num_covariates else None)
        return torch.stack([torch.zeros_like(logit), logit], dim=1)

    def data_format(self) -> dict[str, dict[str, Any]]:
        """What a metadata file's ``network_data_format#inputs`` must say of this network's inputs."""
        channels, tracts = self.settings["in_channels"], len(self.settings["edge_index"][0])
        voxels = [channels * self.settings["num_voxels"]]
        return {
            "image": {"num_channels": channels, "spatial_shape": [self.settings["size"]] * 3},
            "region_rows": {"num_channels": self.settings["num_regions"], "spatial_shape": voxels},
            "tract_rows": {"num_channels": tracts, "spatial_shape": voxels},
            "incidence": {"value_range": [-1, tracts - 1]},
        }

    def mlp_logits(self, nodes: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits ``[B]`` of the control, the MLP on node features ``[B, D]``."""
        known = self.population._covariates(covariates, len(nodes))
        return self.mlp(torch.cat([self.population._standard(nodes), known], dim=1))[:, 0]

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Give the buffers that hold patients the sizes of a checkpoint's."""
        for name, buffer in list(self.named_buffers()):
            path, _, last = name.rpartition(".")
            stored = state.get(name) if last in _PATIENTS else None
            if stored is not None and stored.shape[1:] == buffer.shape[1:]:
                setattr(self.get_submodule(path), last, buffer.new_zeros(stored.shape))
        self.note_sizes()

    def unused(self, key: str) -> bool:
        """See :meth:`GliomaFeatures.unused`."""
        return self.features.unused(key.removeprefix("features."))

    def note_sizes(self) -> None:
        """Keep how many patients there are in ``settings``: a network built with these fits its state dict."""
        self.settings |= {"bank_size": len(self.bank_labels)}

    def _empty(self, part: str) -> Tensor | None:
        width = self.tumour_dim if part == "tumour" else self.brain_dim
        return torch.zeros(1, width) if width else None


class FeaturesTraining(nn.Module):
    """The features as the stage ``contrast`` trains them, on brain networks whose attributes are known already.

    Args:
        features: the features; all of them are in the state dict, so that the checkpoint is enough for the next stage.
    """

    def __init__(self, features: GliomaFeatures):
        super().__init__()
        self.features = features

    def trained(self) -> list[nn.Parameter]:
        """The parameters that this stage trains."""
        return list(self.features.glioma.parameters())

    def unused(self, key: str) -> bool:
        """See :meth:`GliomaFeatures.unused`."""
        return self.features.unused(key.removeprefix("features."))

    def forward(self, image: Tensor, **inputs: Any) -> GliomaOutput:
        """Embeddings and projections of a batch."""
        return self.features.glioma(GliomaInputs(image, **inputs))


class PopulationTraining(nn.Module):
    """What the last stage trains: the population graph on its own bank, and the MLP beside it.

    Args:
        network: the classifier; its features stay as they are.

    Shape:
        - rows: ``[R]`` long, of the bank; covariates: ``[R, k]`` or None
        - returns: logits ``[members, R]`` of the graph, of patients that stand alone (or None), of the MLP ``[1, R]``
    """

    def __init__(self, network: GliomaClassifier):
        super().__init__()
        self.population, self.mlp = network.population, network.mlp
        self.whole = [network]  # in a list: not a part of this module
        self.bank_graph: tuple[Tensor, Tensor] | None = None

    def forward(self, rows: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits of the bank's patients."""
        if self.bank_graph is None:
            self.bank_graph = self.population.bank_graph()
        known = covariates if self.population.num_covariates else None
        whole = len(rows) == len(self.population.bank_nodes)
        order = rows.argsort() if whole else rows
        known = known[order] if whole and known is not None else known
        graph, alone = self.population.bank_logits(None if whole else rows, known, self.bank_graph)
        nodes = self.population.bank_nodes if whole else self.population.bank_nodes[rows]
        logits = self.whole[0].mlp_logits(nodes, known)[None]
        back = rows if whole else slice(None)
        return graph[:, back], None if alone is None else alone[:, back], logits[:, back]


def _defaults(kind: Callable[..., nn.Module]) -> dict[str, Any]:
    """Settings of a class by name, as they are where nobody gives them; but ``classifiers``, which others decide."""
    known = {name: each.default for name, each in inspect.signature(kind).parameters.items() if name != "classifiers"}
    return {name: default for name, default in known.items() if default is not inspect.Parameter.empty}
