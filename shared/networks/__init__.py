"""Networks of the papers."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "AttentionMIL": "ircl.comparison",
        "BiomarkerClassifier": "ircl.additive",
        "DetailedTraining": "ircl.comparison",
        "HierarchicalAttentionNetwork": "ircl.comparison",
        "IRCLAutoencoder": "ircl.network",
        "IRCLClassifier": "ircl.network",
        "IRCLEncoder": "ircl.network",
        "PrototypeAttention": "ircl.prototype_attention",
        "PrototypeTransformer": "ircl.prototype_attention",
        "ContrastiveNetwork": "sscl",
        "PatchEncoder": "sscl",
        "SSCLClassifier": "sscl",
        "load_imagenet_weights": "sscl",
        "GliomaInputs": "glioma.network",
        "GliomaNetwork": "glioma.network",
        "GliomaOutput": "glioma.network",
        "FeaturesTraining": "glioma.classifier",
        "GliomaClassifier": "glioma.classifier",
        "GliomaFeatures": "glioma.classifier",
        "PopulationTraining": "glioma.classifier",
        "ImageEncoder": "glioma.image_encoder",
        "GeometricEncoder": "glioma.geometric_encoder",
        "BrainEncoder": "glioma.brain_encoder",
        "edge_attention": "glioma.brain_encoder",
        "EdgeContrast": "glioma.brain_features",
        "EdgeEncoder": "glioma.brain_features",
        "NodeAutoencoder": "glioma.brain_features",
        "TractPretraining": "glioma.brain_features",
        "GraphAttentionNetwork": "glioma.graph_attention",
        "FrozenEmbeddings": "glioma.embeddings",
    },
)
