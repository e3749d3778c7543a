"""The CPU as a device, and threads on it.

`device` has the facts, `threads` runs jobs side by side, `parallel_loops` compiled loops; `thread_pool` is under both.
"""

from gpuconv.cpu.device import cache_bytes, cores, product_name, vector_bytes
from gpuconv.cpu.threads import blas_name, parallel_for, workers

__all__ = ["blas_name", "cache_bytes", "cores", "parallel_for", "product_name", "vector_bytes", "workers"]
