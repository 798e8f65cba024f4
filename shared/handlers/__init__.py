"""Ignite handlers of the stages."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "ContrastivePlateau": "plateau",
        "EarlyStopAfter": "progress",
        "TrainingLog": "progress",
        "LoadBiomarkers": "checkpoint",
        "LoadEncoder": "checkpoint",
        "StartBalanced": "checkpoint",
        "LoadModel": "checkpoint",
        "SaveSettings": "checkpoint",
        "StageCheckpoint": "checkpoint",
        "MemoryBankHandler": "memory_bank",
        "SaveExplanations": "explanations",
        "SaveGradCAM": "cam",
        "SavePredictions": "predictions",
        "SaveAtlas": "glioma",
        "StartContrast": "glioma",
        "UnimodalFirst": "glioma",
        "StartPopulation": "glioma",
        "SaveGliomaPredictions": "glioma_predictions",
        "ModelCheck": "model_check",
        "SaveDicom": "dicom",
    },
)
