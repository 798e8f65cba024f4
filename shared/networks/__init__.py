"""Networks of the papers."""

from shared.networks.ircl import IRCLAutoencoder, IRCLClassifier, IRCLEncoder
from shared.networks.prototype_attention import PrototypeAttention, PrototypeTransformer

__all__ = ["IRCLAutoencoder", "IRCLClassifier", "IRCLEncoder", "PrototypeAttention", "PrototypeTransformer"]
