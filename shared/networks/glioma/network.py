"""The multi-modal network of glioma genotype: three encoders joined by hierarchical attention, and projection heads.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 3.3 and Algorithm 1.
"""

# annotations are not postponed here: TorchScript must read those of GliomaOutput
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.data.brain.point_graph import PointGraph
from shared.networks.blocks import mlp
from shared.networks.glioma.brain_encoder import EDGE_ATTENTION, BrainEncoder, edge_attention
from shared.networks.glioma.geometric_encoder import GeometricEncoder
from shared.networks.glioma.image_encoder import ImageEncoder, image_backbone

ENCODERS = ("image", "points", "brain")
OBJECTIVES = ("contrastive", "multitask", "unimodal")


class GliomaInputs(NamedTuple):
    """What the networks of this package take of a batch of patients; None where no encoder needs it.

    Attributes:
        image: the tumour's crop ``[B, C, S, S, S]``.
        points: its surface ``[B, P, 3]``, mm from the centroid.
        graph: the batch's PointGraph; None: made by the geometric encoder.
        nodes: of each region ``[B, R, *]``: the voxels' rows (``C * V``) for :class:`GliomaFeatures`, the attributes
            v^N (``F``) for :class:`GliomaNetwork`.
        edges: of each tract ``[B, E, *]``, likewise: rows, or the attributes v^E.
        incidence: ``[B, P, T]`` long, -1 padded: the tracts that cross each point, as it lies in the brain.
        edge_mask: ``[B, E]`` or ``[E]``: factor on what a tract carries, for explanations.
    """

    image: Tensor | None = None
    points: Tensor | None = None
    graph: PointGraph | None = None
    nodes: Tensor | None = None
    edges: Tensor | None = None
    incidence: Tensor | None = None
    edge_mask: Tensor | None = None


class GliomaOutput(NamedTuple):
    """What the network gives for each patient; None where the part that gives it was left out.

    Attributes:
        u_image: embedding of the tumour image ``[B, D]``.
        u_points: embedding of the tumour's surface ``[B, D]``.
        u_tumour: ``<u_image, u_points>`` ``[B, 2 D]``, or the one of them there is.
        u_brain: embedding of the brain network ``[B, D]``.
        z_image: projection g_I ``[B, Z]``, where there is an image and a surface to align.
        z_points: projection g_P, likewise.
        z_tumour: projection g_T ``[B, Z]``, where there is a tumour and a brain to align.
        z_brain: projection g_B, likewise.
        logits: of the positive class ``[B]``, with ``objective="multitask"``.
        unimodal_logits: of each encoder's own classifier ``[B, K]``, in the order of ``encoders``, with ``unimodal``.
        point_attention: a^P ``[B, P]``, 1 being average.
        node_attention: a^N ``[B, R]``.
    """

    u_image: Tensor | None = None
    u_points: Tensor | None = None
    u_tumour: Tensor | None = None
    u_brain: Tensor | None = None
    z_image: Tensor | None = None
    z_points: Tensor | None = None
    z_tumour: Tensor | None = None
    z_brain: Tensor | None = None
    logits: Tensor | None = None
    unimodal_logits: Tensor | None = None
    point_attention: Tensor | None = None
    node_attention: Tensor | None = None


class GliomaNetwork(nn.Module):
    """Image, geometric and brain encoder with hierarchical attention, their projection heads, and a classifier.

    Args:
        edge_index: the pairs of regions joined by a tract, ``[2, E]``; needed with the brain encoder.
        in_channels: sequences of the MRI.
        size: side of the tumour's crop.
        encoders: which there are: ``"image"``, ``"points"``, ``"brain"``; the ablations leave some out.
        edge_attention: ``"residual"``, ``"literal"`` or ``"none"``, see :func:`edge_attention`.
        objective: ``"contrastive"`` (Algorithm 1); ``"multitask"``, which adds an MLP on <u^T, u^B>; or
            ``"unimodal"``: each encoder has an MLP of its own and nothing joins them, so that its own cross-entropy
            alone trains it (there is no attention and no head to align them).
        unimodal: with ``"multitask"`` and several encoders, each has an MLP of its own, too: by the joint answer
            alone an encoder may be left untaught. Not in the paper.
        classifiers: False: no loss trains them, so ``"multitask"`` has none either.
        embedding_dim: D, width of each embedding.
        projection: widths of the heads, the latent space the last of them.
        hidden: widths of the classifiers between embeddings and logit.
        image: further settings of :class:`ImageEncoder`; with ``backbone``, a network of MONAI instead (``BACKBONES``).
        points: further settings of :class:`GeometricEncoder`.
        brain: further settings of :class:`BrainEncoder`, ``node_attention`` among them; its ``projection`` None or left
            out: 32 and then as the other heads.

    Attributes:
        unimodal: whether there are classifiers of the single encoders.
        scored: whether each encoder has a score of its own, see :meth:`scores`.
        shielded: while True, and in training only, nothing but its own classifier teaches an encoder: what joins the
            encoders gets their embeddings and attention without a way back for the gradient.

    Shape:
        - inputs: :class:`GliomaInputs`, its nodes and edges the attributes
        - returns: :class:`GliomaOutput`

    Raises:
        ValueError: an unknown setting, a single encoder to train by contrast, attention between encoders that are to be
            trained independently, or an input an encoder needs is missing.

    Example:
        >>> net = GliomaNetwork(
        ...     [[0, 1], [1, 2]],
        ...     size=8,
        ...     image={"channels": (4, 4, 4)},
        ...     points={"channels": (4, 8), "radii": (10, 20)},
        ...     brain={"num_regions": 3, "channels": (8, 8)},
        ... )
        >>> brain = {"nodes": torch.randn(2, 3, 16), "edges": torch.randn(2, 2, 16)}
        >>> crossed = torch.zeros(2, 16, 1, dtype=torch.long)
        >>> out = net(GliomaInputs(torch.rand(2, 4, 8, 8, 8), torch.randn(2, 16, 3), incidence=crossed, **brain))
        >>> out.u_tumour.shape, out.u_brain.shape, out.z_brain.shape, out.node_attention.shape
        (torch.Size([2, 64]), torch.Size([2, 32]), torch.Size([2, 128]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        edge_index: Any = None,
        *,
        in_channels: int = 4,
        size: int = 64,
        encoders: Sequence[str] = ENCODERS,
        edge_attention: str = "residual",
        objective: str = "contrastive",
        unimodal: bool = False,
        classifiers: bool = True,
        embedding_dim: int = 32,
        projection: Sequence[int] = (64, 128, 128),
        hidden: Sequence[int] = (64,),
        image: Mapping[str, Any] | None = None,
        points: Mapping[str, Any] | None = None,
        brain: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.encoders = tuple(name for name in ENCODERS if name in encoders)
        if len(self.encoders) != len(list(encoders)) or not self.encoders:
            raise ValueError(f"encoders must be some of {ENCODERS}, each at most once, got {list(encoders)}.")
        if objective not in OBJECTIVES or edge_attention not in (*EDGE_ATTENTION, "none"):
            raise ValueError(
                f"objective must be one of {OBJECTIVES} and edge_attention one of {(*EDGE_ATTENTION, 'none')}, got "
                f"{objective!r} and {edge_attention!r}."
            )
        if objective == "contrastive" and len(self.encoders) == 1:
            raise ValueError(f"One encoder alone ({self.encoders[0]}) has no contrast; use objective 'multitask'.")
        independent = objective == "unimodal"
        attends = (brain or {}).get("node_attention", "softmax") != "none" and len(self.encoders) > 1
        if independent and "brain" in self.encoders and (attends or edge_attention != "none"):
            raise ValueError(
                "objective 'unimodal' trains each encoder independently of the others: give edge_attention and "
                f"brain#node_attention 'none' with it, got {edge_attention!r} and "
                f"{(brain or {}).get('node_attention', 'softmax')!r}."
            )
        self.edge_attention = edge_attention
        self.attends_edges = edge_attention != "none" and {"points", "brain"} <= set(self.encoders)
        self.image_encoder = self.geometric_encoder = self.brain_encoder = self.classifier = None
        if "image" in self.encoders:
            settings = dict(image or {})
            if backbone := settings.pop("backbone", None):
                self.image_encoder = image_backbone(backbone, in_channels, embedding_dim)
            else:
                self.image_encoder = ImageEncoder(in_channels, size, embedding_dim=embedding_dim, **settings)
        if "points" in self.encoders:
            self.geometric_encoder = GeometricEncoder(embedding_dim=embedding_dim, **(points or {}))
        tumour_dim = embedding_dim * len({"image", "points"} & set(self.encoders))
        if "brain" in self.encoders:
            if edge_index is None:
                raise ValueError("The brain encoder needs edge_index, the pairs of regions of the tract atlas.")
            settings = {} if tumour_dim else {"node_attention": "none"}
            settings = {"embedding_dim": embedding_dim, **(brain or {}), **settings}
            if settings.get("projection") is None:
                settings["projection"] = (32, *projection[:-2], projection[-1])
            self.brain_encoder = BrainEncoder(edge_index, **settings)
        within = tumour_dim == 2 * embedding_dim and not independent
        across = tumour_dim > 0 and self.brain_encoder is not None and not independent
        # g_I, g_P, g_T, g_B of Fig. 1; those no pair needs would be dead weights
        self.project_image = mlp([embedding_dim, *projection]) if within else None
        self.project_points = mlp([embedding_dim, *projection]) if within else None
        self.project_tumour = mlp([tumour_dim, *projection]) if across else None
        self.project_brain = mlp([embedding_dim, *projection]) if across else None
        classified = objective == "multitask" and classifiers
        if classified:
            known = tumour_dim + embedding_dim * (self.brain_encoder is not None)
            self.classifier = mlp([known, *hidden, 1])
        self.shielded = False
        self.unimodal = independent or (classified and unimodal and len(self.encoders) > 1)
        self.scored = self.unimodal or (classified and len(self.encoders) == 1)
        alone = self.encoders if self.unimodal else ()
        self.classify_image = mlp([embedding_dim, *hidden, 1]) if "image" in alone else None
        self.classify_points = mlp([embedding_dim, *hidden, 1]) if "points" in alone else None
        self.classify_brain = mlp([embedding_dim, *hidden, 1]) if "brain" in alone else None

    def forward(self, inputs: GliomaInputs) -> GliomaOutput:
        """Embeddings, projections and attention of each patient."""
        if not torch.jit.is_scripting():
            self._check(inputs)
        # one by one and with their types, as TorchScript wants it
        u_image: Tensor | None = None
        u_points: Tensor | None = None
        u_tumour: Tensor | None = None
        u_brain: Tensor | None = None
        z_image: Tensor | None = None
        z_points: Tensor | None = None
        z_tumour: Tensor | None = None
        z_brain: Tensor | None = None
        logits: Tensor | None = None
        unimodal_logits: Tensor | None = None
        point_attention: Tensor | None = None
        node_attention: Tensor | None = None
        if self.image_encoder is not None:
            u_image = self.image_encoder(_given(inputs.image, "image"))
        if self.geometric_encoder is not None:
            u_points, point_attention = self.geometric_encoder(_given(inputs.points, "points"), inputs.graph)
        alone: list[Tensor] = []
        if self.classify_image is not None:
            alone.append(self.classify_image(_given(u_image, "u_image")))
        if self.classify_points is not None:
            alone.append(self.classify_points(_given(u_points, "u_points")))
        shielded = self.shielded and self.training
        joined_image, joined_points = _joined(u_image, shielded), _joined(u_points, shielded)
        parts = _there(joined_image, joined_points)
        if len(parts) > 0:
            u_tumour = torch.cat(parts, dim=1)
        if self.project_tumour is not None:
            z_tumour = self.project_tumour(_given(u_tumour, "u_tumour"))
        joined_brain: Tensor | None = None
        if self.brain_encoder is not None:
            nodes, edges = _given(inputs.nodes, "nodes"), _given(inputs.edges, "edges")
            factor: Tensor | None = None
            if self.attends_edges:
                mine = _given(_joined(point_attention, shielded), "point_attention")
                crossed = _given(inputs.incidence, "incidence")
                factor = edge_attention(mine, crossed, edges.shape[1], self.edge_attention)
            u_brain, node_attention = self.brain_encoder(nodes, edges, z_tumour, factor, inputs.edge_mask)
            joined_brain = _joined(u_brain, shielded)
        if self.classify_brain is not None:
            alone.append(self.classify_brain(_given(u_brain, "u_brain")))
        if len(alone) > 0:
            unimodal_logits = torch.cat(alone, dim=1)
        if self.classifier is not None:
            logits = self.classifier(torch.cat(_there(u_tumour, joined_brain), dim=1))[:, 0]
        if self.project_image is not None:
            z_image = self.project_image(_given(joined_image, "u_image"))
        if self.project_points is not None:
            z_points = self.project_points(_given(joined_points, "u_points"))
        if self.project_brain is not None:
            z_brain = self.project_brain(_given(joined_brain, "u_brain"))
        return GliomaOutput(
            u_image,
            u_points,
            u_tumour,
            u_brain,
            z_image,
            z_points,
            z_tumour,
            z_brain,
            logits,
            unimodal_logits,
            point_attention,
            node_attention,
        )

    def scores(self, output: GliomaOutput) -> Tensor:
        """Logits of each encoder's own classifier ``[B, K]``, from the embeddings; one encoder has the only one.

        Raises:
            ValueError: the encoders have no classifiers of their own.
        """
        alone: list[Tensor] = []
        if self.classify_image is not None:
            alone.append(self.classify_image(_given(output.u_image, "u_image")))
        if self.classify_points is not None:
            alone.append(self.classify_points(_given(output.u_points, "u_points")))
        if self.classify_brain is not None:
            alone.append(self.classify_brain(_given(output.u_brain, "u_brain")))
        if self.classifier is not None and self.scored and len(alone) == 0:
            alone.append(self.classifier(torch.cat(_there(output.u_tumour, output.u_brain), dim=1)))
        if len(alone) == 0:
            raise ValueError("The encoders have no classifiers of their own: train with unimodal.")
        return torch.cat(alone, dim=1)

    def _check(self, inputs: GliomaInputs) -> None:
        needed = {"image": ["image"], "points": ["points"], "brain": ["nodes", "edges"]}
        wanted = [name for encoder in self.encoders for name in needed[encoder]]
        wanted += ["incidence"] if self.attends_edges else []
        missing = [name for name in wanted if getattr(inputs, name) is None]
        if missing:
            raise ValueError(
                f"The network's encoders ({', '.join(self.encoders)}) need {', '.join(wanted)}; missing: "
                f"{', '.join(missing)}."
            )


def _given(x: Tensor | None, name: str) -> Tensor:
    """The tensor, which is there."""
    if x is None:
        raise ValueError(f"The network's encoders need {name}; it is missing.")
    return x


def _joined(x: Tensor | None, shielded: bool) -> Tensor | None:
    """What joins the encoders gets: the same, or without a way back for the gradient."""
    if x is None:
        return None
    return x.detach() if shielded else x


def _there(first: Tensor | None, second: Tensor | None) -> list[Tensor]:
    """Those of the two that are there."""
    parts: list[Tensor] = []
    if first is not None:
        parts.append(first)
    if second is not None:
        parts.append(second)
    return parts
