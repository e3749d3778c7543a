"""The protocol of a peer, and the calls that it offers for timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpuconv.bench.case import Case
from gpuconv.geometry import PoolGeometry
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array


@dataclass(frozen=True)
class Contestant:
    """A call to time.

    `result` turns its return value into the channels-last NumPy array with which gpuconv's result must agree, and is
    None if the call computes something else. `scale` turns its time into that of the FLOPs of the convolution.
    """

    call: Callable[[], Any]
    result: Callable[[Any], Array] | None = None
    scale: float = 1.0


class Peer(Protocol):
    """A module of this folder."""

    def refusal(self, case: Case) -> str | None:
        """The reason why the peer cannot do this pass, in words; None if it can."""

    def contestants(self, case: Case, work: Workload) -> dict[str, Contestant]:
        """The peer's ways of doing this pass, on as many threads as gpuconv; the fastest of them counts."""


def refusal_of(name: str, peer: Peer, case: Case) -> str | None:
    """The peer's refusal. PyTorch alone pools; weights per sample are what only gpuconv's own algorithms have.

    SciPy and JAX keep the dtype of integers, in which sums do not fit; those of PyTorch do in 32 and 64 bits.
    """
    if isinstance(case.geometry, PoolGeometry) and name != "torch":
        return "has nothing for a pooling"
    if case.geometry.banks and name != "candidates":
        return "has no weights of its own for each sample"
    if case.is_of_integers and name not in ("matmul", "float64", "torch", "onnxruntime"):
        return "is not compared in integers"
    return peer.refusal(case)


def channels_first(x: Array) -> Array:
    return np.moveaxis(x, -1, 1)  # (n, *spatial, c) -> (n, c, *spatial)


def channels_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)  # (n, c, *spatial) -> (n, *spatial, c)


def weights_first(w: Array) -> Array:
    return np.moveaxis(w, (-1, -2), (0, 1))  # (*kernel, c, k) -> (k, c, *kernel)


def weights_last(w: Array) -> Array:
    return np.moveaxis(w, (0, 1), (-1, -2))  # (k, c, *kernel) -> (*kernel, c, k)
