"""The host side of the CUDA kernels: how they are found, compiled, given their arguments and launched."""

from gpuconv.cuda.loader import Launch, Unit, dtype_code, flatten, folder, launch, options, types

__all__ = ["Launch", "Unit", "dtype_code", "flatten", "folder", "launch", "options", "types"]
