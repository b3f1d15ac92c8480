"""Rejection regions as a file: tensors and numbers, checked before any of it is believed; never code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from banel_pyro.checkpoint import read_state, write_whole
from banel_pyro.checks import instance
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.score import FailureLikelihood, LikelihoodRatio, RandomScore, Score
from banel_pyro.negative.threshold import Cut
from banel_pyro.reading import Field, check_fields

__all__ = ["FORMAT", "check_packed", "filled", "packed", "read_regions", "unpacked", "write_regions"]

FORMAT = 1
"""Version of the file."""

OURS: tuple[type[Score], ...] = (LikelihoodRatio, FailureLikelihood, RandomScore)

_FIELDS: dict[str, Field] = {
    "format": (lambda value: value == FORMAT and type(value) is int, f"{FORMAT}, which this version reads"),
    "generators": (lambda value: _is_list(value) and all(map(_is_state, value)), "a list of tensors by name"),
    "regions": (lambda value: _is_list(value) and all(map(_is_mapping, value)), "a list of mappings"),
}
_REGION: dict[str, Field] = {
    "kind": (lambda value: isinstance(value, str), "the name of a score"),
    "log_tau": (lambda value: _is_number(value) and not math.isnan(value) and value < math.inf, "a threshold"),
    "config": (lambda value: _is_mapping(value) and all(map(_is_plain, value.values())), "numbers by name"),
    "parts": (lambda value: _is_mapping(value) and all(map(_is_count, value.values())), "generators by name"),
    "own": (lambda value: _is_state(value), "tensors by name"),
    "cut": (lambda value: value is None or _is_cut(value), "how the threshold was chosen, or None"),
}


# ---- writing -------------------------------------------------------------------------------------


def write_regions(regions: Regions, path: str | PathLike[str]) -> None:
    """As :meth:`Regions.save`. A generator that several scores have is in the file once."""
    content = {"format": FORMAT, **packed(regions)}
    write_whole(Path(path), lambda file: torch.save(content, file))


def packed(regions: Regions, others: Iterable[Generator] = ()) -> dict[str, Any]:
    """Regions, and generators beside them, as tensors and numbers: each generator once, first the others in order."""
    generators: list[Generator] = []
    for other in others:
        if not any(other is known for known in generators):
            generators.append(other)
    rows = [_row(place, region, generators) for place, region in enumerate(regions)]
    return {"generators": [_state(part) for part in generators], "regions": rows}


def _row(place: int, region: Region, generators: list[Generator]) -> dict[str, Any]:
    score, parts = region.score, region.score.parts()
    if not score.kind:
        raise ValueError(
            f"regions[{place}] has a {type(score).__name__} without a kind: expected a name, by which the file says "
            'what it holds. Write kind = "..." in the class.'
        )
    for part in parts.values():
        if not any(part is known for known in generators):
            generators.append(part)
    numbers = {name: next(i for i, known in enumerate(generators) if known is part) for name, part in parts.items()}
    own = {name: value for name, value in _state(score).items() if name.partition(".")[0] not in parts}
    cut = None if region.cut is None else asdict(region.cut)
    return {
        "kind": score.kind, "log_tau": region.log_tau, "config": score.config(), "parts": numbers, "own": own,
        "cut": cut,
    }  # fmt: skip


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module, each stored whole."""
    state = module.state_dict()
    for name, value in state.items():
        instance(f"{type(module).__name__}.state_dict()[{name!r}]", value, (Tensor,), "a tensor, which can be saved")
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


# ---- reading -------------------------------------------------------------------------------------


def read_regions(
    path: str | PathLike[str], generator: Generator | Mapping[str, Generator], scores: Iterable[type[Score]]
) -> Regions:
    """As :meth:`Regions.load`."""
    file = Path(path)
    skeletons = {"": generator} if isinstance(generator, Generator) else dict(generator)
    for name, skeleton in skeletons.items():
        instance(f"generator {name}".strip(), skeleton, (Generator,), "a Generator of the kind that was saved")
    return unpacked(read_state(file, _check), skeletons, scores, str(file), {})


def unpacked(
    state: Mapping[str, Any], skeletons: Mapping[str, Generator], scores: Iterable[type[Score]], file: str,
    shared: dict[int, Generator],
) -> Regions:  # fmt: skip
    """Regions from what :func:`packed` made; ``shared`` has the generators by number, and gets those that it lacks."""
    kinds = {kind.kind: kind for kind in (*OURS, *scores)}
    found = []
    for place, row in enumerate(state["regions"]):
        where = f"regions[{place}] of '{file}'"
        for name, number in row["parts"].items():
            if number not in shared:
                shared[number] = filled(_skeleton(where, name, skeletons), state["generators"][number], where, name)
        score = _score(where, row, kinds, {name: shared[number] for name, number in row["parts"].items()})
        found.append(Region(score, row["log_tau"], cut=None if row["cut"] is None else Cut(**row["cut"])))
    return Regions(found)


def check_packed(state: Any) -> None:
    """Refuse what :func:`packed` did not make.

    Raises:
        ValueError: naming what is missing or is something else.
    """
    check_fields("it", state, {name: field for name, field in _FIELDS.items() if name != "format"}, remedy="")
    for place, row in enumerate(state["regions"]):
        check_fields(f"its region {place}", row, _REGION, remedy="")
        if any(number >= len(state["generators"]) for number in row["parts"].values()):
            raise ValueError(f"its region {place} has a generator that is not there")


def _check(state: Any) -> None:
    check_fields("it", state, {"format": _FIELDS["format"]}, remedy="")
    check_packed(state)


def _skeleton(where: str, name: str, skeletons: Mapping[str, Generator]) -> Generator:
    if "" not in skeletons and name not in skeletons:
        raise ValueError(
            f"{where} has a generator '{name}', and generator= has only {sorted(skeletons)}: expected one for each."
        )
    return skeletons[name] if name in skeletons else skeletons[""]


def filled(skeleton: Generator, state: Mapping[str, Tensor], where: str, name: str) -> Generator:
    """A copy of the skeleton with the tensors of a file, if it has tensors of these names, shapes and dtypes."""
    twin = skeleton.copy()
    _fill(twin, state, f"generator '{name}' of {where}")
    return twin


def _fill(module: nn.Module, state: Mapping[str, Tensor], what: str, parts: Iterable[str] = ()) -> None:
    expected = {n: value for n, value in module.state_dict().items() if n.partition(".")[0] not in parts}
    there, here = _shapes(state), _shapes(expected)
    wrong = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if wrong:
        told = f"{there.get(wrong[0], 'nothing')} there, {here.get(wrong[0], 'nothing')} here"
        raise ValueError(
            f"{what} does not fit the {type(module).__name__} that was given ({wrong[0]}: {told}): expected the "
            "architecture and dtype that were saved. Build it as it was."
        )
    module.load_state_dict(dict(state), strict=not parts)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" for name, value in state.items()}


def _score(
    where: str, row: Mapping[str, Any], kinds: Mapping[str, type[Score]], parts: Mapping[str, Generator]
) -> Score:
    if row["kind"] not in kinds:
        raise ValueError(
            f"{where} is of a score {row['kind']!r}: expected one of {sorted(kinds)}. Give its class: "
            "Regions.load(path, generator, scores=[YourScore])."
        )
    kind = kinds[row["kind"]]
    try:
        score = kind(**parts, **row["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} does not say what a {kind.__name__} is made of ({error}): expected the arguments of its "
            "constructor. Give them from config() and parts()."
        ) from error
    _fill(score, row["own"], where, tuple(parts))
    return score


# ---- fields --------------------------------------------------------------------------------------


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_state(value: Any) -> bool:
    """Tensors by name, none of them NaN; a log-probability may be infinite."""
    return _is_mapping(value) and all(isinstance(t, Tensor) and not bool(torch.isnan(t).any()) for t in value.values())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _is_cut(value: Any) -> bool:
    numbers = {"log_tau": _is_number, "factor": _is_number, "candidates": _is_count}
    numbers |= {"acceptance": _is_number, "ties": _is_number}
    return isinstance(value, dict) and value.keys() == numbers.keys() and all(numbers[n](v) for n, v in value.items())
