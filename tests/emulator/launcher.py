"""Launches the kernels of a loaded module: checks and packs arguments, calls the runtime, explains faults."""

import ctypes
import functools
import os
import re
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np

from . import build, traffic

BOUNDS, RACES, UNWRITTEN, COUNT = 1, 2, 4, 8
ORDERS = {"up": 0, "down": 1, "random": 2}
ASYNC_COPIES = {"issue": 0, "late": 1, "random": 2}
MMA_ROUNDING = {"nearest": 0, "zero": 1, "hopper": 2}
MESSAGE_BYTES = 2048
SHARED_BYTES = 227 * 1024  # the most that a block has on any device


class KernelFault(RuntimeError):
    """A kernel did what it must not do."""


class SharedMemoryFault(KernelFault):
    """The kernel's own shared memory and that of the launch are together more than a block may have."""


class Index3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class KernelRecord(ctypes.Structure):
    """`emulator::Kernel` of runtime.h."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("signature", ctypes.c_char_p),
        ("max_threads", ctypes.c_uint),
        ("image_begin", ctypes.c_void_p),
        ("image_end", ctypes.c_void_p),
    )


class LaunchRecord(ctypes.Structure):
    """`emulator::Launch` of runtime.h."""

    _fields_ = (
        ("grid", Index3),
        ("block", Index3),
        ("shared_bytes", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("async_copies", ctypes.c_int),
        ("checks", ctypes.c_int),
        ("buffer_count", ctypes.c_int),
        ("argument_count", ctypes.c_int),
        ("slide", ctypes.c_int),
        ("mma_rounding", ctypes.c_int),
        ("flush", ctypes.c_int),
        ("buffers", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("message", ctypes.c_void_p),
        ("message_bytes", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
        ("collectives", ctypes.c_uint64),
        ("seconds", ctypes.c_uint64),
        ("shared_limit", ctypes.c_uint),
        ("static_bytes", ctypes.c_uint),
    )


BUFFER = struct.Struct("QQiiQ")  # emulator::Buffer: host, bytes, writable, argument, device
ARGUMENT = struct.Struct("QqQ")  # emulator::Argument: value, buffer, offset

# The runtime runs one launch at a time: its fibers share one thread, one shared memory and the signal handlers.
one_at_a_time = threading.Lock()


@functools.cache
def runtime() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.runtime()))
    library.emulator_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


class Kernel:
    """One kernel of a loaded module."""

    def __init__(self, name: str, record: KernelRecord):
        self.name = name
        self.address = ctypes.addressof(record)
        self.record = record  # keeps the module loaded
        self.signature = tuple(record.signature.decode().split())
        self.max_threads = record.max_threads


class Library:
    """The shared object of a module."""

    def __init__(self, path: Path):
        runtime()
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        if name not in self.kernels:
            try:
                record = KernelRecord.in_dll(self.library, f"emulator_kernel_{name}")
            except ValueError:
                raise ValueError(f'the module has no kernel {name!r} (extern "C" __global__ void {name})') from None
            self.kernels[name] = Kernel(name, record)
        return self.kernels[name]


def kind_of(dtype: np.dtype) -> str:
    """The token of a signature for an array of that dtype, or a scalar."""
    kind = dtype.kind
    if kind == "V":
        kind = "s" if is_struct(dtype) else "u"  # bfloat16 of ml_dtypes travels as u16 bits
    return f"{'s' if kind == 'c' else kind}{dtype.itemsize}"


def is_struct(dtype: np.dtype) -> bool:
    """Whether a dtype has fields, or is nothing but a number of bytes."""
    return issubclass(dtype.type, np.void)


def pointer_fits(token: str, dtype: np.dtype) -> bool:
    """Whether an array may be given for a pointer to `token`."""
    if token[0] == "?" or token == "u1":  # void, or not known; raw bytes
        return True
    kind, size = token[0], int(token[1:])
    if kind == "s":  # float4 takes float32, a complex struct complex64
        return size % dtype.itemsize == 0
    if token == "u2" and dtype.itemsize == 2:  # float16 and bfloat16 travel as bits
        return True
    return kind_of(dtype) == token


class Pack:
    """The arguments of one launch in the form of the runtime."""

    def __init__(self, kernel: Kernel, args: tuple):
        self.kernel = kernel
        self.values = bytearray()
        self.parts: list[tuple] = []  # (value offset, None) or (None, (address, array))
        self.arrays: list[tuple[int, int, bool, int]] = []  # begin, end, writable, argument
        if len(args) != len(kernel.signature):
            raise TypeError(f"{kernel.name} takes {len(kernel.signature)} arguments, {len(args)} were given")
        for position, (token, value) in enumerate(zip(kernel.signature, args, strict=True)):
            self.add(position, token, value)

    def refuse(self, position: int, token: str, what: str) -> None:
        raise TypeError(f"{self.kernel.name}: argument {position} is {what} where the kernel takes {in_words(token)}")

    def add(self, position: int, token: str, value: object) -> None:
        pointer = token[0] in "PC"
        if value is None:
            if not pointer and token != "?8":
                self.refuse(position, token, "None")
            self.add_value(bytes(8))
        elif pointer and isinstance(value, np.uintp):
            self.add_value(value.tobytes())  # an address, as CuPy takes one
        elif isinstance(value, np.ndarray) and (value.ndim or not is_struct(value.dtype)):
            if not pointer and token != "?8":
                self.refuse(position, token, f"an array of {value.dtype}")
            if pointer and not pointer_fits(token[1:], value.dtype):
                self.refuse(position, token, f"an array of {value.dtype}")
            self.add_array(value)
        elif isinstance(value, (np.generic, np.ndarray)):
            kind = kind_of(value.dtype)
            if pointer or (kind != token and token != f"?{value.dtype.itemsize}" and not same_bits(kind, token)):
                self.refuse(
                    position,
                    token,
                    f"a struct of {value.dtype.itemsize} bytes"
                    if is_struct(value.dtype)
                    else f"a {value.dtype} scalar",
                )
            self.add_value(value.tobytes())
        else:
            self.refuse(position, token, f"a {type(value).__name__} (not a numpy scalar or array)")

    def add_value(self, data: bytes) -> None:
        self.parts.append((len(self.values), None))
        self.values += data + bytes(-len(data) % 16)

    def add_array(self, array: np.ndarray) -> None:
        begin = array.__array_interface__["data"][0]
        low, high = (begin, begin + array.nbytes) if array.flags.forc else np.lib.array_utils.byte_bounds(array)
        self.parts.append((None, begin))
        if high > low:
            self.arrays.append((low, high, array.flags.writeable, len(self.parts) - 1))

    def buffers(self) -> list[tuple[int, int, bool, int]]:
        """What must be copied: arrays that overlap share one buffer."""
        merged: list[tuple[int, int, bool, int]] = []
        for low, high, writable, argument in sorted(self.arrays):
            if merged and low < merged[-1][1]:
                begin, end, any_writable, first = merged[-1]
                merged[-1] = (begin, max(end, high), any_writable or writable, min(first, argument))
            else:
                merged.append((low, high, writable, argument))
        return merged

    def records(self):
        """The packed Buffer and Argument records, the values, and how many buffers there are."""
        buffers = self.buffers()
        values = ctypes.create_string_buffer(bytes(self.values), max(len(self.values), 1))
        base = ctypes.addressof(values)
        arguments = bytearray()
        for value, address in self.parts:
            if value is not None:
                arguments += ARGUMENT.pack(base + value, -1, 0)
                continue
            for index, (low, high, *_) in enumerate(buffers):
                if low <= address < high:
                    arguments += ARGUMENT.pack(0, index, address - low)
                    break
            else:
                arguments += ARGUMENT.pack(0, -2, 0)  # an empty array: an address that nothing can be read from
        packed = b"".join(
            BUFFER.pack(low, high - low, writable, argument, 0) for low, high, writable, argument in buffers
        )
        return packed, bytes(arguments), values, len(buffers)


def same_bits(kind: str, token: str) -> bool:
    """Whether a scalar may be given although its kind differs: the bits of a 16-bit float are a u16."""
    return token == "u2" and kind == "f2"


def in_words(token: str) -> str:
    if token[0] in "PC":
        return f"a pointer to {'const ' if token[0] == 'C' else ''}{in_words(token[1:])}"
    names = {"i": "int", "u": "unsigned int", "f": "float", "b": "bool"}
    if token[0] in names:
        return f"{8 * int(token[1:])}-bit {names[token[0]]}"
    return (
        f"a struct of {token[1:]} bytes"
        if token[0] == "s"
        else "anything"
        if token[1:] == "0"
        else f"{token[1:]} bytes"
    )


def three(name: str, what: str, sizes: object) -> tuple[int, int, int]:
    sizes = (sizes,) if isinstance(sizes, (int, np.integer)) else tuple(sizes)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"{name}: {what} {sizes} has {len(sizes)} sizes, CUDA takes 1 to 3")
    return (*(int(size) for size in sizes), 1, 1)[:3]


def check_limits(kernel: Kernel, grid: tuple, block: tuple, shared_bytes: int) -> None:
    """The limits of CUDA for any launch; ValueError names the one that is broken."""
    name = kernel.name
    for what, sizes, limits in (("grid", grid, (2**31 - 1, 65535, 65535)), ("block", block, (1024, 1024, 64))):
        for axis, size, limit in zip("xyz", sizes, limits, strict=True):
            if not 1 <= size <= limit:
                raise ValueError(f"{name}: {what} {sizes}: {axis} must be 1 to {limit}, not {size}")
    threads = block[0] * block[1] * block[2]
    if threads > 1024:
        raise ValueError(f"{name}: block {block} has {threads} threads, CUDA takes up to 1024")
    if not 0 <= shared_bytes <= SHARED_BYTES:
        raise ValueError(f"{name}: {shared_bytes} bytes of dynamic shared memory, a device has up to {SHARED_BYTES}")
    if kernel.max_threads and threads > kernel.max_threads:
        raise KernelFault(
            f"{name}: block {block} has {threads} threads, its __launch_bounds__ allow {kernel.max_threads}"
        )


def launch(
    kernel: Kernel, grid, block, args, shared_bytes=0, shared_limit=SHARED_BYTES, *,
    order, seed, async_copies, checks, slide, mma_rounding, flush,
) -> LaunchRecord:  # fmt: skip
    """Runs a kernel to its end; arrays among `args` are changed in place unless it fails."""
    grid, block = three(kernel.name, "grid", grid), three(kernel.name, "block", block)
    check_limits(kernel, grid, block, shared_bytes)
    pack = Pack(kernel, tuple(args))
    packed_buffers, packed_arguments, _values, count = pack.records()  # the records point into the values
    buffers, arguments = (
        ctypes.create_string_buffer(data, max(len(data), 1)) for data in (packed_buffers, packed_arguments)
    )
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    record = LaunchRecord(
        *(Index3(*grid), Index3(*block), shared_bytes, order, seed, async_copies, checks),
        *(count, len(pack.parts), slide, mma_rounding, flush, ctypes.addressof(buffers), ctypes.addressof(arguments)),
        *(ctypes.addressof(message), MESSAGE_BYTES, 0, 0, 0, seconds_allowed(), shared_limit),
    )
    with one_at_a_time:
        failed = runtime().emulator_launch(kernel.address, ctypes.addressof(record))
        record.traffic = traffic.read(runtime()) if checks & COUNT and not failed else None
    if failed:
        fault = SharedMemoryFault if record.static_bytes + shared_bytes > shared_limit else KernelFault
        raise fault(f"{kernel.name}: {with_lines(message.value.decode(errors='replace'))}")
    return record


def seconds_allowed() -> int:
    """How long a kernel may compute: one that waits for another block, or for itself, would go on for ever."""
    return int(os.environ.get("GPUCONV_EMULATOR_SECONDS", "300"))


def with_lines(message: str) -> str:
    """`{path+0x12}`, an address in the code of a module, as file:line."""
    return re.sub(r"\{([^{}]+)\+0x([0-9a-f]+)\}", lambda match: line_of(match[1], int(match[2], 16)), message)


def line_of(path: str, offset: int) -> str:
    tool = shutil.which("addr2line")
    if tool is None:
        return f"code {offset:#x} (addr2line would say the line)"
    done = subprocess.run([tool, "-e", path, hex(offset)], capture_output=True, text=True, check=False)
    place = done.stdout.strip().split(" ")[0]
    return Path(place).name if place and "?" not in place else f"code {offset:#x}"
