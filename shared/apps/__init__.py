"""What scripts call and no bundle names: preparation, phantoms, experiments, baselines, federated learning."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository, or the folder of an unpacked bundle."""
