"""The exceptions of gpuconv.

Every message names the function and the argument, the rule, both numbers, and the remedy:

    conv2d: w expects 3 input channels per group, but x has 4 (groups=1). ...

Each class is also the built-in exception that one would expect, so that code that knows nothing of gpuconv catches it.
"""


class GeometryError(ValueError):
    """Shapes, pads, strides, dilations or groups that do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> gpuconv.conv1d(np.ones((1, 3, 2)), np.ones((5, 2, 1)))
    Traceback (most recent call last):
        ...
    gpuconv.errors.GeometryError: conv1d: the kernel spans 5 along w (kernel 5, dilation 1), but ...
    """


class DTypeError(TypeError):
    """A dtype that gpuconv does not compute in, or arrays of different dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> gpuconv.conv1d(np.ones((1, 9, 2), "float32"), np.ones((5, 2, 1)))
    Traceback (most recent call last):
        ...
    gpuconv.errors.DTypeError: conv1d: the arrays must share one dtype: x is float32, w is float64. ...
    """


class DeviceError(RuntimeError):
    """A device that does not exist, or CuPy arrays on different devices.

    Examples
    --------
    >>> import gpuconv
    >>> gpuconv.plan("n1_w9_c2_k1_s5", device="tpu")
    Traceback (most recent call last):
        ...
    gpuconv.errors.DeviceError: plan: device='tpu' is neither 'cpu' nor 'cuda' nor 'cuda:<number>'.
    """


class AlgorithmError(ValueError):
    """An algorithm asked for by name that does not exist or cannot serve the call.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> gpuconv.conv1d(np.ones((1, 9, 2)), np.ones((5, 2, 1)), algorithm="winograd")
    Traceback (most recent call last):
        ...
    gpuconv.errors.AlgorithmError: conv1d: algorithm='winograd' does not support n1_w9_c2_k1_s5: kernel (5,), ...
    """


class WorkspaceError(MemoryError):
    """More workspace needed than ``max_workspace`` allows, or more memory than the device has left.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuconv
    >>> gpuconv.conv1d(np.ones((1, 99, 2)), np.ones((5, 2, 1)), algorithm="fft", max_workspace=10)
    Traceback (most recent call last):
        ...
    gpuconv.errors.WorkspaceError: conv1d: algorithm='fft' needs ... bytes of workspace for n1_w99_c2_k1_s5, but ...
    """


class KernelError(RuntimeError):
    """A CUDA kernel that could not be found, compiled or launched.

    Attributes
    ----------
    kernel, file : str
        The name of the kernel and its file; empty where no kernel is at fault.
    options : tuple of str
        The options of the compiler.
    log : str
        The output of the compiler.

    Examples
    --------
    >>> import gpuconv
    >>> gpuconv.cuda.flatten("gone.cu")
    Traceback (most recent call last):
        ...
    gpuconv.errors.KernelError: gone.cu cannot be read among the kernels in ...
    """

    def __init__(
        self, message: str, *, kernel: str = "", file: str = "", options: tuple[str, ...] = (), log: str = ""
    ) -> None:
        super().__init__(message)
        self.kernel, self.file, self.options, self.log = kernel, file, options, log
