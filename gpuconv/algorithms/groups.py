"""Views of arrays with channels split by group."""

from gpuconv.geometry import ConvGeometry
from gpuconv.typing import Array


def channels_by_group(x: Array, g: ConvGeometry) -> Array:
    """x (..., channels) as a view (..., groups, channels per group)."""
    return x.reshape(*x.shape[:-1], g.groups, x.shape[-1] // g.groups)


def weights_by_group(w: Array, g: ConvGeometry) -> Array:
    """w (*taps, c // groups, k) as a view (*taps, groups, c // groups, k // groups)."""
    return channels_by_group(w, g).swapaxes(-2, -3)
