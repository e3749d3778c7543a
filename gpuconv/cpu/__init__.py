"""The CPU as a device, and threads on it.

`device` has the facts. `threads` says how many threads a call may use and runs Python jobs on them, `parallel_loops`
runs compiled loops on them, `repeated_jobs` runs those of an earlier call again, and `thread_pool` has the workers.
"""

from gpuconv.cpu.device import cache_bytes, cores, product_name, vector_bytes
from gpuconv.cpu.threads import blas_name, parallel_for, sharing_cores, workers

__all__ = [
    "blas_name",
    "cache_bytes",
    "cores",
    "parallel_for",
    "product_name",
    "sharing_cores",
    "vector_bytes",
    "workers",
]
