"""The exceptions of gpuconv.

Every message names the function and the argument, the rule, both numbers, and the remedy:

    conv2d: w expects 3 input channels per group, but x has 4 (groups=1). ...

Each class also is the built-in exception one would expect, so that code which knows nothing of gpuconv catches it.
"""


class GeometryError(ValueError):
    """Shapes, pads, strides, dilations or groups that do not fit each other."""


class DTypeError(TypeError):
    """A dtype that gpuconv does not compute in, or arrays of different dtypes."""


class DeviceError(RuntimeError):
    """A device that is not there, or CuPy arrays that live on different devices."""


class AlgorithmError(ValueError):
    """An algorithm asked for by name that does not exist or cannot serve the call."""


class WorkspaceError(MemoryError):
    """Memory: more workspace needed than ``max_workspace`` allows, or than the device has left."""


class KernelError(RuntimeError):
    """A CUDA kernel that could not be found, compiled or launched.

    Attributes
    ----------
    kernel, file : str
        Its name, and the file it stands in; empty where there is none to blame.
    options : tuple of str
        What the compiler was told.
    log : str
        What the compiler said.
    """

    def __init__(
        self, message: str, *, kernel: str = "", file: str = "", options: tuple[str, ...] = (), log: str = ""
    ) -> None:
        super().__init__(message)
        self.kernel, self.file, self.options, self.log = kernel, file, options, log
