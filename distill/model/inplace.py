"""A query attends to stored features where they lie: tokens, vectors and frames of a gallery, mapped into memory.

PyTorch would copy the rows that were asked for, widen them to float32, and read them again for every operation. Here
they are read once (inplace.c), which is three to eight times faster, and most of the time of a search's second stage.
Installing builds it where there is a C compiler. Where there was none, and for features on a GPU, the models' own
formulas in PyTorch give the same scores, up to rounding.
"""

import ctypes
import importlib.util
from functools import cache

import torch
from jaxtyping import Bool, Float16, Float32, Int8, Int64
from torch import Tensor

LIBRARY = "distill.model._inplace"  # never imported: it is no Python module, only built and found like one
VERSION = 2
KINDS = {torch.float16: 0, torch.int8: 1, torch.float32: 2}  # as inplace.c numbers them

Halves = Float16[Tensor, "video part dim"]
Keys = Halves | Int8[Tensor, "video part dim"] | Float32[Tensor, "video part dim"]
Products = Float32[Tensor, "row part"]


def built() -> bool:
    """Return whether there is a library to call."""
    return _library() is not None


def products(
    query: Float32[Tensor, " dim"],
    keys: Keys,
    rows: Int64[Tensor, " row"],
    *,
    unit: bool = False,
    scales: Float32[Tensor, "video part"] | None = None,
) -> Products:
    """Return the inner products of a query with every part of some videos, or with the `unit` vectors of these parts.

    Keys of int8 have `scales`. Raises `ValueError` for tensors that do not lie in memory row after row, `IndexError`
    for rows that are no videos.
    """
    return _attend(query, keys, None, rows, None, 1.0, unit, scales)[0]


def pooled(
    query: Float32[Tensor, " dim"],
    keys: Halves,
    values: Halves,
    rows: Int64[Tensor, " row"],
    *,
    temperature: float,
    counted: Bool[Tensor, "video group"] | None = None,
    unit: bool = False,
) -> tuple[Products, Float32[Tensor, " row"]]:
    """Return `products` with the keys, and the query's inner product with the unit vector of the values' weighted sum.

    The weights are the softmax of products / temperature. Parts that are not `counted` have weight 0; an entry of
    `counted` stands for several parts in a row (the patches of a frame). Where no part counts, all weigh alike. With
    `unit` all keys and values are divided by their lengths. Raises as `products` does.
    """
    return _attend(query, keys, values, rows, counted, temperature, unit)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor | None,
    rows: Tensor,
    counted: Tensor | None,
    temperature: float,
    unit: bool,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    library, (videos, parts, dim) = _library(), keys.shape
    assert library is not None, "ask built() first"
    groups = _checked_groups(query, keys, values, rows, counted, scales)
    scores = torch.empty(len(rows), parts)
    cosines = torch.empty(len(rows) if values is not None else 0)
    room = torch.empty(dim if values is None else (parts + 1) * dim + parts)
    outside = library.attend(
        keys.data_ptr(),
        None if scales is None else scales.data_ptr(),
        None if values is None else values.data_ptr(),
        KINDS[keys.dtype],
        None if counted is None else counted.data_ptr(),
        parts // groups,
        rows.data_ptr(),
        len(rows),
        videos,
        parts,
        dim,
        query.data_ptr(),
        temperature,
        unit,
        scores.data_ptr(),
        None if values is None else cosines.data_ptr(),
        room.data_ptr(),
    )
    if outside:
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of {videos} videos")
    return scores, cosines


def _checked_groups(
    query: Tensor, keys: Tensor, values: Tensor | None, rows: Tensor, counted: Tensor | None, scales: Tensor | None
) -> int:
    """Refuse tensors that the library would misread; return how many entries of `counted` a video has."""
    videos, parts, dim = keys.shape
    _check(query, torch.float32, (dim,))
    _check(keys, keys.dtype if keys.dtype in KINDS and values is None else torch.float16, keys.shape)
    _check(rows, torch.int64, (len(rows),))
    if (scales is not None) != (keys.dtype == torch.int8):
        raise ValueError(f"{keys.dtype} keys {'with' if scales is not None else 'without'} scales, which int8 has")
    if scales is not None:
        _check(scales, torch.float32, (videos, parts))
    if values is not None:
        _check(values, torch.float16, keys.shape)
    if counted is not None:
        _check(counted, torch.bool, (videos, counted.shape[1]))
    groups = parts if counted is None else counted.shape[1]
    if not groups or parts % groups:
        raise ValueError(f"{parts} parts of a video in {groups} groups, expected groups of one size")
    return groups


def _check(some: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` for a tensor that the library, which gets its address alone, would misread."""
    if some.dtype != dtype or some.shape != shape or not (some.is_cpu and some.is_contiguous()):
        found = f"{some.dtype} {list(some.shape)} on {some.device}"
        raise ValueError(f"expected {dtype} {list(shape)} in memory, row after row; found {found}")


@cache
def _library() -> ctypes.CDLL | None:
    found = importlib.util.find_spec(LIBRARY)
    if found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)  # calls let other threads run
        if ctypes.c_int.in_dll(library, "inplace_version").value != VERSION:
            return None
    except (OSError, ValueError):  # built for another system, or of an earlier version
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.attend.argtypes = [
        *(pointer, pointer, pointer, ctypes.c_int),  # keys, their scales, values, and of which kind these are
        *(pointer, number, pointer, number),  # counted, alike, rows and their number
        *(number, number, number, pointer),  # videos, parts, dim, query
        *(ctypes.c_float, ctypes.c_bool, pointer, pointer, pointer),  # temperature, unit, products, pooled, room
    ]
    return library
