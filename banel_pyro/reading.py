"""Files that others may have written: plain ones, of a size that was expected, and refused in words."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["MOST_TEXT", "check_fields", "one_of", "plain_file", "read_json", "read_text"]

MOST_TEXT = 2**26
"""Bytes of a text, such as a configuration, above which it is not read: 64 MiB."""

Field = tuple[Callable[[Any], bool], str]
"""Whether a value is what it should be, and in words what that is."""


def plain_file(file: Path, *, most: int | None = None) -> Path:
    """A file as it is, if there is nothing to fear from opening it.

    A link may lead out of the folder that was given, to what is not for a report; a pipe or a device never ends.

    Args:
        file: the file.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a link, a folder, a pipe or a device, or a file that is too large.
    """
    found = file.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise ValueError(
            f"'{file}' is a link, which may lead anywhere: expected a file in its place. Copy what it points to."
        )
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"'{file}' is a folder, a pipe or a device: expected a file. Take it away.")
    if most is not None and found.st_size > most:
        raise ValueError(
            f"'{file}' has {found.st_size:,} bytes, expected at most {most:,}: it is not what its name says. Take it "
            "away."
        )
    return file


def read_text(file: Path, *, most: int = MOST_TEXT) -> str:
    """The text of a plain file in UTF-8.

    Args:
        file: the file.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not such a text.
    """
    try:
        return plain_file(file, most=most).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is no text in UTF-8 ({error}): the file is damaged.") from error


def read_json(file: Path, *, most: int = MOST_TEXT) -> Any:
    """What a plain JSON file holds. NaN and infinity, which are no JSON, are refused.

    Args:
        file: the file.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON.
    """
    text = read_text(file, most=most)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is not JSON ({_one_line(error)}): the file is damaged.") from error


def check_fields(what: str, content: Any, fields: Mapping[str, Field], remedy: str = "The file is damaged.") -> None:
    """Refuse a mapping that lacks a field, or has something else in it than expected.

    Args:
        what: the name of the mapping in the message, such as its file.
        content: the mapping.
        fields: by name, what its value has to be. Others may be there too.
        remedy: how the message ends.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} holds a {type(content).__name__}: expected a mapping. {remedy}".strip())
    for name, (holds, expected) in fields.items():
        if name not in content:
            raise ValueError(f"{what} has no '{name}': expected {expected}. {remedy}".strip())
        if not holds(content[name]):
            shown = repr(content[name])
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise ValueError(f"{what} has {name}={shown}: expected {expected}. {remedy}".strip())


def one_of(*allowed: Any) -> Field:
    """A field that holds one of some values, and not merely one that is equal, as True is to 1."""
    return (
        lambda value: any(type(value) is type(item) and value == item for item in allowed),
        " or ".join(map(repr, allowed)),
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is no JSON")


def _one_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:100]
