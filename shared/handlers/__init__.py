"""Ignite handlers of the stages."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "Abstention": "abstention",
        "ContrastivePlateau": "plateau",
        "EarlyStopAfter": "progress",
        "TrainingLog": "progress",
        "LoadBiomarkers": "checkpoint",
        "LoadEncoder": "checkpoint",
        "StartBalanced": "checkpoint",
        "StartSlides": "slide_mil",
        "LoadModel": "checkpoint",
        "SaveSettings": "checkpoint",
        "StageCheckpoint": "checkpoint",
        "MemoryBankHandler": "memory_bank",
        "SaveExplanations": "explanations",
        "SaveGradCAM": "cam",
        "SavePredictions": "predictions",
        "SaveTrace": "trace",
        "SaveSubgroups": "subgroups",
        "FitAdditive": "additive_answer",
        "SaveAtlas": "glioma",
        "StartContrast": "glioma",
        "UnimodalFirst": "glioma",
        "StartPopulation": "glioma",
        "SaveGliomaPredictions": "glioma_predictions",
        "ModelCheck": "model_check",
        "SaveDicom": "dicom",
    },
)
