"""Bayesian Negative Evidence Learning: steer a generator away from what has failed.

Lee, Amos and Fanti, "BaNEL: Exploration Posteriors for Generative Modeling Using Only Negative Rewards", 2025,
arXiv 2510.09596. It shares its name, and no mathematics, with :class:`banel_pyro.BaNEL_ELBO`.
"""

from banel_pyro.negative.adapters import DistributionGenerator, SiteGenerator
from banel_pyro.negative.distil import Distillation, Distilled, distil
from banel_pyro.negative.filters import Evidence, Filter, RandomFilter, RatioFilter
from banel_pyro.negative.generator import Generator, GeneratorDistribution, check_generator
from banel_pyro.negative.learn import Learned, learn
from banel_pyro.negative.ledger import BudgetError, Ledger
from banel_pyro.negative.oracle import Answers, Oracle, OracleError
from banel_pyro.negative.pairs import PairGenerator
from banel_pyro.negative.posterior import AcceptanceError, ExplorationPosterior
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.score import FailureLikelihood, LikelihoodRatio, RandomScore, Score
from banel_pyro.negative.signal import HeldOut, held_out_signal
from banel_pyro.negative.success import DrawnSuccesses, ListedSuccesses, SuccessRate, SuccessRates
from banel_pyro.negative.task import Task
from banel_pyro.negative.training import Training

__all__ = [
    "AcceptanceError",
    "Answers",
    "BudgetError",
    "Distillation",
    "Distilled",
    "DistributionGenerator",
    "DrawnSuccesses",
    "Evidence",
    "ExplorationPosterior",
    "FailureLikelihood",
    "Filter",
    "Generator",
    "GeneratorDistribution",
    "HeldOut",
    "Learned",
    "Ledger",
    "LikelihoodRatio",
    "ListedSuccesses",
    "Oracle",
    "OracleError",
    "PairGenerator",
    "RandomFilter",
    "RandomScore",
    "RatioFilter",
    "Region",
    "Regions",
    "Score",
    "SiteGenerator",
    "SuccessRate",
    "SuccessRates",
    "Task",
    "Training",
    "check_generator",
    "distil",
    "held_out_signal",
    "learn",
]
