"""The numbers of a sweep: what its run folders say, pooled over the seeds at each λ. It only reads files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from banel_pyro.report import COMMAND, Run, lam_label
from banel_pyro.report.numbers import TERMS, RunNumbers, notes, readable, run_numbers
from banel_pyro.report.pooled import Scores, paired
from banel_pyro.report.recommend import SCORE_NAMES, Candidate, Recommendation, mean_score, recommend
from banel_pyro.run import RunFolder
from banel_pyro.sweep.extra import read_extra, score_of
from banel_pyro.sweep.plan import Sweep, run_name
from banel_pyro.terms import Estimate

__all__ = ["SHOWN", "TOLERANCE", "Group", "SweepReport", "read_sweep"]

SHOWN = 6
"""λ of which the page has pictures, at most."""

TOLERANCE = 0.02
"""Nats per latent dimension within which an entropy meets its target."""


@dataclass(frozen=True)
class Group:
    """The runs at one λ, by seed.

    Args:
        label: what a reader knows it as.
        name: of its run folders, without the seed.
        lam: λ; where it moved, that at the end, averaged over seeds; NaN for several λ.
        numbers: of each run.
        extra: what the sweep keeps of each run; see :func:`~banel_pyro.sweep.extra.read_extra`.
        shown: the run of the first seed with its draws, for pictures.
        seconds: of each run.
        rollbacks: of the runs that were rolled back from a fault, how often.
    """

    label: str
    name: str
    lam: float
    numbers: Mapping[int, RunNumbers]
    extra: Mapping[int, xr.Dataset]
    shown: Run | None = None
    seconds: Mapping[int, float] = field(default_factory=dict)
    rollbacks: Mapping[int, int] = field(default_factory=dict)

    def scores(self, term: str) -> Scores:
        """A term by seed: row by row, where rows have one of their own.

        Args:
            term: one of :data:`~banel_pyro.report.numbers.TERMS`, or ``"predictive"``.
        """
        if term == "predictive":
            return {seed: extra["log_predictive"].to_numpy() for seed, extra in self.extra.items()}
        return {seed: run.per_datum.get(term, run.values[term]) for seed, run in self.numbers.items()}

    def value(self, term: str) -> Estimate:
        """A term pooled over seeds and rows."""
        return mean_score(self.scores(term))

    @cached_property
    def checks(self) -> dict[int, dict[str, Any]]:
        """What the checks found, by seed; see :func:`~banel_pyro.sweep.checks.checks_of`."""
        return {seed: json.loads(extra.attrs.get("checks", "{}")) for seed, extra in self.extra.items()}

    def known(self, name: str) -> list[float]:
        """A number that the checks found in each run, where they could.

        Args:
            name: ``"k_hat"``, ``"k_hat_threshold"`` or ``"coverage"``.
        """
        return [found[name] for found in self.checks.values() if found.get(name) is not None]

    @property
    def failed(self) -> tuple[str, ...]:
        """What checks have against it: those that are red in any run, with the seeds and what the first one found."""
        red: dict[str, tuple[str, list[int]]] = {}
        for seed, found in self.checks.items():
            for check in found.get("checks", []):
                if check["verdict"] == "red":
                    red.setdefault(check["name"], (check["found"], []))[1].append(seed)
        return tuple(f"{name}, seed {', '.join(map(str, seeds))}: {what}" for name, (what, seeds) in red.items())

    @property
    def verdict(self) -> str:
        """The worst verdict of its runs."""
        found = [found.get("verdict", "amber") for found in self.checks.values()]
        return str(max(found, key=("green", "amber", "red").index))


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found.

    Args:
        sweep: what was to be done.
        groups: the runs at each λ, by λ.
        unfinished: folders of runs that have not ended.
        command: the command lines that made it.
        configs: of the runs, by folder.
    """

    sweep: Sweep
    groups: tuple[Group, ...]
    unfinished: tuple[str, ...] = ()
    command: str | None = None
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the pair."""
        return str(self.sweep.about.get("name") or self.sweep.pair)

    @property
    def score(self) -> str:
        """What λ is chosen by."""
        return score_of(self.sweep)

    @property
    def terms(self) -> dict[str, str]:
        """The numbers that all runs have, and what a reader knows them as."""
        predictive = all("log_predictive" in extra for group in self.groups for extra in group.extra.values())
        return TERMS | ({"predictive": SCORE_NAMES["predictive"]} if predictive else {})

    @property
    def reference(self) -> Group:
        """What the others are compared with: λ = 0, or what is nearest to it."""
        return min(self.groups, key=lambda g: math.inf if math.isnan(g.lam) else abs(g.lam))

    @cached_property
    def recommendation(self) -> Recommendation:
        """Which λ to take, and why."""
        run = next(iter(self.groups[0].numbers.values()))
        return recommend(
            [Candidate(g.label, g.lam, g.scores(self.score), g.failed, g.value("entropy")) for g in self.groups],
            score=self.score, target=self.sweep.target,
            tolerance=TOLERANCE * float(self.sweep.about.get("dimensions", 1.0)),
            shared_by=1 if run.per_datum else run.num_rows or 1,
        )  # fmt: skip

    def change(self, group: Group, term: str) -> Estimate:
        """A term of some runs minus that of the reference, paired."""
        found = paired(group.scores(term), self.reference.scores(term))
        return Estimate(math.nan, math.nan) if found is None or group is self.reference else found

    def text_table(self) -> pd.DataFrame:
        """A row per λ to read."""
        rows = {}
        for group in self.groups:
            row = {name: readable(group.value(term)) for term, name in self.terms.items()}
            row[f"{self._short} − that at {self.reference.label}"] = readable(self.change(group, self.score), plus=True)
            row |= {"k-hat": _worst(group, "k_hat", max), "coverage": _worst(group, "coverage", min)}
            rows[group.label] = row | {"checks": group.verdict, "seeds": str(len(group.numbers))}
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def _short(self) -> str:
        return {"elbo": "ELBO", "iwae": "IWAE", "predictive": "predictive density"}[self.score]

    def notes(self) -> list[str]:
        """What a reader of the table has to know, a sentence each."""
        first = next(iter(self.reference.numbers.values()))
        over = "seeds and data points" if first.per_datum else "seeds"
        found = [
            f"In {first.unit}, on {first.rows}, from {first.draws} draws of each run; mean over seeds ± one standard "
            f"error over {over}. Differences are paired: seed by seed{', row by row' if first.per_datum else ''}."
        ]
        if any(group.known("coverage") for group in self.groups):
            found.append(
                "k-hat and coverage are those of the worst seed: the share of the corrected posterior that central "
                "95 % intervals of the guide hold."
            )
        if "predictive" in self.terms:
            found.append("The predictive density is that of the held-out rows, which no run was trained on.")
        if self.score == "elbo" and not self.sweep.about.get("learns"):
            found.append(
                "The model learns nothing, so that the evidence is the same at every λ, and the ELBO is highest where "
                "the guide is closest to the posterior."
            )
        if back := [
            f"{group.label}, seed {seed}: {count}" for group in self.groups for seed, count in group.rollbacks.items()
        ]:
            found.append(
                "Rollbacks from a fault, after each of which a run went on more carefully than the others: "
                f"{'; '.join(back)}."
            )
        return [*found, notes({"": first})[-1]]

    def to_json(self) -> dict[str, Any]:
        """The numbers of the page as JSON, with null for what is not finite."""
        groups = []
        for g in self.groups:
            values = {term: g.value(term) for term in self.terms}
            changes = {f"{term}_difference": self.change(g, term) for term in ("elbo", "iwae", self.score)}
            pairs = {k: v for n, e in (values | changes).items() for k, v in ((n, e.value), (f"{n}_stderr", e.stderr))}
            numbers = {"lam": g.lam, **pairs}
            row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            groups.append({"label": g.label, **row, "seeds": list(g.numbers), "verdict": g.verdict, "failed": g.failed})
        found = self.recommendation
        chosen = {"label": found.label, "reason": found.reason, "cautions": found.cautions, "score": self.score}
        return {"name": self.name, "target": self.sweep.target, "recommendation": chosen, "runs": groups}


def _worst(group: Group, name: str, pick: Callable[[list[float]], float]) -> str:
    found = group.known(name)
    return f"{pick(found):.2f}" if found else "–"


def read_sweep(folder: Path) -> SweepReport:
    """What a sweep has found so far, from the files of its runs.

    Args:
        folder: of the sweep.

    Raises:
        ValueError: if it holds no sweep, no run of it has ended, or a run is of other data.
    """
    sweep = Sweep.read(folder)
    found = {path.parent.name: RunFolder(path.parent) for path in sorted(folder.glob("*,seed=*/config.json"))}
    ended = [name for name, run in found.items() if (run.path / "posterior.nc").exists()]
    if not ended:
        raise ValueError(f"no run in '{folder}' has ended, so there is nothing to show. Go on with --resume.")
    configs = {name: found[name].read_config() for name in ended}
    for name, config in configs.items():
        if (config["name"], config["data"]) != (sweep.about["name"], sweep.about["data"]):
            raise ValueError(
                f"the run '{name}' in '{folder}' is of another pair or other data ({config['name']!r}, "
                f"{config['data'][:12]}) than the sweep ({sweep.about['name']!r}, {sweep.about['data'][:12]}): take it "
                "out of the folder."
            )
    by_name: dict[str, list[int]] = {}
    for name in ended:
        head, _, seed = name.rpartition(",seed=")
        by_name.setdefault(head, []).append(int(seed))
    keep = _shown(sorted(by_name, key=lambda head: _order(configs[run_name(head, by_name[head][0])])))
    groups = [_group(folder, head, sorted(seeds), configs, keep=head in keep) for head, seeds in by_name.items()]
    command = folder / COMMAND
    return SweepReport(
        sweep,
        tuple(sorted(groups, key=lambda group: (math.isnan(group.lam), group.lam))),
        tuple(name for name in found if name not in ended),
        command.read_text(encoding="utf-8").strip() if command.exists() else None,
        configs,
    )


def _order(config: Mapping[str, Any]) -> float:
    value = config["lam"].get("value")
    return float(value) if isinstance(value, int | float) else math.inf


def _shown(names: Sequence[str]) -> set[str]:
    """Some of the names, from the first to the last, as many as there are pictures of."""
    count = min(SHOWN, len(names))
    return {names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)}


def _group(
    folder: Path, head: str, seeds: Sequence[int], configs: Mapping[str, dict[str, Any]], *, keep: bool
) -> Group:
    numbers, extra, seconds, rollbacks, lams, shown = {}, {}, {}, {}, [], None
    config = configs[run_name(head, seeds[0])]
    label = lam_label(config["lam"])
    for seed in seeds:
        run = RunFolder(folder / run_name(head, seed))
        idata, history = run.read_posterior(), run.read_history()
        numbers[seed], extra[seed] = run_numbers(idata), read_extra(run.path)
        seconds[seed] = float(history["seconds"].iloc[-1]) if len(history) else math.nan
        if back := int(history["rollbacks"].max()) if "rollbacks" in history and len(history) else 0:
            rollbacks[seed] = back
        lams.append(_order(config) if "value" in config["lam"] else float(history["lam"].iloc[-1]))
        if keep and shown is None:
            shown = Run(label, config, history, idata)
    lam = sum(lams) / len(lams)
    return Group(label, head, lam if math.isfinite(lam) else math.nan, numbers, extra, shown, seconds, rollbacks)
