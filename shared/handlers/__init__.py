"""Ignite handlers of the stages."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "ContrastivePlateau": "plateau",
        "EarlyStopAfter": "progress",
        "LoadBiomarkers": "checkpoint",
        "LoadEncoder": "checkpoint",
        "StartBalanced": "checkpoint",
        "LoadModel": "checkpoint",
        "MemoryBankHandler": "memory_bank",
        "SaveExplanations": "explanations",
        "SaveGradCAM": "cam",
        "SavePredictions": "predictions",
        "SaveSettings": "checkpoint",
        "StageCheckpoint": "checkpoint",
        "TrainingLog": "progress",
        "SaveAtlas": "glioma",
        "trained_atlas": "glioma",
        "SaveGliomaPredictions": "glioma_predictions",
        "StartContrast": "glioma",
        "UnimodalFirst": "glioma",
        "StartPopulation": "glioma",
    },
)
