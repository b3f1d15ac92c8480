"""Checkpoints: the last two states of a run, each on the disk whole or not at all, and checked when it is read.

A state is a file of torch's: a zip archive whose every part has a checksum. It is written aside, brought to the disk,
and renamed; the one before it is kept. Nothing in it is code, and reading it runs none: of what a pickle may name,
torch's ``weights_only=True`` allows more than a state needs, such as a ``bytearray`` of any size.
"""

from __future__ import annotations

import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from banel_pyro.reading import plain_file
from banel_pyro.states import check_size
from banel_pyro.training.parameters import safe_constraints

__all__ = ["BEFORE", "NEWEST", "has_checkpoint", "read_checkpoint", "read_state", "write_checkpoint", "write_whole"]

_log = logging.getLogger("banel_pyro")

NEWEST, BEFORE = "state.pt", "state.before.pt"
"""Files of the last state and of the one before it."""


class _DamagedError(ValueError):
    """A file that cannot be read as a state, in words."""


def write_whole(file: Path, write: Callable[[Path], Any], *, keep: Path | None = None) -> None:
    """Write a file so that whatever stops the program or the machine leaves the old one or the new one.

    Args:
        file: the file.
        write: writes it to the path that it is given.
        keep: where the old one goes, if it is to be kept.
    """
    aside = file.with_name(f".{file.name}.partial")
    aside.unlink(missing_ok=True)  # it might be a link
    try:
        write(aside)
        _sync(aside)  # on the disk before it gets its name
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(aside, file)
        _sync(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a state, damaged or not."""
    return any((folder / name).exists() for name in (NEWEST, BEFORE))


def write_checkpoint(folder: Path, state: Mapping[str, Any], version: int) -> None:
    """Write a state, and keep the one before it.

    Args:
        folder: the run folder.
        state: tensors, numbers, texts and containers of them.
        version: of the format.

    Raises:
        OSError: if the disk is full, and the like; the last state is as it was.
    """
    content = {"format": version, **state}
    # a damaged one must not take the place of the good one before it
    keep = folder / BEFORE if (folder / NEWEST).exists() and _damage(folder / NEWEST) is None else None
    write_whole(folder / NEWEST, lambda file: torch.save(content, file), keep=keep)


def read_checkpoint(
    folder: Path, version: int, check: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """The last state that is not damaged, with a warning that names a newer one that is.

    Args:
        folder: the run folder.
        version: of the format that is wanted.
        check: raises a ValueError for a state of that format that is damaged.

    Raises:
        ValueError: if there is none, or it is of another format.
    """
    damaged: list[_DamagedError] = []
    for file in (folder / NEWEST, folder / BEFORE):
        try:
            state = read_state(file, lambda found: check(found) if check and found.get("format") == version else None)
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            damaged.append(error)
            continue
        if state.get("format") != version:
            raise ValueError(
                f"'{file}' is a state of format {state.get('format')!r}, this version reads format {version}."
            )
        if damaged or file.name == BEFORE:
            why = damaged[0] if damaged else f"'{folder / NEWEST}' is missing: its writing was cut short."
            _log.warning("%s The run goes on from the state before it, of step %s.", why, state.get("step"))
        return state
    if damaged:
        raise damaged[0]
    raise ValueError(f"'{folder}' has no {NEWEST}: the run stopped before its first checkpoint.")


def read_state(file: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A state, all of its checksums looked at before anything is made of it.

    Args:
        file: as torch writes it.
        check: raises a ValueError for one that is damaged.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or holds code.
    """
    try:
        damage = _damage(file)
        if damage is not None:
            raise zipfile.BadZipFile(damage)
        with torch.serialization.safe_globals(list(safe_constraints())):
            state = torch.load(file, weights_only=True, map_location="cpu")
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
        check_size(state, _pickled(file))
        check(state)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds for a damaged or hostile file
        line = str(error).strip().partition("\n")[0][:200]
        raise _DamagedError(
            f"'{file}' cannot be read as a state ({type(error).__name__}: {line}): the file is damaged."
        ) from error
    return state


def _pickled(file: Path) -> int:
    """Bytes of the one pickle of an archive, which has all but the tensors."""
    with zipfile.ZipFile(file) as archive:
        return sum(part.file_size for part in archive.infolist() if part.filename.endswith("/data.pkl"))


def _damage(file: Path) -> str | None:
    """What is wrong with an archive, its parts, their checksums, or what the pickle in it names; None if nothing is."""
    try:
        with zipfile.ZipFile(plain_file(file)) as archive:
            wrong = _wrong_part(archive)
            bad = None if wrong else archive.testzip()
            if wrong or bad:
                return wrong or f"the checksum of {bad} is wrong"
            return _foreign_name(next(archive.read(n) for n in archive.namelist() if n.endswith("/data.pkl")))
    except FileNotFoundError:
        raise
    except Exception as error:
        return str(error).strip() or type(error).__name__


def _wrong_part(archive: zipfile.ZipFile) -> str | None:
    """What is wrong with the parts of an archive, by what it says of them."""
    for part in archive.infolist():
        if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
            return "it is compressed, as torch's files never are"
        if part.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", part.filename):
            return f"its part '{part.filename}' would lie outside of it"
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    return None if len(pickles) == 1 else f"it has {len(pickles)} parts data.pkl, where a state has one"


_NAMED = frozenset(
    {
        "collections OrderedDict",
        "collections Counter",  # of schedulers
        "builtins set",
        "torch Size",
        "torch device",
        "torch.storage UntypedStorage",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.nn.parameter Parameter",
    }
)


def _foreign_name(content: bytes) -> str | None:
    """What a pickle names beyond tensors, numbers, containers and constraints, without running any of it."""
    ours = {f"{c.__module__} {c.__qualname__}" for c in safe_constraints()} | _NAMED
    for code, name, _ in pickletools.genops(content):
        if code.name not in ("GLOBAL", "STACK_GLOBAL", "INST"):
            continue
        module, _, item = str(name).partition(" ")
        a_dtype = module == "torch" and isinstance(getattr(torch, item, None), torch.dtype)
        a_storage = module == "torch" and item.endswith("Storage")
        if not (str(name) in ours or a_dtype or a_storage):
            return f"it names {name}, which is code and nothing that a state holds (UnpicklingError)"
    return None
