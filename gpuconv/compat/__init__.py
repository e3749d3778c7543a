"""Modules with the functions and signatures of other libraries, for programs that change one import.

- `gpuconv.compat.cudnn` stands in for `cupy.cudnn`, which CuPy 14 no longer has.
"""
