"""The .npy files of a set: lists of fixed rows, as numpy writes them, from a folder that nobody vouches for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAGIC, VERSION = b"\x93NUMPY", b"\x01\x00"
START = len(MAGIC) + len(VERSION) + 2  # then two bytes with the header's length
ALIGNED = 16  # what numpy has always padded its header to, by spaces and a newline


def read_rows(path: Path) -> np.ndarray:
    """The array as a read-only memmap; OSError or ValueError where it is none. Never unpickles, never unzips."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not an .npy file")
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy's parser raises whatever a damaged header leads it to
        raise ValueError(f"not a readable .npy file ({' '.join(str(error).split())})") from error
    return rows


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
