"""The methods that ``banel negative`` compares: each is what it changes of the options of ``learn``.

A new one, such as pseudo-counts, random network distillation (RND) or a proxy classifier, is a
:class:`~banel_pyro.negative.Filter` whose score is its bonus, and a line here: everything else (budget, oracle, factor,
distillation) is then the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from banel_pyro.negative.filters import Filter, RandomFilter
from banel_pyro.negative.signal import HeldOut

__all__ = ["METHODS", "with_method"]

METHODS: Mapping[str, Mapping[str, Any]] = {
    "banel": {},
    # rejects as many, but a random set: what distillation gains by itself; no threshold fits a score without a meaning
    "random-filter": {"filter": RandomFilter(), "log_tau": None},
    "random": {"filter": None, "distillation": None},
}
"""Name of a method: the options of :func:`~banel_pyro.negative.learn` that it changes."""


def with_method(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of a method.

    Args:
        options: of :func:`~banel_pyro.negative.learn`.
        name: of the method.
    """
    found = {**options, **METHODS[name]}
    filter_, held_out = found.get("filter"), found.get("held_out")
    epochless = isinstance(filter_, Filter) and type(filter_).stages is Filter.stages
    if name != "banel" and isinstance(held_out, HeldOut) and held_out.chooses and (filter_ is None or epochless):
        found["held_out"] = replace(held_out, epochs=(), factors=())  # there is nothing to choose among
    return found
