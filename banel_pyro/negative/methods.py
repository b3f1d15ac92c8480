"""The methods that ``banel negative`` compares: each is what it changes of the options of ``learn``.

A new one, such as pseudo-counts, random network distillation (RND) or a proxy classifier, is a
:class:`~banel_pyro.negative.Filter` whose score is its bonus, and a line here: everything else (budget, oracle, factor,
distillation) is then the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from banel_pyro.negative.filters import RandomFilter

__all__ = ["METHODS"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "banel": {},
    # rejects as many, but a random set: what distillation gains by itself; no threshold fits a score without a meaning
    "random-filter": {"filter": RandomFilter(), "log_tau": None},
    "random": {"filter": None, "distillation": None},
}
"""Name of a method: the options of :func:`~banel_pyro.negative.learn` that it changes."""
