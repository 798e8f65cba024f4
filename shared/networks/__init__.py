"""Networks of the papers."""

from shared.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "ContrastiveNetwork": "sscl",
        "IRCLAutoencoder": "ircl",
        "IRCLClassifier": "ircl",
        "IRCLEncoder": "ircl",
        "PatchEncoder": "sscl",
        "PrototypeAttention": "prototype_attention",
        "PrototypeTransformer": "prototype_attention",
        "SSCLClassifier": "sscl",
        "load_imagenet_weights": "sscl",
    },
)
