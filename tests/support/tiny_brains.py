"""Small clouds, masks, brain networks and a small glioma network for the tests."""

import numpy as np
import torch

from shared.networks import GliomaNetwork

MNI_LIKE = np.array([[2.0, 0, 0, -30], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])
REGIONS, RADII = 6, (8.0, 14.0)
PAIRS = torch.tensor([[0, 0, 1, 2, 3, 1], [1, 2, 2, 3, 4, 4]])  # region 5 has no tract


def cloud(count=64, batch=2, *, seed=0, dtype=torch.float32):
    """Points on bumpy spheres of about 12 mm, no two distances alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, count, 3, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=2, keepdim=True)
    return (x * (11 + 2 * torch.rand(batch, count, 1, generator=generator, dtype=torch.float64))).to(dtype)


def brains(batch=2, points=64, *, seed=0, dtype=torch.float32):
    """Nodes, edges and incidence; tract 3 crosses no point."""
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randn(batch, REGIONS, 16, generator=generator, dtype=torch.float64).to(dtype)
    edges = torch.randn(batch, PAIRS.shape[1], 16, generator=generator, dtype=torch.float64).to(dtype)
    first = torch.tensor([0, 1, 2, -1])[torch.randint(4, (batch, points), generator=generator)]
    second = torch.tensor([4, 5, -1, -1])[torch.randint(4, (batch, points), generator=generator)]
    return nodes, edges, torch.stack([first, second], dim=2)


def lively(net, *, seed=0):
    """Parameters away from their starting values, running statistics from data's scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return net


def glioma_network(**settings):
    """A small network in eval mode."""
    torch.manual_seed(0)
    brain = {"num_regions": REGIONS, "channels": (8, 12), "hidden": (16,), **settings.pop("brain", {})}
    given = {
        "size": 16,
        "in_channels": 2,
        "image": {"channels": (4, 8), "hidden": (16,), **settings.pop("image", {})},
        "points": {"channels": (6, 10), "hidden": (16,), "radii": RADII, **settings.pop("points", {})},
    }
    return lively(GliomaNetwork(PAIRS, brain=brain, **{**given, **settings})).eval()


def glioma_batch(batch=3, *, seed=0):
    """Inputs of :func:`glioma_network`."""
    generator = torch.Generator().manual_seed(seed)
    nodes, edges, incidence = brains(batch, seed=seed)
    return {
        "image": torch.rand(batch, 2, 16, 16, 16, generator=generator),
        "points": cloud(batch=batch, seed=seed),
        "nodes": nodes,
        "edges": edges,
        "incidence": incidence,
    }


def blob(shape=(32, 36, 30), *, centre=(15, 17, 14), radii=(7.0, 5.0, 4.0), seed=0):
    """An ellipsoid with a lump and, apart from it, a small second component."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    main = (((index - centre) / radii) ** 2).sum(axis=-1) <= 1
    lump = ((index - np.add(centre, (4, 3, 2))) ** 2).sum(axis=-1) <= 12
    apart = ((index - np.add(centre, (-8, -9, 6))) ** 2).sum(axis=-1) <= 5
    return main | lump | apart
