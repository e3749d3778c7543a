"""Runs CUDA kernels on the CPU, to test them with no GPU: see README.md beside this file."""

from .build import BuildError, unavailable
from .launcher import KernelFault, SharedMemoryFault
from .module import Module

__all__ = ["FAR_AWAY", "BuildError", "KernelFault", "Module", "SharedMemoryFault", "unavailable"]

FAR_AWAY = r"out of bounds.*far from every array|by a wild pointer"
"""What a KernelFault says of an address gigabytes away from all arrays; wild is one that no process can have."""
