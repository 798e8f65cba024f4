"""The same federation under NVFlare's simulator: its FedAvg on the server, its client API at every site."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from shared.apps import ROOT
from shared.errors import DataError
from shared.io import write_json

CLIENT = Path(__file__).with_name("flare_client.py")


def run_flare(
    sites: Mapping[str, Mapping[str, Any]], start: str | os.PathLike, *, rounds: int, output: str | os.PathLike
) -> dict[str, torch.Tensor]:
    """Simulate the federation in NVFlare: a process a site, one for the server.

    Args:
        sites: name to the arguments of :func:`shared.apps.fl.site_algo`; plain values.
        start: state dict that all begin with.
        rounds: exchanges of weights.
        output: folder of the job, its logs, and ``global.pt``.

    Raises:
        DataError: NVFlare is not installed.
        RuntimeError: the simulation ended without a global model.
    """
    if find_spec("nvflare") is None:
        raise DataError("NVFlare is not installed: pip install -r requirements-federated.txt, or use --engine plain.")
    api, runner = (import_module(f"nvflare.job_config.{name}") for name in ("api", "script_runner"))

    from shared.apps.fl.flare_server import BundleFedAvg

    output = Path(output).resolve()
    output.mkdir(parents=True, exist_ok=True)
    result = output / "global.pt"
    result.unlink(missing_ok=True)
    write_json(output / "sites.json", {name: dict(settings) for name, settings in sites.items()})
    job = api.FedJob(name="bundle")
    server = BundleFedAvg(
        num_clients=len(sites), num_rounds=rounds, start=str(Path(start).resolve()), result=str(result)
    )
    job.to_server(server)
    for name in sites:
        options = {"script": str(CLIENT), "script_args": str(output / "sites.json")}
        job.to(runner.ScriptRunner(**options, framework=runner.FrameworkType.RAW), name)
    # the sites' processes find `shared` where this one did, and start from a working directory of their own
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    folder, hook = Path.cwd(), sys.excepthook
    try:
        job.simulator_run(str(output / "workspace"), threads=len(sites), log_config="concise")
    finally:
        os.chdir(folder)
        sys.excepthook = hook
    if not result.is_file():
        raise RuntimeError(f"NVFlare's simulation left no global model; its logs are below {output / 'workspace'}.")
    return torch.load(result, weights_only=True)


def site_settings(path: str | os.PathLike, name: str) -> dict[str, Any]:
    """Arguments of a site, as :func:`run_flare` wrote them."""
    return json.loads(Path(path).read_text(encoding="utf-8"))[name]
