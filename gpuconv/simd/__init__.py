"""Convolution and pooling in the registers of a CPU, by loops that Numba compiles.

The loops take float32 and float64, with vectors as long as the CPU has.

They are imported when they are first needed: importing Numba takes a moment, and Numba is optional. Compiled code is
kept on disk until a file of this folder changes, see compiled_cache.py.
"""
