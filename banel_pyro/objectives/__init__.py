"""Objectives: losses for Pyro's SVI, one short file each."""

from banel_pyro.objectives.banel import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO
from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound
from banel_pyro.objectives.enum import EnumObjective
from banel_pyro.objectives.graph import GraphObjective
from banel_pyro.objectives.trace import TraceObjective

__all__ = [
    "BaNEL_ELBO",
    "BaNEL_TraceEnum_ELBO",
    "BaNEL_TraceGraph_ELBO",
    "Bound",
    "EnumObjective",
    "GraphObjective",
    "Objective",
    "TraceObjective",
]
