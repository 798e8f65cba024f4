"""Why the glioma network answers as it does for a patient: Grad-CAM, the points' attention, tracts and regions.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), section 3.5 and Fig. 7-9.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.data.brain.point_graph import PointGraph, collate_point_graphs
from shared.errors import DataError
from shared.explain.glioma.edges import EdgeExplanation, explain_edges
from shared.explain.glioma.target import EncoderLogit, Target
from shared.explain.grad_cam import GradCAM, frozen, resize_cam
from shared.explain.randomisation import redraw
from shared.networks.glioma.brain_encoder import edge_attention
from shared.networks.glioma.image_encoder import ImageEncoder
from shared.networks.glioma.network import GliomaInputs, GliomaNetwork, GliomaOutput

logger = logging.getLogger(__name__)

MASKED = ("messages", "attributes")


@dataclass(frozen=True)
class GliomaExplanation:
    """A patient's explanation; None where the network has no such part.

    Attributes:
        patient: its name.
        logit: of the positive class, of the whole answer.
        predicted: 1 where the logit is above 0.
        own: by encoder the logit of its own classifier, where its maps explain that; None: all explain the whole.
        cam: Grad-CAM ``[S, S, S]`` in [0, 1] on the tumour's crop, hot = important, 0 where the crop is empty.
        cam_grid: voxels of the layer it comes from, a side.
        contribution: what each voxel adds to the logit of the explained class ``[S, S, S]``, compared with a crop where
            each sequence has its own mean everywhere; negative where it speaks against the class.
        point_attention: a^P ``[P]``, 1 being average.
        point_cam: Grad-CAM at the points ``[P]``.
        edges: mask of the tracts.
        edge_factor: the edge attention's factor ``[E]``.
        node_attention: a^N ``[R]``.
    """

    patient: str
    logit: float
    predicted: int
    own: Mapping[str, float] | None = None
    cam: np.ndarray | None = None
    cam_grid: int = 0
    contribution: np.ndarray | None = None
    point_attention: np.ndarray | None = None
    point_cam: np.ndarray | None = None
    edges: EdgeExplanation | None = None
    edge_factor: np.ndarray | None = None
    node_attention: np.ndarray | None = None

    @property
    def probability(self) -> float:
        """Of the positive class."""
        return _probability(self.logit)

    def explained(self, encoder: str) -> int:
        """The class of the answer that the encoder's maps explain: its own, or the whole."""
        return self.predicted if self.own is None else int(self.own[encoder] > 0)

    def explained_probability(self, encoder: str) -> float:
        """Of the positive class, in the answer that the encoder's maps explain."""
        return self.probability if self.own is None else _probability(self.own[encoder])


class GliomaExplainer:
    """Explain patients, one at a time, so that no patient's explanation depends on another.

    The class explained is the one that is answered. Grad-CAM follows the tumour image's own way to the logit: the
    brain's attention to the tumour passes no gradient (Eq. 3), in training as here.

    Args:
        network: trained.
        target: ``(embeddings, case) -> logit``: :class:`AnswerLogit` or :class:`ClassifierLogit`.
        own: explain each encoder by the answer of its own classifier where it has one (``unimodal``): what the whole
            answer makes no use of, it cannot show. The network's attention is the same either way.
        attributes: ``(region_rows, tract_rows) -> (nodes, edges)``, where cases hold rows; None: they hold the latter.
        block: of the image encoder, counted from 0, whose output gives the map; -1 is the last. Each block halves the
            side, five of them leave a crop of 64 only 2 voxels.
        local: weigh each voxel of a channel by its own gradient (LayerCAM), see :class:`GradCAM`.
        steps: of the integrated gradients; 0: without them.
        edges: settings of :func:`explain_edges`; None: no mask of the tracts.
        masked: what the mask of a tract is a factor on: ``"messages"``, what it carries between its regions, or
            ``"attributes"``, its own v^E, whose 0 is an average tract where these are standardised.
        device: where to compute.

    Shape:
        - a case: ``image [C, S, S, S]`` (the tumour's crop), ``points [P, 3]``, ``graph``, ``nodes [R, F]`` and ``edges
          [E, F]`` (or ``region_rows``, ``tract_rows``), ``incidence [P, T]``, as the network needs them; ``centre [3]``
          (the centroid in voxels of the crop) and ``crop`` (with the crop's ``affine``) for the map at the points

    Raises:
        ValueError: an unknown ``masked``.
        DataError: the image encoder is a backbone of MONAI.
    """

    def __init__(
        self,
        network: GliomaNetwork,
        target: Target,
        attributes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        *,
        own: bool = False,
        block: int = -1,
        local: bool = False,
        steps: int = 0,
        edges: Mapping[str, Any] | None = None,
        masked: str = "messages",
        device: str | torch.device = "cpu",
    ):
        if masked not in MASKED:
            raise ValueError(f"masked must be one of {MASKED}, got {masked!r}.")
        if network.image_encoder is not None and not isinstance(network.image_encoder, ImageEncoder):
            kind = type(network.image_encoder).__name__
            raise DataError(
                f"The maps of the image come from the blocks of this package's image encoder; this network has MONAI's "
                f"{kind} in its place (network_def#image#backbone). Train without backbone to explain it."
            )
        if own and not network.unimodal and len(network.encoders) > 1:
            logger.info("The encoders' own classifiers were not trained: all maps explain the whole answer.")
        self.explained = _Explained(network, target, own=own and network.unimodal).to(device)
        self.network, self.attributes = network, attributes
        self.block, self.local, self.steps = block, local, steps
        self.edges, self.masked, self.device = None if edges is None else dict(edges), masked, device

    def __call__(self, case: Mapping[str, Any], predicted: int | None = None) -> GliomaExplanation:
        """Explain one patient; ``predicted``: the class that the image's maps explain, instead of the one answered."""
        given = self._inputs(self.encoded(case))
        with frozen(self.explained):
            with torch.no_grad():
                output = self.network(GliomaInputs(**given))
                logit = float(self.explained.target(output, case)[0])
                own = {name: float(target(output, case)[0]) for name, target in self.explained.own.items()} or None
            found: dict[str, Any] = {}
            if self.network.image_encoder is not None:
                if predicted is None:
                    predicted = int((logit if own is None else own["image"]) > 0)
                with torch.inference_mode(False):  # tensors of inference_mode would have no gradient
                    rest = GliomaOutput(*(None if part is None else part.clone() for part in output))
                found["cam"], found["cam_grid"] = self._cam(case, given["image"], rest, predicted)
                if self.steps:
                    found["contribution"] = self._contribution(case, given["image"], rest, predicted)
            if output.point_attention is not None:
                found["point_attention"] = _array(output.point_attention[0])
            if found.get("cam") is not None and "points" in given and {"centre", "crop"} <= set(case):
                where = case["centre"], case["crop"]["affine"]
                found["point_cam"] = _at_points(found["cam"], given["points"][0], *where)
            if self.network.brain_encoder is not None:
                found |= self._brain(given, output, case)
        return GliomaExplanation(str(case.get("patient", "")), logit, int(logit > 0), own, **found)

    def _inputs(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """The network's arguments, a batch of one."""
        needed = {"image": ["image"], "points": ["points", "graph"], "brain": ["nodes", "edges"]}
        keys = [key for encoder in self.network.encoders for key in needed[encoder]]
        keys += ["incidence"] if {"points", "brain"} <= set(self.network.encoders) else []
        given: dict[str, Any] = {}
        for key in keys:
            value = case.get(key)
            if isinstance(value, tuple):
                given[key] = _to(collate_point_graphs([PointGraph(*value)]), self.device)
            elif value is not None:
                value = torch.as_tensor(value).as_subclass(Tensor)[None].to(self.device)
                given[key] = value.float() if value.is_floating_point() else value
        return given

    def encoded(self, case: Mapping[str, Any]) -> Mapping[str, Any]:
        """The case with the attributes of its brain network: made of its rows once, however often it is explained."""
        if self.attributes is None or "brain" not in self.network.encoders or {"nodes", "edges"} <= set(case):
            return case
        rows = (torch.as_tensor(case[key])[None].to(self.device).float() for key in ("region_rows", "tract_rows"))
        with torch.no_grad():
            nodes, edges = self.attributes(*rows)
        return {**case, "nodes": nodes[0], "edges": edges[0]}

    def untrained(self, seed: int = 0) -> GliomaExplainer:
        """The same with weights of the tumour's encoders drawn anew: what their maps show, no training has put there.

        It explains no tracts.
        """
        other = copy.deepcopy(self)
        other.edges = None
        encoders = (other.network.image_encoder, other.network.geometric_encoder)
        redraw([encoder for encoder in encoders if encoder is not None], seed)
        return other

    def _cam(
        self, case: Mapping[str, Any], image: Tensor, rest: GliomaOutput, predicted: int
    ) -> tuple[np.ndarray, int]:
        number = range(len(self.network.image_encoder.blocks))[self.block]
        cam = GradCAM(
            self.explained,
            f"network.image_encoder.blocks.{number}",
            local=self.local,
            forward=lambda explained, x: explained(x, rest, case),
        )
        raw = cam.explain(image, predicted).raw
        # an empty voxel says nothing, whatever the map's coarse grid lays over it
        values = resize_cam(raw, image.shape[2:], normalise=False)[0, 0] * (image[0] != 0).any(dim=0)
        return _array(values / values.max().clamp(min=torch.finfo(values.dtype).tiny)), raw.shape[-1]

    def _contribution(self, case: Mapping[str, Any], image: Tensor, rest: GliomaOutput, predicted: int) -> np.ndarray:
        """Integrated gradients (Sundararajan et al., ICML 2017, Eq. 1), summed over the sequences.

        A map of activations shows what is there; this one what is missing, too: a voxel darker than the others counts.
        """
        with torch.inference_mode(False), torch.enable_grad():
            image = image.clone()
            full, axes = image != 0, (2, 3, 4)
            mean = image.sum(dim=axes, keepdim=True) / full.sum(dim=axes, keepdim=True).clamp(min=1)
            baseline = torch.where(full, mean, 0.0)
            total = torch.zeros_like(image)
            for step in range(self.steps):
                x = (baseline + (step + 0.5) / self.steps * (image - baseline)).requires_grad_()
                total += torch.autograd.grad(self.explained(x, rest, case)[0, predicted], x)[0]
            return _array(((image - baseline) * total / self.steps)[0].sum(dim=0))

    def _brain(self, given: Mapping[str, Any], output: GliomaOutput, case: Mapping[str, Any]) -> dict[str, Any]:
        network, found, factor = self.network, {}, None
        nodes, edges = given["nodes"], given["edges"]
        if output.node_attention is not None:
            found["node_attention"] = _array(output.node_attention[0])
        if output.point_attention is not None and network.edge_attention != "none":
            factor = edge_attention(
                output.point_attention, given["incidence"], edges.shape[1], network.edge_attention
            ).detach()
            found["edge_factor"] = _array(factor[0])
        brain_encoder = network.brain_encoder
        if self.edges is None or brain_encoder is None:
            return found

        def logit(mask: Tensor | None) -> Tensor:
            # the tumour's part is the same whatever the mask: only the brain encoder runs again
            part, message = factor, mask
            if self.masked == "attributes" and mask is not None:
                part, message = mask[None] if factor is None else factor * mask, None
            embedding, attention = brain_encoder(nodes, edges, output.z_tumour, part, message)
            return self.explained.of("brain")(output._replace(u_brain=embedding, node_attention=attention), case)

        return found | {"edges": explain_edges(logit, nodes[0], network.brain_encoder.edge_index, **self.edges)}


class _Explained(nn.Module):
    """Network and targets as one, so that all are frozen together; logits of both classes ``[B, 2]`` of an image.

    Points and brain stay the patient's, as they are in ``rest``: only the image's own embedding changes.
    """

    def __init__(self, network: GliomaNetwork, target: Target, *, own: bool):
        super().__init__()
        self.network, self.target = network, target
        self.own = nn.ModuleDict({name: EncoderLogit(network, name) for name in network.encoders} if own else {})

    def of(self, encoder: str) -> Target:
        """The logit that explains the encoder."""
        return self.own[encoder] if len(self.own) else self.target

    def forward(self, image: Tensor, rest: GliomaOutput, case: Mapping[str, Any]) -> Tensor:
        encoder = self.network.image_encoder
        assert encoder is not None  # maps of images are asked for only then
        u_image = encoder(image)
        parts = [part for part in (u_image, rest.u_points) if part is not None]
        logit = self.of("image")(rest._replace(u_image=u_image, u_tumour=torch.cat(parts, dim=1)), case)
        return torch.stack([-logit, logit], dim=1)


def _at_points(cam: np.ndarray, points: Tensor, centre: Any, affine: Any) -> np.ndarray:
    """The map of a crop at points, mm from the centroid, which lies at ``centre``, in voxels of the crop."""
    to_voxels = torch.from_numpy(np.linalg.inv(np.asarray(affine, np.float64)[:3, :3])).to(points)
    place = torch.as_tensor(centre).to(points) + points @ to_voxels.t()
    # grid_sample takes the last axis first
    grid = (2 * place / (cam.shape[0] - 1) - 1).flip(1)[None, None, None]
    volume = torch.from_numpy(cam).to(points)[None, None]
    return _array(functional.grid_sample(volume, grid, align_corners=True)[0, 0, 0, 0])


def _probability(logit: float) -> float:
    return float(torch.tensor(logit, dtype=torch.float64).sigmoid())


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _to(graph: PointGraph, device: Any) -> PointGraph:
    parts = [tuple(x.to(device) for x in part) if isinstance(part, tuple) else part.to(device) for part in graph]
    return PointGraph(*parts)
