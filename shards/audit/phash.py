"""A perceptual hash: 64 bits of a picture that survive re-encoding, resizing and small changes.

The picture as 32 x 32 grey levels, its discrete cosine transform, and one bit for each of the 64 lowest frequencies but
the mean: whether it is there with a positive sign. That is the DCT hash of Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions" (2010), with two changes: frequencies are taken along the diagonals, and a bit is set
above a tenth of the mean magnitude instead of above the median, because in drawings, flags and symmetric objects many
frequencies are about zero, and the sign of noise is no property of a picture.
"""

from __future__ import annotations

import numpy as np

SIDE_PX = 32
NUM_BITS = 64
NUM_BANDS = 4
DEAD_ZONE = 0.1


def cosine_basis(size: int) -> np.ndarray:
    """Rows are the cosines of the DCT-II, orthonormal."""
    frequency, place = np.mgrid[:size, :size]
    basis: np.ndarray = np.cos(np.pi * frequency * (2 * place + 1) / (2 * size)) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def diagonal_order() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the NUM_BITS lowest frequencies without the mean, diagonal by diagonal.

    Neighbours go to different 16-bit bands of the hash: the search (hamming.py) wants bands that are alike.
    """
    diagonals = sorted((row + column, row, column) for row in range(SIDE_PX) for column in range(SIDE_PX))
    _, rows, columns = np.array(diagonals[1 : NUM_BITS + 1]).T
    bit = np.arange(NUM_BITS).reshape(-1, NUM_BANDS).T.ravel()
    return rows[bit], columns[bit]


BASIS = cosine_basis(SIDE_PX)
ROWS, COLUMNS = diagonal_order()


def hash_pictures(grey_NHW: np.ndarray) -> np.ndarray:
    """uint64 a picture, from pictures of SIDE_PX x SIDE_PX grey levels."""
    spectrum_NHW = BASIS @ grey_NHW.astype(np.float32) @ BASIS.T
    low_NB = spectrum_NHW[:, ROWS, COLUMNS]
    bits_NB = low_NB > DEAD_ZONE * np.abs(low_NB).mean(1, keepdims=True)
    packed: np.ndarray = np.packbits(np.ascontiguousarray(bits_NB), axis=1, bitorder="little")
    return packed.view("<u8").ravel()
