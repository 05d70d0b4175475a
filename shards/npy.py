"""The .npy files of a set: lists of fixed rows, as numpy writes them, from a folder that nobody vouches for."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

MAGIC, VERSION = b"\x93NUMPY", b"\x01\x00"
START = len(MAGIC) + len(VERSION) + 2  # then two bytes with the header's length
FIELDS = rb"\[(?:\('\w+', '<[iu][1-8]'\)(?:, |(?=\])))+\]"  # numbers only: rows of objects would be addresses
PLAIN = re.compile(rb"\{'descr': (" + FIELDS + rb"), 'fortran_order': False, 'shape': \(([0-9]{1,15}),\), \} *\n")
ALIGNED = 16  # what numpy has always padded its header to, by spaces and a newline


def read_rows(path: Path) -> np.ndarray:
    """The array, mapped and read-only; OSError or ValueError where it is none. Never unpickles, never unzips.

    What a set has is opened without numpy's parser, which takes ten times as long: a large set has ten thousand sidecars.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    with path.open("rb") as file:
        start = file.read(START)
        if not start.startswith(MAGIC):
            raise ValueError("not an .npy file")
        header = file.read(int.from_bytes(start[-2:], "little"))
        plain = PLAIN.fullmatch(header) if start.startswith(VERSION, len(MAGIC)) else None
        try:
            if plain:
                rows: np.ndarray = np.memmap(file, dtype_of(plain[1]), "r", START + len(header), (int(plain[2]),))
            else:
                rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # numpy raises whatever a damaged header leads it to
            raise ValueError(f"not a readable .npy file ({' '.join(str(error).split())})") from error
    return rows.view(np.ndarray)  # still mapped; a row of an np.memmap takes three times as long


@lru_cache(maxsize=16)
def dtype_of(fields: bytes) -> np.dtype:
    """Of a header's list of fields."""
    dtype: np.dtype = np.dtype(ast.literal_eval(fields.decode()))
    return dtype


def find_flaw(path: Path, dtype: np.dtype, num_rows: int) -> str | None:
    """What of this file is not as numpy writes so many rows, down to the last byte; None where nothing is."""
    with path.open("rb") as file:
        start = file.read(START)
        length = int.from_bytes(start[-2:], "little")
        header = file.read(length)
    expected = f"{{'descr': {dtype.descr!r}, 'fortran_order': False, 'shape': ({num_rows},), }}".encode()
    if not start.startswith(MAGIC + VERSION) or (START + length) % ALIGNED:
        return "its header is not as numpy writes it"
    if not header.startswith(expected) or header[len(expected) :].strip(b" ") != b"\n" or header[-1:] != b"\n":
        return "its header is not as numpy writes it"
    end = START + length + num_rows * dtype.itemsize
    num_bytes = path.stat().st_size
    return f"{num_bytes} bytes, {num_rows} rows end at byte {end}" if num_bytes != end else None
