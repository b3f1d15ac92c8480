"""Objectives: losses for Pyro's SVI, one short file each."""

from banel_pyro.objectives.banel import BaNEL_ELBO
from banel_pyro.objectives.base import Bound, Objective

__all__ = ["BaNEL_ELBO", "Bound", "Objective"]
