"""The exceptions of gpuconv.

Every message names the function and the argument, the rule, both numbers, and the remedy:

    conv2d: w expects 3 input channels per group, but x has 4 (groups=1). ...

Each class is also the built-in exception that one would expect, so that code that knows nothing of gpuconv catches it.
"""


class GeometryError(ValueError):
    """Shapes, pads, strides, dilations or groups that do not fit each other."""


class DTypeError(TypeError):
    """A dtype that gpuconv does not compute in, or arrays of different dtypes."""


class DeviceError(RuntimeError):
    """A device that does not exist, or CuPy arrays on different devices."""


class AlgorithmError(ValueError):
    """An algorithm asked for by name that does not exist or cannot serve the call."""


class WorkspaceError(MemoryError):
    """More workspace needed than ``max_workspace`` allows, or more memory than the device has left."""


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
    """

    def __init__(
        self, message: str, *, kernel: str = "", file: str = "", options: tuple[str, ...] = (), log: str = ""
    ) -> None:
        super().__init__(message)
        self.kernel, self.file, self.options, self.log = kernel, file, options, log
