"""Convolution and pooling in the registers of a CPU, by loops that Numba compiles.

Of float32 and float64, with vectors as long as it has.

Imported where it is first needed: Numba takes a moment, and is optional. What was compiled Numba keeps on disk, until
the file of the loop changes.
"""
