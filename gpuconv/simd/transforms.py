"""The matrices of Winograd's minimal filtering, for compiled code and for NumPy. This file needs no Numba.

Lavin & Gray, "Fast algorithms for convolutional neural networks", 2016. For F(m x m, 3 x 3), with n = m + 2:

    y (m, m)  =  A^T [ (G w G^T) * (B^T d B) ] A      from inputs d (n, n) and weights w (3, 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpuconv.typing import Array


@dataclass(frozen=True, eq=False)
class Transforms:
    """The matrices of F(m x m, 3 x 3)."""

    b_t: Array
    g: Array
    a_t: Array

    @property
    def m(self) -> int:
        """Outputs per tile along one axis."""
        return len(self.a_t)

    @property
    def n(self) -> int:
        """Inputs per tile along one axis."""
        return len(self.b_t)


F2 = Transforms(
    b_t=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    g=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    a_t=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
F4 = Transforms(
    b_t=np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    g=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    a_t=np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
)
