"""The peers against which gpuconv is measured: one module each, which imports the peer's package on demand."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

from gpuconv.bench.peers import candidates, float64, jax, matmul, onnxruntime, scipy, torch
from gpuconv.bench.peers.base import Peer

PEERS: dict[str, Peer] = {
    "matmul": matmul,
    "candidates": candidates,
    "float64": float64,
    "torch": torch,
    "jax": jax,
    "onnxruntime": onnxruntime,
    "scipy": scipy,
}

PACKAGES = {
    "matmul": (),
    "candidates": (),
    "float64": (),
    "torch": ("torch",),
    "jax": ("jax",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "scipy": ("scipy",),
}


def load(name: str) -> Peer:
    """The peer of that name.

    Raises
    ------
    ValueError
        If there is no such peer, or its packages are not installed.
    """
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r} to measure against. Choose among {', '.join(PEERS)}.")
    missing = [package for package in PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"measuring against {name} needs packages that are not installed: python -m pip install {' '.join(missing)}"
        )
    return PEERS[name]


def versions(name: str) -> dict[str, str]:
    """The versions of the packages that a peer needs."""
    return {package: version(package) for package in PACKAGES[name]}
