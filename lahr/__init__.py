"""LAHR: Mixture-of-Depths routing, latent reasoning iterations and product-key memory, each on or off."""

from lahr.config import ModelConfig, TrialConfig
from lahr.model import LAHR

__all__ = ["LAHR", "ModelConfig", "TrialConfig"]
