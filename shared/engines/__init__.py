"""What MONAI's trainers and evaluators need to run the stages: batches, inferers, stages without an engine."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "AutocastInferer": "inferers",
        "DihedralInferer": "inferers",
        "bf16_is_fast": "inferers",
        "AdditiveStage": "additive_stage",
        "Members": "additive_stage",
        "CohortStage": "cohort_stage",
        "CrossFit": "cross_fit",
        "BiomarkerStage": "biomarker_stage",
        "PrototypeInferer": "prepare_ircl",
        "PrepareCases": "prepare_ircl",
        "PrepareFeatures": "prepare_ircl",
        "PrepareImages": "prepare_ircl",
        "PrepareRows": "prepare_ircl",
        "PreparePatches": "prepare_patches",
        "PrepareViews": "prepare_patches",
        "SlideFeatures": "slide_features",
        "SlideStage": "slide_stage",
        "StageTrainer": "trainer",
        "on_device": "trainer",
        "ClassEvaluator": "evaluator",
        "PrepareContrast": "prepare_glioma",
        "PrepareGlioma": "prepare_glioma",
        "PreparePopulation": "prepare_glioma",
        "PrepareRegions": "prepare_glioma",
        "PrepareTracts": "prepare_glioma",
    },
)
