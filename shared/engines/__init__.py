"""What MONAI's trainers and evaluators need to run the stages: batch preparation, inferer, stages without an engine."""

from shared.engines.inferers import AutocastInferer, bf16_is_fast
from shared.engines.prepare_batch import PrepareCases, PrepareFeatures, PrepareRows
from shared.engines.stages import BiomarkerStage

__all__ = [
    "AutocastInferer",
    "BiomarkerStage",
    "PrepareCases",
    "PrepareFeatures",
    "PrepareRows",
    "bf16_is_fast",
]
