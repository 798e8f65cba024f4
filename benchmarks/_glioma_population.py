"""The population graph's dense attention against torch_geometric's GATConv, a training step of the whole network."""

from __future__ import annotations

from typing import Any

from _timing import Finding, interleaved, product, report

PATIENTS, FEATURES = 501, 100  # UCSF-PDGM's radiomics
CLUSTERS = 6


def cohort(patients: int, features: int) -> Any:
    """Noisy copies of a few profiles: about a sixth of all pairs correlate, as in the real cohort."""
    import torch

    generator = torch.Generator().manual_seed(0)
    profiles = torch.randn(CLUSTERS, features, generator=generator)
    noise = 0.6 * torch.randn(patients, features, generator=generator)
    return profiles[torch.arange(patients) % CLUSTERS] + noise


def population(*, device: Any = "cpu", tiny: bool = False, repeats: int = 7) -> list[Finding]:
    """A step (forward, backward) of the default's and the paper's layers, dense and sparse, with the same weights."""
    import torch
    from torch.nn.functional import elu
    from torch_geometric.nn import GATConv

    from shared.networks.glioma.population_edges import graph_report
    from shared.networks.glioma.population_graph import PAPER, PopulationGraphClassifier

    rows, findings = [], []
    patients, features = (40, 12) if tiny else (PATIENTS, FEATURES)
    x = cohort(patients, features).to(device)
    for name, settings in {"default": {"dropout": 0.0}, "paper": PAPER}.items():
        torch.manual_seed(0)
        network = PopulationGraphClassifier(features, **settings).to(device)
        network.set_bank(x)
        member, graph = network.members[0], network.bank_graph()
        sparse = torch.nn.ModuleList()
        for layer in member.layers:
            shape = (layer.lin.in_features, layer.lin.out_features)
            sparse.append(GATConv(*shape, edge_dim=1, residual=layer.res is not None))
            sparse[-1].load_state_dict(layer.state_dict())
        sparse.to(device)
        target, source = graph[1].nonzero().t()
        index, weight = torch.stack([source, target]), graph[0][target, source]
        nodes = network._standard(x)

        def ours(member=member, graph=graph, nodes=nodes) -> Any:
            return member.states(nodes, graph[1], graph[0])[-1]

        def theirs(sparse=sparse, index=index, weight=weight, nodes=nodes) -> Any:
            state = nodes
            for layer in sparse:
                state = elu(layer(state, index, weight))
            return state

        wanted = theirs().detach()
        difference = float((ours().detach() - wanted).abs().max() / wanted.abs().max())
        calls = {
            "dense": lambda ours=ours: ours().sum().backward(),
            "torch_geometric": lambda theirs=theirs: theirs().sum().backward(),
            "GEMM": product(device),
        }
        interleaved(calls, 1, device)
        seconds = interleaved(calls, 1 if tiny else repeats, device)
        gain = seconds["torch_geometric"] / seconds["dense"]
        rows.append(
            {
                "network": name,
                "patients": patients,
                "density": graph_report(graph[1], log=False).density,
                **seconds,
                "dense / GEMM": seconds["dense"] / seconds["GEMM"],
                "torch_geometric / dense": gain,
                "differ by": difference,
            }
        )
        findings.append(Finding(f"population graph ({name}), torch_geometric / dense", "-", f"{gain:.1f}"))
    report("Population graph, forward and backward through its layers (seconds)", rows)
    return findings
