"""Runs CUDA kernels on the CPU, to test them with no GPU: see README.md beside this file."""

from .build import BuildError, unavailable
from .launcher import KernelFault
from .module import Module

__all__ = ["BuildError", "KernelFault", "Module", "unavailable"]
