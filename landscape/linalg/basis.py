"""Where the orthonormal vectors of Lanczos's method are kept: in full, or in half the memory as 16-bit integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.operator import SymmetricOperator

PACKED_SHARE = 0.52  # the memory of a packed vector over that of one in float32
PACKED_RTOL = 1e-3  # the smallest relative residual that packed vectors are meant for

_BLOCK = 64  # elements that share a scale
_CHUNK = 2**12  # blocks that are worked on at a time: what is unpacked of some vectors stays in the cache of a CPU
_LARGEST = 2**15 - 1  # of a 16-bit integer


class Basis(Protocol):
    """Orthonormal vectors, to which one is added after the other.

    Attributes:
        exact: Whether vectors are kept as they are. Otherwise they are rounded, and stay orthonormal to about 1e-6.
    """

    exact: bool

    def stored(self, vector: Tensor) -> tuple[Any, float]:
        """Return a vector, shape (n,), in the form in which vectors are kept, and how far rounding moved it."""

    def loaded(self, stored: Any) -> Tensor:
        """Return the vector that was stored."""

    def append(self, stored: Any) -> None:
        """Keep a vector, which was stored, behind the others."""

    def orthogonalized(self, vector: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return the coefficients of a vector in the basis, and the rest of it; the vector may be overwritten."""

    def combined(self, turn: np.ndarray) -> Tensor:
        """Return the combinations of the vectors with the columns of `turn`, as rows."""

    def replace(self, turn: np.ndarray) -> np.ndarray:
        """Put the same combinations in the place of the vectors; return how far rounding moved each of them."""

    def state(self, tail: Any) -> dict[str, Tensor]:
        """Return all vectors and a stored one behind them by name, as views."""

    def recall(self, state: Mapping[str, Tensor]) -> Any:
        """Take over the `state` of another basis; return the last vector of it, stored."""


class FullBasis:
    """Vectors as rows of one tensor.

    Args:
        operator: Whose vectors they are.
        most: The largest number of vectors.
        like: A vector; the others are of its type, on its device, and sharded where it is.
    """

    exact = True

    def __init__(self, operator: SymmetricOperator, most: int, like: Tensor):
        self._operator = operator
        self._rows = torch.stack([torch.zeros_like(like)] * (most + 1))
        self._size = 0

    def rows(self) -> Tensor:
        """Return the vectors, shape (vectors, n), as a view."""
        return self._rows[: self._size]

    def stored(self, vector: Tensor) -> tuple[Tensor, float]:
        """Return the vector as it is."""
        return vector, 0.0

    def loaded(self, stored: Tensor) -> Tensor:
        """Return the vector as it is."""
        return stored

    def append(self, stored: Tensor) -> None:
        """Keep a vector."""
        self._rows[self._size] = stored
        self._size += 1

    def orthogonalized(self, vector: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return the coefficients of `vector` in the basis, and the rest of it.

        Classical Gram-Schmidt is applied twice: once leaves errors as large as the cancellation.
        """
        operator, rows = self._operator, self._rows[: self._size]
        first = operator.inner(rows, vector)
        remainder = vector - operator.combine(first, rows)
        second = operator.inner(rows, remainder)
        remainder -= operator.combine(second, rows)
        return (first + second).double().cpu().numpy(), remainder

    def combined(self, turn: np.ndarray) -> Tensor:
        """Return the combinations of the vectors with the columns of `turn`, as rows."""
        columns = torch.from_numpy(turn.T.copy()).to(self._rows.device, self._rows.dtype)
        return self._operator.combine(columns, self._rows[: self._size])

    def replace(self, turn: np.ndarray) -> np.ndarray:
        """Put combinations in the place of the vectors."""
        self._size, combined = turn.shape[1], self.combined(turn)
        self._rows[: self._size] = combined
        return np.zeros(self._size)

    def state(self, tail: Tensor) -> dict[str, Tensor]:
        """Return the vectors and the tail as a view."""
        self._rows[self._size] = tail
        return {"basis": self._rows[: self._size + 1]}

    def recall(self, state: Mapping[str, Tensor]) -> Tensor:
        """Take over the state of another basis; return the last vector of it."""
        rows = state["basis"].to(self._rows.device, self._rows.dtype)
        self._size = len(rows) - 1
        self._rows[: len(rows)] = rows
        return self._rows[self._size].clone()


class PackedBasis:
    """Vectors as 16-bit integers, with one scale for every 64 elements, in half the memory of float32.

    Scales are powers of two of which the largest element of a block is 16384 to 32767, so that a rounded vector is
    rounded to itself. Rounding moves a vector of normal elements by about 4e-5 of its length, and one of which single
    elements stand out tenfold by 1e-4. What is multiplied is the rounded vector, so that its product is known; and what
    rounding takes of orthogonality is of second order, because the errors of many elements are orthogonal to anything
    else, but for 1 / sqrt(n) of them.

    Vectors are worked on a chunk at a time, so that nothing else of the size of a vector is made.

    Args:
        like: A vector; the others are of its length and type, on its device.
    """

    exact = False

    def __init__(self, like: Tensor):
        self._length = len(like)
        self._like = like.new_empty(0)
        self._blocks = -(-len(like) // _BLOCK)
        self._codes: list[Tensor] = []
        self._scales: list[Tensor] = []

    def stored(self, vector: Tensor) -> tuple[tuple[Tensor, Tensor], float]:
        """Return the codes, shape (blocks, 64), and the scales, shape (blocks,), and how far rounding moved it."""
        codes = torch.empty((self._blocks, _BLOCK), dtype=torch.int16, device=vector.device)
        scales = vector.new_empty(self._blocks)
        moved = 0.0
        for i, place in enumerate(vector.split(_CHUNK * _BLOCK)):
            piece = slice(i * _CHUNK, (i + 1) * _CHUNK)
            codes[piece], scales[piece] = _packed(place)
            rounded = _unpacked(codes[piece], scales[piece])[: len(place)]
            moved += float(torch.linalg.vector_norm(rounded.sub_(place))) ** 2
        return (codes, scales), moved**0.5

    def loaded(self, stored: tuple[Tensor, Tensor]) -> Tensor:
        """Return the rounded vector."""
        return _unpacked(*stored)[: self._length]

    def append(self, stored: tuple[Tensor, Tensor]) -> None:
        """Keep a vector."""
        codes, scales = stored
        self._codes.append(codes)
        self._scales.append(scales)

    def orthogonalized(self, vector: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return the coefficients of `vector` in the basis, and overwrite it with the rest of it.

        Gram-Schmidt twice, as for full vectors, in three passes. Sums over a chunk are added up in float64.
        """
        first, second = (torch.zeros(len(self._codes), dtype=torch.float64) for _ in range(2))
        for place, rows in self._chunks(vector):
            first += (rows @ place).double().cpu()
        for place, rows in self._chunks(vector):
            place.sub_(first.to(rows) @ rows)
            second += (rows @ place).double().cpu()
        for place, rows in self._chunks(vector):
            place.sub_(second.to(rows) @ rows)
        return (first + second).numpy(), vector

    def combined(self, turn: np.ndarray) -> Tensor:
        """Return the combinations of the vectors with the columns of `turn`, as rows."""
        columns = torch.from_numpy(turn.T.copy()).to(self._like)
        combinations = self._like.new_empty(len(columns), self._length)
        for column, out in zip(columns, combinations, strict=True):
            for place, rows in self._chunks(out):
                place.copy_(column @ rows)
        return combinations

    def replace(self, turn: np.ndarray) -> np.ndarray:
        """Put combinations in the place of the vectors; return how far rounding moved each of them."""
        columns = torch.from_numpy(turn.T.copy()).to(self._like)
        moved = torch.zeros(len(columns), dtype=torch.float64)
        for piece, rows in self._pieces():
            for i, values in enumerate(columns @ rows):
                codes, scales = _packed(values)
                self._codes[i][piece], self._scales[i][piece] = codes, scales
                moved[i] += torch.linalg.vector_norm(_unpacked(codes, scales) - values).double().cpu() ** 2
        del self._codes[len(columns) :], self._scales[len(columns) :]
        return moved.sqrt().numpy()

    def state(self, tail: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return codes and scales of the vectors, and the tail's."""
        numbered = [*zip(self._codes, self._scales, strict=True), tail]
        return {f"{name} {i}": part for i, pair in enumerate(numbered) for name, part in zip(_PARTS, pair, strict=True)}

    def recall(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Take over the state of another basis; return codes and scales of the last vector of it."""
        device = self._like.device
        codes, scales = ([state[f"{name} {i}"].to(device) for i in range(len(state) // 2)] for name in _PARTS)
        last = codes.pop(), scales.pop()
        self._codes, self._scales = codes, scales
        return last

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks of blocks, each with those blocks of all vectors, unpacked, shape (vectors, 64 * blocks).

        What is yielded lives in memory that the next chunk overwrites.
        """
        rows = self._like.new_empty(len(self._codes), min(_CHUNK, self._blocks) * _BLOCK)
        for start in range(0, self._blocks, _CHUNK):
            piece = slice(start, min(start + _CHUNK, self._blocks))
            here = rows[:, : (piece.stop - start) * _BLOCK]
            for row, codes, scales in zip(here, self._codes, self._scales, strict=True):
                row.view(-1, _BLOCK).copy_(codes[piece]).mul_(scales[piece, None])
            yield piece, here

    def _chunks(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each chunk of a vector as a view, with the same chunk of all vectors of the basis; see `_pieces`."""
        if self._codes:
            for place, (_, rows) in zip(vector.split(_CHUNK * _BLOCK), self._pieces(), strict=True):
                yield place, rows[:, : len(place)]


_PARTS = ("codes", "scales")


def _packed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a chunk, shape (n,); the last block is filled up with zeros."""
    missing = -len(values) % _BLOCK
    blocks = (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, _BLOCK)
    largest = blocks.abs().amax(dim=1)
    mantissa, _ = torch.frexp(largest)
    # largest / mantissa is a power of two, without rounding; a block that is as good as zero becomes zero
    something = largest > 2**20 * torch.finfo(values.dtype).tiny
    scales = torch.where(something, largest / mantissa / (_LARGEST + 1), 1.0)
    codes = (blocks / scales[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int16)
    return codes, scales


def _unpacked(codes: Tensor, scales: Tensor) -> Tensor:
    """Return the values of codes, shape (64 * blocks,)."""
    return codes.to(scales.dtype).mul_(scales[:, None]).view(-1)
