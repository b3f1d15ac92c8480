"""Objectives: losses for Pyro's SVI, one short file each."""

from banel_pyro.objectives.banel import BaNEL_ELBO
from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound

__all__ = ["BaNEL_ELBO", "Bound", "Objective"]
