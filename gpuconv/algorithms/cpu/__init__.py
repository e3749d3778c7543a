"""The algorithms that run on the CPU alone, by NumPy or by loops that Numba compiles."""
