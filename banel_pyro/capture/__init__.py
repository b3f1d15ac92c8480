"""A training step as one flat graph of tensor operations, compiled: Pyro runs once, when the graph is made.

:func:`banel_pyro.fit` captures by itself (``capture="auto"``); :class:`CapturedSVI` is for a loop of your own.
"""

from banel_pyro.capture.flat import CaptureError
from banel_pyro.capture.svi import CapturedSVI

__all__ = ["CaptureError", "CapturedSVI"]
