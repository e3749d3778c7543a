"""`plan`: the plan of anything that a problem string describes, without arrays."""

from __future__ import annotations

from gpuconv import planning
from gpuconv.errors import AlgorithmError
from gpuconv.functions import integers
from gpuconv.functions.pooling import plans as pooling_plans
from gpuconv.geometry import ConvGeometry, PoolGeometry
from gpuconv.planning import ConvPlan
from gpuconv.typing import AlgorithmName, Direction, DTypeLike, Precision


def plan(
    geometry: ConvGeometry | str,
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    *,
    direction: Direction = "forward",
    precision: Precision = "strict",
    algorithm: AlgorithmName = "auto",
    max_workspace: int | None = None,
) -> ConvPlan:
    """The plan of a convolution or a pooling of C-contiguous, channels-last arrays; nothing is computed or allocated.

    Numba is not imported either: until the first call imports it, an installed Numba is assumed to work. `explain`
    does import it.

    Parameters
    ----------
    geometry : ConvGeometry or str
        The convolution x -> y, even if `direction` names one of its gradients; a problem string is parsed. It may be
        that of a pooling, as "max_pool2d_n8_h112w112_c64_r3s3_p1_st2", see `PoolGeometry`.
    dtype : dtype or str
        That of x and w. For integers the plan is for data of any size.
    device : str
        "cpu", "cuda" or "cuda:<number>".
    direction : {"forward", "input_grad", "weight_grad"}
    precision, algorithm, max_workspace
        As for `conv2d`.

    Raises
    ------
    GeometryError, DTypeError, DeviceError, AlgorithmError, WorkspaceError, ValueError
        As the call itself would.

    Examples
    --------
    >>> p = plan("n8_h56w56_c64_k64_r3s3_p1", direction="weight_grad")
    >>> p.direction, p.flops
    ('weight_grad', 1849688064)
    """
    g = geometry if isinstance(geometry, ConvGeometry) else ConvGeometry.parse(geometry)
    planning.check_direction(direction, "plan")
    planning.check_algorithm(algorithm, "plan")
    if isinstance(g, PoolGeometry):
        if algorithm != "auto":
            raise AlgorithmError(
                f"plan: algorithm={algorithm!r}, but the ways of pooling have no names in calls. Use 'auto'."
            )
        return pooling_plans.plan(g, dtype, device, direction, "plan")
    if direction == "forward" and integers.are_integers(dtype):
        return integers.plan(g, dtype, device, algorithm, max_workspace, "plan")
    return planning.plan(
        g, dtype, device, direction=direction, precision=precision, algorithm=algorithm, max_workspace=max_workspace
    )
