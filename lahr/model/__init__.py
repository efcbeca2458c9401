"""The network, in torch alone: no files, no logging, no Ray."""

from lahr.model.lahr import LAHR, Output

__all__ = ["LAHR", "Output"]
