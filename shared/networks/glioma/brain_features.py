"""Node and edge attributes of the brain network, learnt without labels from the voxels of regions and tracts.

Wei et al., Multi-modal learning for predicting the genotype of glioma (IEEE TMI, 2023), sections 3.2 and 4.3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from shared.networks.blocks import mlp

logger = logging.getLogger(__name__)

WIDTHS = (2048, 1024, 512, 128, 32, 16)
FA_WIDTHS = (1024, 512, 128, 32, 16)


def perceptron(widths: Sequence[int], *, batch_norm: bool = False) -> nn.Sequential:
    """Linear layers from each of ``widths`` to the next, with ReLU between them (He initialisation, so that the deep
    stack neither dies out nor blows up).

    Args:
        widths: of the input and of every layer.
        batch_norm: BatchNorm before every ReLU.

    Example:
        >>> [type(layer).__name__ for layer in perceptron([4, 3, 2])]
        ['Linear', 'ReLU', 'Linear']
    """
    layers = list(mlp(widths))
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if i == len(layers) - 1 else "relu")
            nn.init.zeros_(layer.bias)
        elif batch_norm:
            layers[i] = nn.Sequential(nn.BatchNorm1d(layers[i - 1].out_features), layer)
    return nn.Sequential(*layers)


class _RowEncoder(nn.Module):
    """What both attribute encoders do with rows of any leading shape."""

    def __init__(self, encoder: nn.Sequential):
        super().__init__()
        self.encoder = encoder

    def encode(self, rows: Tensor) -> Tensor:
        """Attributes of every row."""
        return self.encoder(rows.flatten(0, -2)).unflatten(0, rows.shape[:-1])  # BatchNorm takes two axes only


class NodeAutoencoder(_RowEncoder):
    """Autoencoder of a region's voxels; its bottleneck is the node's attributes v^N.

    Args:
        num_inputs: voxels per region times sequences (1,000 x 4 in the paper).
        widths: of the encoder's layers, the bottleneck last; the decoder is their mirror.
        batch_norm: BatchNorm before every ReLU.

    Shape:
        - rows: ``[B, num_inputs]`` -> ``[B, num_inputs]``; :meth:`encode`: ``[..., num_inputs]`` -> ``[..., F]``

    Example:
        >>> import torch
        >>> net = NodeAutoencoder(12, widths=(8, 3))
        >>> net(torch.rand(5, 12)).shape, net.encode(torch.rand(2, 5, 12)).shape
        (torch.Size([5, 12]), torch.Size([2, 5, 3]))
    """

    def __init__(self, num_inputs: int = 4000, *, widths: Sequence[int] = WIDTHS, batch_norm: bool = False):
        super().__init__(perceptron([num_inputs, *widths], batch_norm=batch_norm))
        self.decoder = perceptron([*widths[::-1], num_inputs], batch_norm=batch_norm)

    def forward(self, rows: Tensor) -> Tensor:
        """The rows, reconstructed."""
        return self.decoder(self.encoder(rows))


class EdgeEncoder(_RowEncoder):
    """Encoder of a tract's voxels, its output the edge's attributes v^E, and the head that projects them for Eq. 1.

    Args:
        num_inputs: voxels per tract times sequences (1,000 x 4 in the paper; 1,000 for FA, with ``widths=FA_WIDTHS``).
        widths: of the encoder's layers, the attributes last.
        head: of the projection head's layers.
        batch_norm: BatchNorm before every ReLU.

    Shape:
        - rows: ``[B, num_inputs]`` -> projections ``[B, D]``; :meth:`encode`: ``[..., num_inputs]`` -> ``[..., F]``

    Example:
        >>> import torch
        >>> net = EdgeEncoder(6, widths=(8, 3), head=(4, 5))
        >>> net(torch.rand(2, 6)).shape, net.encode(torch.rand(2, 7, 6)).shape
        (torch.Size([2, 5]), torch.Size([2, 7, 3]))
    """

    def __init__(
        self,
        num_inputs: int = 4000,
        *,
        widths: Sequence[int] = WIDTHS,
        head: Sequence[int] = (32, 64, 128),
        batch_norm: bool = False,
    ):
        super().__init__(perceptron([num_inputs, *widths], batch_norm=batch_norm))
        self.head = perceptron([widths[-1], *head], batch_norm=batch_norm)

    def forward(self, rows: Tensor) -> Tensor:
        """Projections for the contrastive loss."""
        return self.head(self.encoder(rows))


class EdgeContrast(nn.Module):
    """The two encoders of Eq. 1 side by side: MRI is the query, FA the key. Only ``mri`` is needed afterwards.

    Args:
        mri: encoder of the sequences' voxels.
        fa: encoder of the FA map's voxels, with a head of the same last width.

    Shape:
        - mri_rows: ``[B, C * V]``, fa_rows: ``[B, V]`` -> two ``[B, D]``
    """

    def __init__(self, mri: EdgeEncoder, fa: EdgeEncoder):
        super().__init__()
        self.mri, self.fa = mri, fa

    def forward(self, mri_rows: Tensor, fa_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Projections of both."""
        return self.mri(mri_rows), self.fa(fa_rows)


class TractPretraining(nn.Module):
    """What trains the MRI edge encoder: Eq. 1 beside an FA encoder; or, where no patient has FA, a mirror behind it.

    The paper has no such autoencoder; Eq. 1 needs FA. ``mri`` is what is kept.

    Args:
        mri: encoder of the sequences' voxels.
        use_fa: whether there are FA maps.
        num_voxels: sampled of a tract.
        in_channels: sequences.
        widths: of the MRI encoder's layers.
        fa_widths: of the FA encoder's layers.
        head: of the FA encoder's projection head.

    Shape:
        - mri_rows: ``[B, C * V]``, fa_rows: ``[B, V]`` -> two projections ``[B, D]``; or rows -> rows ``[B, C * V]``

    Example:
        >>> import torch
        >>> mri = EdgeEncoder(12, widths=(8, 3), head=(4, 5))
        >>> TractPretraining(mri, use_fa=False, num_voxels=6, in_channels=2, widths=(8, 3))(torch.rand(2, 12)).shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        mri: EdgeEncoder,
        *,
        use_fa: bool,
        num_voxels: int = 1000,
        in_channels: int = 4,
        widths: Sequence[int] = WIDTHS,
        fa_widths: Sequence[int] = FA_WIDTHS,
        head: Sequence[int] = (32, 64, 128),
    ):
        super().__init__()
        self.mri, self.use_fa = mri, use_fa
        if use_fa:
            self.fa = EdgeEncoder(num_voxels, widths=fa_widths, head=head)
        else:
            logger.warning(
                "The edge encoder learns without FA maps (not every patient has one, or use_fa is false): as an "
                "autoencoder of the tracts' voxels, not by Eq. 1."
            )
            self.decoder = perceptron([*widths[::-1], num_voxels * in_channels])
            # the head of Eq. 1 learns nothing here: DistributedDataParallel would wait for its gradient
            mri.head.requires_grad_(False)

    def forward(self, rows: Tensor, fa_rows: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """Projections of both, or the rows reconstructed."""
        return (self.mri(rows), self.fa(fa_rows)) if self.use_fa else self.decoder(self.mri.encoder(rows))
