"""What MONAI's trainers and evaluators need to run the stages: batch preparation, inferer, stages without an engine."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "AutocastInferer": "inferers",
        "BiomarkerStage": "stages",
        "DihedralInferer": "inferers",
        "ExplainStage": "explain",
        "GliomaExplainStage": "glioma_explain",
        "PatchExplainStage": "patch_explain",
        "PrepareCases": "prepare_batch",
        "PrepareFeatures": "prepare_batch",
        "PrepareImages": "prepare_batch",
        "PreparePatches": "prepare_views",
        "PrepareRows": "prepare_batch",
        "PrepareRegions": "prepare_brain",
        "PrepareTracts": "prepare_brain",
        "PrepareViews": "prepare_views",
        "bf16_is_fast": "inferers",
        "FrozenEmbeddings": "glioma_batches",
        "PopulationLoss": "glioma_batches",
        "PrepareContrast": "glioma_batches",
        "PrepareGlioma": "glioma_batches",
        "PreparePopulation": "glioma_batches",
    },
)
