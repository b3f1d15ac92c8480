"""Many runs of one pair, at several λ and seeds, in an Optuna study that several processes and machines share."""

from banel_pyro.sweep.plan import Sweep
from banel_pyro.sweep.study import open_study
from banel_pyro.sweep.work import work

__all__ = ["Sweep", "open_study", "work"]
