"""What a state of a run holds: checked as a whole before any of it is put back, so that nothing is put back in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from banel_pyro.reading import Field, check_fields

__all__ = ["check_moments", "check_size", "check_state"]

MOST_PARTS, MOST_PER_BYTE, DEEPEST = 1_000_000, 10, 50
"""Numbers, texts and containers of a state: in all, or for each byte of its pickle; and how many inside each other.

A list may hold another one twice, and that one too. The states that a run with rollbacks keeps share the rows of their
histories: what is shared counts wherever it is, since what looks at a state meets it there.
"""


def check_state(state: Any) -> None:
    """Refuse what is no state of a run.

    Args:
        state: as it was read.

    Raises:
        ValueError: naming what is missing or is something else.
    """
    check_fields("it", state, _FIELDS, remedy="")
    check_fields("it", state, {name: field for name, field in _OPTIONAL.items() if name in state}, remedy="")
    for name, value in state["params"].items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"it has a parameter '{name}' that is NaN or infinite")
    _check_names(state["params"], state["modules"], state["groups"], state["constraints"])
    for number, kept in enumerate(state.get("kept", [])):
        try:
            check_state(kept)
        except ValueError as error:
            raise ValueError(f"its kept state {number}, to roll back to, is none: {error}") from error


def _check_names(params: Any, modules: Any, groups: Any, constraints: Any) -> None:
    """Refuse parameters that are in one place and not in the other."""
    known, later = ({name for group in part for name in group} for part in (groups, groups[1:]))
    if params.keys() - known:
        raise ValueError(f"it has parameters {sorted(params.keys() - known)} that are in none of its groups")
    if not modules and known - params.keys():  # else a module may hold them
        raise ValueError(f"it lacks the parameters {sorted(known - params.keys())} of its groups")
    if later & params.keys() - constraints.keys():
        missing = sorted(later & params.keys() - constraints.keys())
        raise ValueError(f"it has no constraints of {missing}, which first appeared at a later step")


def check_size(state: Any, pickled: int = 0) -> None:
    """Refuse what unfolds without end: shared lists, and tensors of more numbers than are stored.

    Args:
        state: as it was read.
        pickled: bytes of the pickle that it was read from, without tensors.

    Raises:
        ValueError: saying what is too large.
    """
    most = max(MOST_PARTS, MOST_PER_BYTE * pickled)
    if _unfolded(state, 0, {})[0] > most:
        raise ValueError(f"it has more than {most:,} parts")


def _unfolded(item: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Parts of an item, as often as it holds them, and how many are inside each other; each container is seen once."""
    if isinstance(item, Tensor) and not _is_whole(item):
        raise ValueError(f"it has a tensor of shape {tuple(item.shape)} that is not stored whole")
    if not isinstance(item, Mapping | list | tuple | set):
        return 1, 0
    if id(item) not in known:
        parts, inside = 1, 0
        for part in (part for pair in item.items() for part in pair) if isinstance(item, Mapping) else item:
            if type(part) in _SINGLE:  # nearly all of a long history
                parts += 1
                continue
            if depth >= DEEPEST:
                raise ValueError(f"it has more than {DEEPEST} parts inside each other")
            more, deeper = _unfolded(part, depth + 1, known)
            parts, inside = parts + more, max(inside, deeper + 1)
        known[id(item)] = parts, inside
    if depth + known[id(item)][1] > DEEPEST:
        raise ValueError(f"it has more than {DEEPEST} parts inside each other")
    return known[id(item)]


def _is_whole(item: Tensor) -> bool:
    return item.layout == torch.strided and item.numel() * item.element_size() <= item.untyped_storage().nbytes()


_SINGLE = frozenset((float, str, int, bool, type(None)))


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Refuse running means of gradients in another shape than their parameter, which torch would broadcast.

    Args:
        optimizer: with a state that was put back.

    Raises:
        ValueError: naming the mean and both shapes.
    """
    for parameter, means in optimizer.state.items():
        for name in _MOMENTS & means.keys():
            if isinstance(means[name], Tensor) and means[name].shape != parameter.shape:
                shapes = f"{tuple(means[name].shape)}, its parameter {tuple(parameter.shape)}"
                raise ValueError(f"'{name}' has shape {shapes}")


_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "sum"}


# ---- fields --------------------------------------------------------------------------------------


def _mapping(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(k, str) and of(v) for k, v in value.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(of, value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_none_or(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or of(value)


def _is_row(value: Any) -> bool:
    return _mapping(_is_number)(value) and _is_count(value.get("step"))


def _is_recorded(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_list(_is_text)(value[0]) and type(value[1]) is bool


def _is_lam(value: Any) -> bool:
    return _is_number(value) or _is_tensor(value) or _mapping(lambda v: _is_number(v) or _is_tensor(v))(value)


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not {"state", "param_groups"} <= value.keys():
        return value is None
    groups = value["param_groups"]
    fine = isinstance(value["state"], dict) and all(isinstance(part, dict) for part in value["state"].values())
    return fine and all(isinstance(g, dict) and _is_numbers(g.get("params")) for g in groups)


def _is_numbers(value: Any) -> bool:
    return _is_list(_is_count)(value)


def _is_capture(value: Any) -> bool:
    kinds: dict[str, Any] = {
        "on": bool | None,
        "sizes": dict,
        "products": dict,
        "patience": int | float,
        "moved": object,
    }
    return isinstance(value, dict) and all(n in value and isinstance(value[n], kind) for n, kind in kinds.items())


def _is_terms(value: Any) -> bool:
    names = {"log_likelihood", "kl", "entropy", "lam", "penalty", "whole"}
    return isinstance(value, dict) and value.keys() == names and _is_lam(value["lam"])


def _is_rollback(value: Any) -> bool:
    kinds = {"step": _is_count, "why": _is_text, "back_to": _is_count, "lr": _is_number, "lam": _is_lam}
    return isinstance(value, dict) and value.keys() == kinds.keys() and all(kinds[n](v) for n, v in value.items())


def _is_slowed(value: Any) -> bool:
    return _is_list(_is_number)(value) and len(value) == 2 and all(0 < factor <= 1 for factor in value)


def _are_bounds(value: Any) -> bool:
    return _is_list(_is_number)(value) and len(value) == 2 and value[0] <= value[1] < 1


def _is_rng(value: Any) -> bool:
    if not isinstance(value, dict) or not {"torch", "cuda", "numpy", "random"} <= value.keys():
        return False
    numpy, python, generator = value["numpy"], value["random"], value["torch"]
    return (
        (_is_tensor(generator) and generator.dtype == torch.uint8 and generator.shape == torch.get_rng_state().shape)
        and _is_list(_is_tensor)(value["cuda"])
        and (isinstance(numpy, list) and len(numpy) == 5 and numpy[0] == "MT19937")
        and (_is_tensor(numpy[1]) and numpy[1].shape == (624,) and _is_count(numpy[2]) and numpy[2] <= 624)
        and (_is_count(numpy[3]) and _is_number(numpy[4]))
        and (isinstance(python, list) and len(python) == 3 and _is_list(_is_count)(python[1]))
        and (python[0] == 3 and len(python[1]) == 625 and python[1][-1] <= 624)
        and (python[2] is None or _is_number(python[2]))
    )


_FIELDS: dict[str, Field] = {
    "params": (_mapping(_is_tensor), "tensors by name"),
    "constraints": (_mapping(lambda value: True), "constraints by name"),
    "modules": (_mapping(_is_tensor), "tensors by name"),
    "owners": (_mapping(_is_text), "names by name"),
    "groups": (_is_list(_is_list(_is_text)), "lists of names"),
    "optimizer": (_is_optimizer, "the state of an optimiser, or None"),
    "kinds": (lambda value: _is_list(_is_text)(value) and len(value) == 2, "names of optimiser and scheduler"),
    "scheduler": (_is_none_or(_mapping(lambda value: True)), "the state of a scheduler, or None"),
    "rng": (_is_rng, "states of the generators"),
    "step": (_is_count, "a step, 0 or more"),
    "seconds": (lambda value: _is_number(value) and 0 <= value < math.inf, "seconds, 0 or more"),
    "history": (_is_list(_is_row), "rows of numbers, each with its step"),
    "meter": (_is_none_or(lambda value: _is_tensor(value) and value.dim() == 1), "a vector, or None"),
    "metered": (_is_count, "a number of steps"),
    "recorded": (_is_recorded, "names of densities, and whether the ELBO is whole"),
    "lam": (_is_lam, "a number, or numbers by site"),
    "next_lam": (_is_none_or(_is_number), "a number, or None"),
    "capture": (_is_none_or(_is_capture), "what capture decided, or None"),
    "last_terms": (_is_none_or(_is_terms), "the terms of the last log point, or None"),
    "stopped": (_is_none_or(_is_text), "why it was stopped, or None"),
}

_OPTIONAL: dict[str, Field] = {
    "rollbacks": (_is_list(_is_rollback), "the rollbacks that were made"),
    "slowed": (_is_slowed, "factors of learning rate and λ, more than 0 and at most 1"),
    "lam_bounds": (_is_none_or(_are_bounds), "the least and the largest λ, or None"),
    "kept": (
        _is_list(lambda value: isinstance(value, dict) and "kept" not in value),
        "states to roll back to, without others in them",
    ),
}
"""Of rollbacks, which not every run can have."""
