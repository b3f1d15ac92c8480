"""A training step as one flat graph of tensor operations, compiled: Pyro runs once, when the graph is made."""

from banel_pyro.capture.flat import CaptureError
from banel_pyro.capture.step import Captured

__all__ = ["CaptureError", "Captured"]
