"""What NVFlare runs at every site: train on the weights that arrive, send back what came of them."""

from __future__ import annotations

import sys
from importlib import import_module


def main(settings: str) -> None:
    """Serve rounds until the server ends the job.

    Args:
        settings: the file of :func:`shared.apps.fl.run_flare`.
    """
    import torch
    from monai.fl.utils.exchange_object import ExchangeObject

    from shared.apps.fl.flare import site_settings
    from shared.apps.fl.site import site_algo

    flare = import_module("nvflare.client")
    flare.init()
    name = flare.get_site_name()
    site = site_algo(name=name, **site_settings(settings, name))
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        site.train(ExchangeObject(weights={key: torch.as_tensor(value).clone() for key, value in model.params.items()}))
        sent = site.get_weights()
        weights = {key: value.clone().numpy() for key, value in sent.weights.items()}
        steps = int(sent.statistics["num_executed_iterations"])
        flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": steps}))


if __name__ == "__main__":
    main(sys.argv[1])
