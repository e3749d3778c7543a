"""Settings of the process, read at each call; assign to change them.

>>> import gpuconv
>>> gpuconv.settings.max_workspace == 256 * 2**20
True
"""

max_workspace: int = 256 * 2**20
"""Bytes of extra memory a call may take beside its arguments and its result, where it names no ``max_workspace``."""

threads: int | None = None
"""CPU threads a call may use. No result depends on it.

None: as many as the process was given, which is the least of these:

- the cores it may run on, by its affinity and by the quotas of its control groups, rounded up: counted anew every 0.1 s
- OMP_NUM_THREADS, as it was at the first call
- the threads that NumPy's BLAS is held to at the time of the call, by threadpoolctl or by a variable of its own

NUMBA_NUM_THREADS does not count: it is for threads of Numba's own, which gpuconv does not use."""

batch_invariant: bool = False
"""Whether the result of a sample has the same bits in a batch of any size.

Algorithms are then chosen for one sample, and run for one sample after another, except where the batch as a whole comes
to the same: forward passes, input gradients and transposed convolutions, by any algorithm on any device, and the
products of `layers.Dense`. Small samples may take longer so. A weight gradient is a sum over the batch, and is computed
as ever."""

autotune: bool = False
"""Whether the first call of a problem with ``algorithm="auto"`` times the algorithms, and later ones use what it found.

Algorithms differ in their last bits, so this gives up that a call has the same bits on every run: see `autotune`."""

autotune_budget: float = 1.0
"""Seconds that tuning one problem may take. A run that has begun is finished."""
