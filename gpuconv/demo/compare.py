"""The comparison of every algorithm with for-loops, on a crop of the picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from gpuconv import conv2d
from gpuconv.algorithms import ALGORITHMS
from gpuconv.backend import to_device, to_numpy
from gpuconv.demo.filters import bank, depthwise, gabor, gaussian
from gpuconv.errors import AlgorithmError
from gpuconv.typing import AlgorithmName, Array

SIDE = 40
REFERENCE: AlgorithmName = "loops"
FILTERS = ("Gaussian blur", "Gabor bank")


@dataclass(frozen=True)
class Comparison:
    """One filter by one algorithm: seconds and largest difference from for-loops, or the reason of its refusal."""

    filter: str
    algorithm: str
    seconds: float = 0.0
    error: float = 0.0
    refusal: str = ""


def comparisons(photo: Array, device: str = "cpu") -> Iterator[Comparison]:
    """Apply blur and Gabor bank to the middle of a picture (1, h, w, 3), first by for-loops, which run on the CPU."""
    _, height, width, _ = photo.shape
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    crop = photo[:, top : top + SIDE, left : left + SIDE]
    others = [cast("AlgorithmName", algorithm.name) for algorithm in ALGORITHMS if algorithm.name != REFERENCE]
    gabors = bank(*(gabor(np.pi * i / 8, sigma=1) for i in range(8)))
    filters = (depthwise(gaussian(1)), 3), (np.repeat(gabors, 3, axis=2) / 3, 1)
    for name, (w, groups) in zip(FILTERS, filters, strict=True):
        seconds, want = _fastest(crop, w, groups, REFERENCE, repeats=1)
        yield Comparison(name, REFERENCE, seconds)
        x_there, w_there = to_device(crop, device), to_device(w, device)
        for algorithm in others:
            try:
                seconds, got = _fastest(x_there, w_there, groups, algorithm, repeats=5)
            except AlgorithmError as error:
                yield Comparison(name, algorithm, refusal=str(error))
            else:
                yield Comparison(name, algorithm, seconds, float(np.abs(got - want).max()))


def count() -> int:
    """Return the number of comparisons."""
    return len(FILTERS) * len(ALGORITHMS)


def _fastest(x: Array, w: Array, groups: int, algorithm: AlgorithmName, repeats: int) -> tuple[float, Array]:
    """Return the seconds of the fastest of several runs, and the result, on the CPU."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        y = to_numpy(conv2d(x, w, pad="same", groups=groups, algorithm=algorithm))
        best = min(best, time.perf_counter() - start)
    return best, y
