"""Losses of the three methods, imported on first use: ``from shared.losses import MemoryBank``."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "AttentionConsistencyLoss": "attention",
        "LossAttentionLoss": "attention",
        "NTXentLoss": "contrastive",
        "ViewsLoss": "contrastive",
        "BiLevelContrastiveLoss": "bilevel",
        "EdgeContrastiveLoss": "bilevel",
        "InfoNCELoss": "bilevel",
        "IRCLPretrainLoss": "ircl",
        "BalancedCrossEntropyLoss": "balanced",
        "balanced_class_weights": "balanced",
        "MemoryBank": "memory_bank",
        "MemoryBankContrastiveLoss": "memory_bank",
        "PerceptualReconstructionLoss": "reconstruction",
        "GliomaLoss": "glioma",
        "TractLoss": "glioma",
        "PopulationLoss": "glioma",
    },
)
