"""The choice of one tile of the tensor cores, and a look at what is launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def only_tile(m: int, n: int) -> Iterator[None]:
    """Inside, the tensor cores' kernels take the tile m x n wherever it is one of those to choose from."""
    from gpuconv.algorithms.cuda import implicit_gemm

    fastest = implicit_gemm.fastest

    def chosen(tiles: Any, product: Any, shared: Any, *others: Any) -> Any:
        places = [place for place, tile in enumerate(tiles) if (tile.m, tile.n) == (m, n)] or range(len(tiles))
        return fastest(tuple(tiles[i] for i in places), product, tuple(shared[i] for i in places), *others)

    _forget(implicit_gemm)
    implicit_gemm.fastest = chosen  # type: ignore[assignment]
    try:
        yield
    finally:
        implicit_gemm.fastest = fastest
        _forget(implicit_gemm)


def _forget(module: ModuleType) -> None:
    """Forget the tiles and the launches that the functions of a module, and calls, remember."""
    from gpuconv.functions import repeats

    repeats.forget()
    for thing in vars(module).values():
        if hasattr(thing, "cache_clear"):
            thing.cache_clear()


@contextmanager
def watched() -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """The launches of the tensor cores inside, in order, and their arrays."""
    from gpuconv.cuda import launches
    from gpuconv.functions import repeats

    launch, found = launches.launch, list[tuple[Any, tuple[Any, ...]]]()

    def noted(xp: Any, what: Any, *arrays: Any) -> None:
        if what.unit.file.startswith("implicit_gemm"):
            found.append((what, arrays))
        launch(xp, what, *arrays)

    repeats.forget()
    launches.launch = noted  # type: ignore[assignment]
    try:
        yield found
    finally:
        launches.launch = launch
