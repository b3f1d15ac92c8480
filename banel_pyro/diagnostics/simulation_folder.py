"""Where simulations are kept: a JSON line for each, written when it ends, beside what they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from banel_pyro.diagnostics.simulator import Record
from banel_pyro.folder import RunFolder
from banel_pyro.reading import Field, check_fields, plain_file, read_json

__all__ = ["SimulationFolder"]

CONFIG, LINES = "calibration.json", "simulations.jsonl"
MOST_LINES = 2**30
"""Bytes of simulations above which they are not read."""
FORMAT = 1
_MAY_DIFFER = {"versions", "created"}


@dataclass(frozen=True)
class SimulationFolder:
    """A folder with ``calibration.json`` and ``simulations.jsonl``.

    Each simulation is one line, appended whole and synced. What a kill leaves of a last line is cut off by whoever goes
    on; a line that is damaged elsewhere is refused.

    Args:
        path: the folder.
    """

    path: Path

    def config(self) -> dict[str, Any] | None:
        """What its simulations were made from, or None where there are none yet.

        Raises:
            ValueError: if it holds other files, or is damaged.
        """
        file = self.path / CONFIG
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir()))):
                raise ValueError(f"out='{self.path}' exists and holds no calibration: choose a new or an empty folder.")
            return None
        found = read_json(file)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"'{file}' is no configuration of format {FORMAT}, which this version reads.")
        check_fields(f"'{file}'", found, _FIELDS)
        return found

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that simulations cannot go into.

        Args:
            resume: whether there may be some.

        Raises:
            ValueError: if it holds other files, or a calibration although ``resume`` is False.
        """
        if self.config() is not None and not resume:
            raise ValueError(
                f"out='{self.path}' already holds a calibration: choose another folder, or pass resume=True to go on."
            )

    def open(self, config: Mapping[str, Any]) -> dict[int, Record]:
        """Claim the folder for these simulations, and read those that are there.

        Args:
            config: what they are made from.

        Raises:
            ValueError: if it holds a calibration of another pair or with other options.
        """
        new = {"format": FORMAT, **json.loads(json.dumps(config))}
        old = self.config()
        if old is None:
            self.path.mkdir(parents=True, exist_ok=True)
            RunFolder(self.path).write_json(CONFIG, new)
            return {}
        keys = sorted((old.keys() | new.keys()) - _MAY_DIFFER)
        different = [f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in keys if old.get(k) != new.get(k)]
        if different:
            raise ValueError(
                f"out='{self.path}' holds another calibration ({'; '.join(different)}). Choose another folder."
            )
        return self._read(new["sites"])

    def append(self, record: Record) -> None:
        """Write one simulation."""
        ranks = {name: rank.ravel().tolist() for name, rank in record.ranks.items()}
        line = {"simulation": record.number, "seconds": round(record.seconds, 3), "ranks": ranks}
        with _lines(self.path).open("ab") as file:
            file.write(json.dumps({**line, "failed": record.failed}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, sites: Mapping[str, Mapping[str, Any]]) -> dict[int, Record]:
        file = _lines(self.path)
        if not file.exists():
            return {}
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a kill came in the middle of a line
            with file.open("rb+") as torn:
                torn.truncate(len(whole))
        found: dict[int, Record] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = _record(json.loads(line), sites)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"'{file}', line {number} is no simulation ({type(error).__name__}: {error}): the file is damaged. "
                    "Delete the line, and its simulation is made again."
                ) from error
            found.setdefault(record.number, record)
        return found


def _lines(folder: Path) -> Path:
    """The file of simulations, which may not be there yet; a link would lead elsewhere."""
    file = folder / LINES
    with suppress(FileNotFoundError):
        plain_file(file, most=MOST_LINES)
    return file


def _is_sites(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(about, dict) and isinstance(about.get("shape"), list) for about in value.values()
    )


_FIELDS: dict[str, Field] = {
    "seed": ((lambda value: type(value) is int and 0 <= value < 2**32), "a whole number from 0 to 2³² − 1"),
    "sites": (_is_sites, "the latents with their shapes"),
}


def _is_foreign(file: Path) -> bool:
    """Whether a file is neither the run of an amortised guide, nor left by a write that was cut short."""
    return file.name != "fit" and not (file.name.startswith(".") and file.name.endswith(".partial"))


def _record(line: Any, sites: Mapping[str, Mapping[str, Any]]) -> Record:
    number, failed = line["simulation"], line["failed"]
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"simulation={number!r}")
    if not isinstance(failed, str | None):
        raise ValueError(f"failed={failed!r}")
    ranks = {}
    for name, about in sites.items() if failed is None else ():
        values = np.asarray(line["ranks"][name])
        if values.dtype.kind != "i":
            raise ValueError(f"ranks of '{name}' are no whole numbers")
        ranks[name] = values.astype(np.int64).reshape(about["shape"])
    return Record(number, float(line["seconds"]), ranks, failed)
