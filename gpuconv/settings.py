"""Settings of the process, read at each call; assign to change them.

>>> import gpuconv
>>> gpuconv.settings.max_workspace == 256 * 2**20
True
"""

max_workspace: int = 256 * 2**20
"""Bytes of extra memory a call may take beside its arguments and its result, where it names no ``max_workspace``."""

threads: int | None = None
"""CPU threads a call may use; None: every core this process may run on. No result depends on it."""
