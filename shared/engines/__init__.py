"""What MONAI's trainers and evaluators need to run the stages: batch preparation, inferer, stages without an engine."""

from shared.engines.explain import ExplainStage
from shared.engines.inferers import AutocastInferer, bf16_is_fast
from shared.engines.prepare_batch import PrepareCases, PrepareFeatures, PrepareImages, PrepareRows
from shared.engines.stages import BiomarkerStage

__all__ = [
    "AutocastInferer",
    "BiomarkerStage",
    "ExplainStage",
    "PrepareCases",
    "PrepareFeatures",
    "PrepareImages",
    "PrepareRows",
    "bf16_is_fast",
]
