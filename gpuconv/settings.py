"""Settings of the process, read at each call; assign to them to change them.

>>> import gpuconv
>>> gpuconv.settings.max_workspace == 256 * 2**20
True
"""

max_workspace: int = 256 * 2**20
"""Bytes of extra memory that a call without ``max_workspace`` may use beside its arguments and its result."""

threads: int | None = None
"""The number of CPU threads that a call may use. No result depends on it.

None means as many as the process was given, which is the least of these:

- the cores it may run on, by its affinity and by the quotas of its control groups, rounded up; counted every 0.1 s
- OMP_NUM_THREADS, as it was at the first call
- the threads that NumPy's BLAS is limited to at the time of the call, by threadpoolctl or by its own variable

NUMBA_NUM_THREADS does not count: it limits Numba's own threads, which gpuconv does not use."""

amx: bool | None = None
"""Whether ``algorithm="auto"`` takes AMX, the matrix unit of newer Intel processors, where it is faster.

None means for bfloat16, and for float32 under ``precision="fast"``. True means for strict float32 as well: the error is
still that of float32, but denormal numbers count as zeros, and an infinity may become a NaN, see docs/numbers.md. False
means never. ``algorithm="amx"`` is allowed by each of them. The bits are not those of other algorithms, so results of
"auto" differ between processors with and without AMX where it is taken."""

batch_invariant: bool = False
"""Whether the result of a sample has the same bits in a batch of any size.

Algorithms are then chosen for one sample and run sample by sample, except where the batch as a whole has the same bits.
This holds for forward passes, input gradients and transposed convolutions, by any algorithm on any device, and for the
products of `layers.Dense`. Small samples may take longer. A weight gradient is a sum over the batch and is computed as
always."""

autotune: bool = False
"""Whether the first call of a problem with ``algorithm="auto"`` times the algorithms, and later ones use the fastest.

Algorithms differ in their last bits, so a call then no longer has the same bits on every run: see `autotune`."""

autotune_budget: float = 1.0
"""Seconds that tuning one problem may take; a run that has begun is finished."""
