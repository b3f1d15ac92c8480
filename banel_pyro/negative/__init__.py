"""Bayesian Negative Evidence Learning: steer a generator away from what has failed.

Lee, Amos and Fanti, "BaNEL: Exploration Posteriors for Generative Modeling Using Only Negative Rewards", 2025,
arXiv 2510.09596. It shares its name, and no mathematics, with :class:`banel_pyro.BaNEL_ELBO`.
"""

from banel_pyro.negative.adapters import DistributionGenerator, SiteGenerator
from banel_pyro.negative.generator import Generator, GeneratorDistribution, check_generator
from banel_pyro.negative.pairs import PairGenerator

__all__ = [
    "DistributionGenerator",
    "Generator",
    "GeneratorDistribution",
    "PairGenerator",
    "SiteGenerator",
    "check_generator",
]
