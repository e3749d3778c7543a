"""`Module`: the kernels of one CUDA text, run on the CPU."""

import threading

from . import launcher, source
from .build import unavailable
from .launcher import ASYNC_COPIES, BOUNDS, COUNT, MMA_ROUNDING, ORDERS, RACES, SHARED_BYTES, UNWRITTEN, Library
from .traffic import Traffic

DOUBLES = ("f8", "c16")
"""The types of arrays and numbers that are computed with in float64, as a signature has them."""

_libraries: dict[tuple, Library] = {}
_lock = threading.Lock()


def load(tier: str, text: str, options: tuple[str, ...], *, check: bool, ubsan: bool, arch: int) -> Library:
    """The library of a text, compiled and loaded at most once in a process."""
    key = (tier, text, options, check, ubsan, arch)
    with _lock:
        if key not in _libraries:
            if tier == "source":
                path = source.build_module(text, options, check=check, ubsan=ubsan, arch=arch)
            elif tier == "ptx":
                from . import ptx

                path = ptx.build_module(text, options, check=check, arch=arch)
            else:
                raise ValueError(f"tier must be 'source' or 'ptx', not {tier!r}")
            _libraries[key] = Library(path)
        return _libraries[key]


class Module:
    """The kernels of a CUDA text.

    `text` is what CuPy's RawModule would get, with every include pasted and `#line N "file"` where a file begins.
    tier="source" compiles the text itself as C++; tier="ptx" compiles it with NVRTC and runs the PTX.
    check=True looks for accesses out of bounds, races, reads of shared memory that nobody wrote. ubsan=True looks for
    overflow of signed integers and the like (source tier). `order` is that in which threads run between barriers, and
    `async_copies` when cp.async delivers; `mma_rounding` is how tensor cores add up. `ftz` flushes
    denormal numbers of float32, as CuPy compiles. `arch` is 80 for sm_80.
    count_traffic=True (PTX tier) fills `traffic`.
    """

    def __init__(
        self,
        text: str,
        options: tuple[str, ...] = (),
        *,
        tier: str = "source",
        check: bool = False,
        ubsan: bool = False,
        order: str = "random",
        seed: int = 0,
        async_copies: str = "late",
        arch: int = 80,
        count_traffic: bool = False,
        slide: str = "end",
        mma_rounding: str = "nearest",
        ftz: bool = True,
    ):
        if (why := unavailable()) is not None:
            raise RuntimeError(why)
        if count_traffic and tier != "ptx":
            raise ValueError("count_traffic needs tier='ptx': only there an access is what the GPU would do")
        if tier == "ptx" and not ftz:
            raise ValueError("ftz=False needs tier='source': NVRTC is told -ftz=true, as CuPy tells it")
        self.tier, self.flush = tier, ftz and tier == "source"
        self.checks = (BOUNDS | RACES | UNWRITTEN if check else 0) | (COUNT if count_traffic else 0)
        self.order, self.async_copies = ORDERS[order], ASYNC_COPIES[async_copies]
        self.seed, self.slide = seed, {"end": 0, "begin": 1}[slide]
        self.mma_rounding = MMA_ROUNDING[mma_rounding]
        self.library = load(tier, text, tuple(options), check=check, ubsan=ubsan, arch=arch)
        self.last = None  # the record of the last launch: switches, barriers, collectives, static_bytes

    @property
    def traffic(self) -> Traffic:
        """What the memory accesses of the last launch would cost a GPU, a source line at a time."""
        if self.last is None or self.last.traffic is None:
            raise ValueError("traffic is known after a launch with count_traffic=True")
        return self.last.traffic

    def signature(self, name: str) -> tuple[str, ...]:
        """The parameters of a kernel as tokens: `Cf4` is const float*, `i4` int, `s72` a struct of 72 bytes."""
        return self.library.kernel(name).signature

    def launch(self, name: str, grid, block, args, shared_bytes: int = 0, shared_limit: int = SHARED_BYTES) -> None:
        """Runs a kernel. Arrays are changed in place; other arguments are numpy scalars and structured 0-d arrays.

        A block may have `shared_limit` bytes of shared memory, its own and `shared_bytes` together.
        """
        kernel = self.library.kernel(name)
        # The host's switch is one for floats and doubles, and nobody flushes doubles.
        doubles = any(token.lstrip("C") in DOUBLES for token in kernel.signature)
        self.last = launcher.launch(
            kernel, grid, block, args, int(shared_bytes), shared_limit,
            order=self.order, seed=self.seed, async_copies=self.async_copies, checks=self.checks, slide=self.slide,
            mma_rounding=self.mma_rounding, flush=int(self.flush and not doubles),
        )  # fmt: skip
