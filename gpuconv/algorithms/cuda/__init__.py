"""The algorithms that run on a CUDA GPU alone, by the kernels of kernels/ and by cuBLAS."""
