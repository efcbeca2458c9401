"""LAHR: Mixture-of-Depths routing, latent reasoning iterations and product-key memory, each on or off."""

from lahr.config import TrialConfig
from lahr.model import LAHR
from lahr.model_config import ModelConfig

__all__ = ["LAHR", "ModelConfig", "TrialConfig"]
