"""Ignite handlers of the stages."""

from shared.handlers.checkpoint import LoadBiomarkers, LoadModel, SaveSettings, StageCheckpoint
from shared.handlers.explanations import SaveExplanations
from shared.handlers.memory_bank import MemoryBankHandler
from shared.handlers.predictions import SavePredictions
from shared.handlers.progress import EarlyStopAfter, TrainingLog

__all__ = [
    "EarlyStopAfter",
    "LoadBiomarkers",
    "LoadModel",
    "MemoryBankHandler",
    "SaveExplanations",
    "SavePredictions",
    "SaveSettings",
    "StageCheckpoint",
    "TrainingLog",
]
