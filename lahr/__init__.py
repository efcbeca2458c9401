"""LAHR: Mixture-of-Depths routing, latent reasoning iterations and a differentiable memory, each on or off."""

from lahr.config import TrialConfig
from lahr.model import LAHR
from lahr.model_config import ModelConfig
from lahr.trained import Trained, load

__all__ = ["LAHR", "ModelConfig", "Trained", "TrialConfig", "load"]
