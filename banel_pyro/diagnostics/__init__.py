"""Diagnostics: functions of ArviZ objects and of trained pairs."""

from banel_pyro.diagnostics.calibration import Calibration, calibrate
from banel_pyro.diagnostics.decode import latent_traversal, prior_samples
from banel_pyro.diagnostics.latent import kl_per_dimension
from banel_pyro.diagnostics.spread import active_units, spread

__all__ = [
    "Calibration",
    "active_units",
    "calibrate",
    "kl_per_dimension",
    "latent_traversal",
    "prior_samples",
    "spread",
]
