"""What a sweep is to do: which runs, how each is made, and what it is judged by. Kept as ``sweep.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from banel_pyro.checkpoint import write_whole
from banel_pyro.checks import number, seed_number
from banel_pyro.pair import load_pair
from banel_pyro.reading import check_fields, read_json
from banel_pyro.recipe import Lam, Recipe
from banel_pyro.training.control import Controller
from banel_pyro.training.rollback import Rollback

__all__ = ["FILE", "SCORES", "Sweep", "decoded", "encoded", "refuse_others", "run_name"]

FILE = "sweep.json"
"""The file beside the run folders that says what they are."""

SCORES = ("elbo", "predictive", "iwae")
"""What λ may be chosen by: never by the penalised loss."""


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Whether a value is of one of these types, and no bool, which is an int."""
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool)


def _all(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(_is(kind), value))


def _span(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is(int, float), value)))


_NOTHING = type(None)
_FIELDS = {
    "pair": (_is(str), "a text"),
    "lams": (_is(dict), "a mapping"),
    "seeds": (_all(int), "a list of whole numbers"),
    "trials": (_is(int), "a whole number"),
    "lam_range": (_span, "two numbers, or null"),
    "score": (_is(str, _NOTHING), "a text, or null"),
    "target": (_is(int, float, _NOTHING), "a number, or null"),
    "draws": (_is(int), "a whole number"),
    "batch_size": (_is(str, _NOTHING), "a text, or null"),
    "alpha": (_is(int, float, _NOTHING), "a number, or null"),
    "options": (_is(dict), "a mapping"),
    "about": (_is(dict), "a mapping"),
}


@dataclass(frozen=True)
class Sweep:
    """What a sweep is to do.

    Args:
        pair: ``module:function``.
        lams: of a grid, by name; empty in a search.
        seeds: of the runs at each λ.
        trials: of a search: how many λ it tries.
        lam_range: of a search: the smallest and the largest λ.
        score: one of :data:`SCORES`, or None for what suits the pair.
        target: entropy to reach, in nats per data point.
        draws: from each posterior.
        batch_size: of the recipe.
        alpha: of the recipe.
        options: of the recipe; what JSON can hold.
        about: what is known of the pair: ``name``, ``data`` (a hash), whether its model ``learns``, has
            ``held_out`` rows and only ``local`` latents, and their ``dimensions`` per data point.
    """

    pair: str
    lams: Mapping[str, Lam]
    seeds: tuple[int, ...]
    trials: int = 0
    lam_range: tuple[float, float] | None = None
    score: str | None = None
    target: float | None = None
    draws: int = 500
    batch_size: str | None = None
    alpha: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: expected one or more, each once, such as 0,1,2.")
        for seed in self.seeds:
            seed_number(seed)
        if self.score is not None and self.score not in SCORES:
            raise ValueError(
                f"objective={self.score!r}: expected one of {', '.join(SCORES)}. The penalised loss is none of them: "
                "it is another function at every λ."
            )
        if self.target is not None:
            number("target entropy", self.target)
        if bool(self.trials) != (self.lam_range is not None):
            raise ValueError(
                f"trials={self.trials}, lam range={self.lam_range}: a search needs both, such as --trials 12 "
                "--lam-range=-1,0.8."
            )
        if self.lam_range is not None and not self.lam_range[0] < self.lam_range[1]:
            raise ValueError(f"lam range={self.lam_range}: expected the smaller λ first, such as -1,0.8.")
        if bool(self.lams) == bool(self.trials):
            raise ValueError("expected either a grid of λ, such as --lam 0,0.4, or a search, with --trials.")

    @property
    def recipe(self) -> Recipe:
        """How each run is made. A run that rolls back keeps λ, by which it is compared."""
        kept = {"on_fault": Rollback(lam_factor=1.0)} if self.options.get("on_fault") == "rollback" else {}
        return Recipe(load_pair(self.pair), self.batch_size, self.alpha, {**self.options, **kept})

    @property
    def runs(self) -> list[tuple[str, Lam, int]]:
        """Name, λ and seed of each run of a grid: all λ of the first seed come first."""
        return [(name, lam, seed) for seed in self.seeds for name, lam in self.lams.items()]

    @property
    def settings(self) -> dict[str, Any]:
        """What all its runs share, so that it has to be the same where the sweep goes on."""
        shared = ("pair", "draws", "batch_size", "alpha", "options")
        found = {name: value for name, value in self.to_json().items() if name in shared}
        found |= {"name": self.about.get("name"), "data": self.about.get("data")}
        found["kind"] = "search" if self.trials else "grid"
        if self.trials:
            found |= {"objective": self.score, "target": self.target, "seeds": list(self.seeds)}
        return found

    def joined(self, other: Sweep) -> Sweep:
        """This sweep with the λ and seeds of an earlier one in the same folder as well."""
        seeds = tuple(dict.fromkeys((*other.seeds, *self.seeds)))
        return replace(self, lams={**other.lams, **self.lams}, seeds=seeds)

    def with_about(self, about: Mapping[str, Any]) -> Sweep:
        """This sweep with what is known of its pair."""
        return replace(self, about=dict(about))

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        lams = {name: encoded(lam) for name, lam in self.lams.items()}
        content: dict[str, Any] = json.loads(json.dumps(vars(self) | {"lams": lams}))
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Sweep:
        """From what :meth:`to_json` returned.

        Raises:
            TypeError, ValueError: for anything else.
        """
        lams = {name: decoded(lam) for name, lam in content["lams"].items()}
        span = content["lam_range"]
        changed = {"lams": lams, "seeds": tuple(content["seeds"]), "lam_range": None if span is None else tuple(span)}
        return Sweep(**{**content, **changed})

    def write(self, folder: Path) -> None:
        """Write ``sweep.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=2) + "\n"
        write_whole(folder / FILE, lambda file: file.write_text(text, encoding="utf-8"))

    @staticmethod
    def read(folder: Path) -> Sweep:
        """The sweep of a folder.

        Raises:
            ValueError: if it holds none, or its file is damaged.
        """
        try:
            content = read_json(folder / FILE)
        except FileNotFoundError as error:
            raise ValueError(f"'{folder}' holds no sweep: it has no {FILE}. Give the --out of banel sweep.") from error
        check_fields(f"'{folder / FILE}'", content, _FIELDS)
        try:
            return Sweep.from_json(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{folder / FILE}' is damaged ({error}): start again in a new folder.") from error


def run_name(name: str, seed: int) -> str:
    """The folder of a run."""
    return f"{name},seed={seed}"


def encoded(lam: Lam) -> Any:
    """λ as JSON can hold it."""
    return lam.config() if isinstance(lam, Controller) else lam


def decoded(lam: Any) -> Lam:
    """λ from what :func:`encoded` returned."""
    if isinstance(lam, Mapping):
        return Controller.from_config(lam) if isinstance(lam.get("class"), str) else dict(lam)
    return float(lam)


def refuse_others(where: str, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a sweep of another pair, other data or other settings.

    Args:
        where: the folder or the study, as an error names it.
        known: its settings.
        asked: those of the sweep that is to go on in it.

    Raises:
        ValueError: naming the first settings that differ.
    """
    keys: Sequence[str] = [key for key in {**asked, **known} if known.get(key) != asked.get(key)]
    if keys:
        told = "; ".join(f"{key}: {known.get(key)!r} there, {asked.get(key)!r} here" for key in keys)
        raise ValueError(f"{where} holds another sweep ({told}). Choose another one.")
