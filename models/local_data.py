"""The files of data sets that are too large to embed: where they are, and how they are read.

Readers refuse a file that is not what it should be, with its name, what it holds, what was expected
and what to do about it. They hand out NumPy arrays as stored, and load nothing that can run code.
"""

import gzip
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

UNSIGNED_BYTES = 0x08
GZIP_START = b"\x1f\x8b"
CONTENTS = {1: "labels", 3: "images"}
"""What an idx file of so many dimensions holds."""


def data_folder(name: str) -> Path:
    """The folder of a data set that is too large to embed: `name` inside the folder `BANEL_DATA`.

    Args:
        name: Name of the data set's folder, such as "mnist".

    Returns:
        Path of the folder, which exists.

    Raises:
        FileNotFoundError: If the environment variable `BANEL_DATA` is not set, or its folder has no
            folder `name`.
    """
    root = os.environ.get("BANEL_DATA")
    if not root:
        raise FileNotFoundError(
            f"data set {name!r} is not embedded and BANEL_DATA is not set: put the files into a folder "
            f"{name!r} and set BANEL_DATA to the folder that holds it"
        )
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name!r} is missing: put its files into {str(folder)!r}, or set BANEL_DATA "
            f"(now {root!r}) to the folder that holds {name!r}"
        )
    return folder


def read_idx(path: Path, *, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Unsigned bytes from an idx file, the format of MNIST, compressed with gzip or not.

    The file is two zero bytes, a type code, the number of dimensions, each size as four bytes (big end
    first), then the values in C order.

    Args:
        path: The file without `.gz`; the compressed file beside it is read if it is there.
        shape: Sizes that are expected: (n,) for labels, (n, height, width) for images.

    Returns:
        Array of the given shape.

    Raises:
        FileNotFoundError: If there is neither file.
        ValueError: If the file is damaged, no idx file, or of another type or shape.

    Reference:
        LeCun, Cortes, Burges, "The MNIST database of handwritten digits" (1998).
    """
    path = _found(path, path.with_name(f"{path.name}.gz"))
    content = _unpacked(path, most=2 * math.prod(shape) + 2**20)
    sizes = _idx_sizes(path, content, len(shape))
    start, count = 4 + 4 * len(sizes), math.prod(sizes)
    if len(content) - start != count:
        raise ValueError(
            f"{str(path)!r} is {'cut short' if len(content) - start < count else 'too long'}: its header says "
            f"{_times(sizes)} = {count} values, the file holds {max(0, len(content) - start)}. Download it again"
        )
    if sizes != shape:
        raise ValueError(
            f"{str(path)!r} holds {_times(sizes)} {CONTENTS[len(shape)]}, expected {_times(shape)}. Put the original "
            "file of that name there; the parts for training and testing may have changed places"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=start).reshape(shape)


def read_bits(path: Path, *, columns: int) -> NDArray[np.uint8]:
    """The matrix of zeros and ones named "X" in a MATLAB file.

    Args:
        path: The `.mat` file, of MATLAB's version 7 or before.
        columns: Columns that are expected: pixels of an image.

    Returns:
        Array (rows, columns).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no MATLAB file, has no "X", or that is of another shape or holds other values.
    """
    content = _parsed(_found(path), "MATLAB", loadmat)
    if "X" not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise ValueError(f"{str(path)!r} has no variable 'X', only {names}: expected a matrix (images, {columns})")
    bits = np.asarray(content["X"])
    if bits.ndim != 2 or bits.shape[1] != columns:
        raise ValueError(
            f"'X' in {str(path)!r} has shape {bits.shape}, expected (images, {columns}): one row an image. Transpose "
            "it if it has one column an image"
        )
    wrong = bits[(bits != 0) & (bits != 1)]
    if wrong.size:
        raise ValueError(
            f"'X' in {str(path)!r} holds {wrong.size} values other than 0 and 1, the first {wrong[0]}: expected "
            "binarised images. Take the file of bits, not of grey values"
        )
    return bits.astype(np.uint8)


def read_columns(path: Path, *, names: tuple[str, ...]) -> list[NDArray[Any]]:
    """Columns of equal length from a JSON object, the format of posteriordb.

    Args:
        path: The `.json` file.
        names: Names of the columns.

    Returns:
        One array (n,) for each name, in their order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object with these columns of one length.
    """
    content = _parsed(_found(path), "JSON", lambda found: json.loads(found.read_text(encoding="utf-8")))
    lists = {k: len(v) for k, v in content.items() if isinstance(v, list)} if isinstance(content, dict) else {}
    if any(name not in lists for name in names) or len({lists[name] for name in names}) > 1:
        raise ValueError(f"{str(path)!r} has columns of lengths {lists}, expected {list(names)} of one length")
    return [np.asarray(content[name]) for name in names]


def _found(*paths: Path) -> Path:
    """The first of the files that exists."""
    for path in paths:
        if path.is_file():
            return path
    names = " or ".join(repr(path.name) for path in paths)
    raise FileNotFoundError(f"file {names} is missing: put it into {str(paths[0].parent)!r}")


def _parsed(path: Path, kind: str, parse: Callable[[Path], Any]) -> Any:
    """The parsed file; whatever a parser says about a damaged one becomes one message."""
    try:
        return parse(path)
    except Exception as error:  # scipy's parser raises many kinds, TypeError and zlib.error among them
        raise ValueError(
            f"{str(path)!r} is no intact {kind} file ({type(error).__name__}: {error}). Download it again"
        ) from error


def _unpacked(path: Path, *, most: int) -> bytes:
    """The bytes of a file, at most so many; unpacked if they are gzip's, whatever the file is called."""
    try:
        with path.open("rb") as file:
            packed = file.read(len(GZIP_START)) == GZIP_START
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r} is a damaged gzip file of {path.stat().st_size} bytes ({error}). Download it again"
        ) from error
    if len(content) > most:
        raise ValueError(f"{str(path)!r} has more than {most} bytes, much more than expected. Download it again")
    return content


def _idx_sizes(path: Path, content: bytes, dims: int) -> tuple[int, ...]:
    """The sizes in an idx header with `dims` dimensions of unsigned bytes."""
    magic, expected = content[:4], bytes((0, 0, UNSIGNED_BYTES, dims))
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(
            f"{str(path)!r} is no idx file: it starts with the bytes '{magic.hex(' ')}', expected "
            f"'{expected.hex(' ')}' for {CONTENTS[dims]}. Download it again"
        )
    if magic[2] != UNSIGNED_BYTES:
        raise ValueError(
            f"{str(path)!r} holds values of type code 0x{magic[2]:02x}, expected 0x{UNSIGNED_BYTES:02x}, unsigned "
            "bytes. Convert it, or download the original"
        )
    if magic[3] != dims:
        held = CONTENTS.get(magic[3], "values")
        raise ValueError(
            f"{str(path)!r} holds {held} ({magic[3]} dimensions), expected {CONTENTS[dims]} ({dims}). "
            "The files of images and labels may have changed places"
        )
    header = content[4 : 4 + 4 * dims]
    if len(header) < 4 * dims:
        raise ValueError(f"{str(path)!r} is cut short: {len(content)} bytes, less than its header. Download it again")
    return tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))


def _times(sizes: tuple[int, ...]) -> str:
    """Sizes in words, such as 60000 x 28 x 28."""
    return " x ".join(str(size) for size in sizes)
