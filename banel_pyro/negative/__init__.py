"""Bayesian Negative Evidence Learning: steer a generator away from what has failed.

Lee, Amos and Fanti, "BaNEL: Exploration Posteriors for Generative Modeling Using Only Negative Rewards", 2025,
arXiv 2510.09596. It shares its name, and no mathematics, with :class:`banel_pyro.BaNEL_ELBO`.
"""

from banel_pyro.negative.generator import Generator, GeneratorDistribution, check_generator
from banel_pyro.negative.ledger import BudgetError, Ledger
from banel_pyro.negative.oracle import Answers, Oracle, OracleError
from banel_pyro.negative.posterior import AcceptanceError, ExplorationPosterior
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.score import FailureLikelihood, LikelihoodRatio, RandomScore, Score

__all__ = [
    "AcceptanceError",
    "Answers",
    "BudgetError",
    "ExplorationPosterior",
    "FailureLikelihood",
    "Generator",
    "GeneratorDistribution",
    "Ledger",
    "LikelihoodRatio",
    "Oracle",
    "OracleError",
    "RandomScore",
    "Region",
    "Regions",
    "Score",
    "check_generator",
]
