"""Entropy-shaped variational inference in Pyro.

Define a model and a guide, run SVI with :class:`BaNEL_ELBO`, look at the posterior in ArviZ.
"""

from importlib.metadata import version as _version

from banel_pyro.batches import Split
from banel_pyro.capture import CapturedSVI, CaptureError
from banel_pyro.diagnostics.spread import spread
from banel_pyro.entropy import guide_entropy
from banel_pyro.inference_data import to_arviz
from banel_pyro.objectives import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO
from banel_pyro.pair import Pair
from banel_pyro.run import FitResult
from banel_pyro.schedules import Constant, Cosine, Cyclical, Exponential, Join, Linear, Piecewise, Warmup
from banel_pyro.terms import Estimate, LossTerms
from banel_pyro.training.callbacks import CSVLogger, Event, Metric, TensorBoard
from banel_pyro.training.control import TargetEntropy, TargetRate, TargetSpread
from banel_pyro.training.explosion import ExplosionDetector, ExplosionError
from banel_pyro.training.faults import NonFiniteError
from banel_pyro.training.fit import fit
from banel_pyro.training.restarts import Restarts, restarts
from banel_pyro.training.rollback import Rollback, RolledBack
from banel_pyro.training.rules import Cusum, Patience, Plateau
from banel_pyro.training.stopping import CollapseDetector, CollapseError

__version__ = _version("banel_pyro")

__all__ = [
    "BaNEL_ELBO",
    "BaNEL_TraceEnum_ELBO",
    "BaNEL_TraceGraph_ELBO",
    "CSVLogger",
    "CaptureError",
    "CapturedSVI",
    "CollapseDetector",
    "CollapseError",
    "Constant",
    "Cosine",
    "Cusum",
    "Cyclical",
    "Estimate",
    "Event",
    "ExplosionDetector",
    "ExplosionError",
    "Exponential",
    "FitResult",
    "Join",
    "Linear",
    "LossTerms",
    "Metric",
    "NonFiniteError",
    "Pair",
    "Patience",
    "Piecewise",
    "Plateau",
    "Restarts",
    "Rollback",
    "RolledBack",
    "Split",
    "TargetEntropy",
    "TargetRate",
    "TargetSpread",
    "TensorBoard",
    "Warmup",
    "fit",
    "guide_entropy",
    "restarts",
    "spread",
    "to_arviz",
]
