"""Networks of the papers."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "EdgeContrast": "brain_features",
        "EdgeEncoder": "brain_features",
        "NodeAutoencoder": "brain_features",
        "BrainEncoder": "brain_encoder",
        "ContrastiveNetwork": "sscl",
        "GeometricEncoder": "geometric_encoder",
        "GliomaNetwork": "glioma",
        "GraphAttentionNetwork": "graph_attention",
        "GliomaOutput": "glioma",
        "ImageEncoder": "image_encoder",
        "IRCLAutoencoder": "ircl",
        "IRCLClassifier": "ircl",
        "IRCLEncoder": "ircl",
        "PatchEncoder": "sscl",
        "PrototypeAttention": "prototype_attention",
        "PrototypeTransformer": "prototype_attention",
        "SSCLClassifier": "sscl",
        "edge_attention": "brain_encoder",
        "load_imagenet_weights": "sscl",
        "FeaturesTraining": "glioma_classifier",
        "GliomaClassifier": "glioma_classifier",
        "GliomaFeatures": "glioma_classifier",
        "PopulationTraining": "glioma_classifier",
        "TractPretraining": "brain_features",
    },
)
