"""Diagnostics: functions of ArviZ objects and of trained pairs."""

from banel_pyro.diagnostics.calibration import Calibration, calibrate
from banel_pyro.diagnostics.decode import latent_traversal, prior_samples
from banel_pyro.diagnostics.held_out import HeldOut, log_predictive
from banel_pyro.diagnostics.held_out_comparison import compare_held_out
from banel_pyro.diagnostics.importance import Importance, importance
from banel_pyro.diagnostics.latent import kl_per_dimension
from banel_pyro.diagnostics.latent_record import LatentReport
from banel_pyro.diagnostics.latent_report import latent_report
from banel_pyro.diagnostics.loo import Loo, loo
from banel_pyro.diagnostics.predictive_check import PredictiveCheck, posterior_predictive_check
from banel_pyro.diagnostics.psis import k_hat_threshold
from banel_pyro.diagnostics.reference import compare
from banel_pyro.diagnostics.references import nuts_reference, posteriordb_draws
from banel_pyro.diagnostics.spread import active_units, spread
from banel_pyro.diagnostics.trust import Trust, trust

__all__ = [
    "Calibration",
    "HeldOut",
    "Importance",
    "LatentReport",
    "Loo",
    "PredictiveCheck",
    "Trust",
    "active_units",
    "calibrate",
    "compare",
    "compare_held_out",
    "importance",
    "k_hat_threshold",
    "kl_per_dimension",
    "latent_report",
    "latent_traversal",
    "log_predictive",
    "loo",
    "nuts_reference",
    "posterior_predictive_check",
    "posteriordb_draws",
    "prior_samples",
    "spread",
    "trust",
]
