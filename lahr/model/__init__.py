"""The network, in torch alone: no files, no logging, no Ray."""

from lahr.model.lahr import LAHR, Output
from lahr.model.own import Own, build_model

__all__ = ["LAHR", "Output", "Own", "build_model"]
