"""The loader of the kernels: what the compiler gets, and what a launch refuses before a GPU would misread it."""

import threading
import time
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from nvrtc_here import needs_nvrtc

from gpuconv.backend import DTYPES, INTEGERS
from gpuconv.cuda import Launch, Unit, flatten, loader, nvrtc, options
from gpuconv.cuda.signature import signatures
from gpuconv.errors import DeviceError, DTypeError, KernelError

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)

COMMON = """#pragma once
typedef unsigned u32;
struct FastDiv { u32 mul, shift; };
struct Conv {
  int n, c;                // the batch; the channels
  char flag;
  long long strides[2];
  FastDiv by[3], last;
  static const int axes = 3;
  __device__ int axis(int i) const { if (i) { return n; } return c; }
  __device__ int other() const;
  short tail;
};
"""

SCALE = """// Multiplies.
#include "common.cuh"
#include "common.cuh"
/* extern "C" __global__ void commented(int n) {} */
extern "C" __global__ void __launch_bounds__(256, 2)
scale(const T* __restrict__ x,   // may be null
      T* y, const Conv g, const A by, int count, index_t at) {}

extern "C" __global__ void nothing() {}
"""

OWN = """// Numbers from the last to the first.
extern "C" __global__ void own(int* y, int* again) {
  __shared__ int kept[1000];
  kept[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = kept[3 - threadIdx.x];
}
"""


class Array(np.ndarray):
    """An array of the stand-in for CuPy below."""

    number = 0
    device = property(lambda self: SimpleNamespace(id=self.number))
    data = property(lambda self: SimpleNamespace(device_id=self.number))


def on_device(x, device=0):
    x = np.asarray(x).view(Array)
    x.number = device
    return x


class CompileException(Exception):
    pass


class CUDADriverError(Exception):
    pass


class Function:
    max_dynamic_shared_size_bytes = 0

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, grid, block, args, *, shared_mem=0):
        self.calls.append((grid, block, args, shared_mem, self.max_dynamic_shared_size_bytes))


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder of kernels in place of the real one, and no kernel loaded."""
    monkeypatch.setattr(loader, "folder", lambda: tmp_path)
    monkeypatch.setattr(loader, "_ready", {})
    monkeypatch.setattr(loader, "_modules", {})
    (tmp_path / "common.cuh").write_text(COMMON)
    (tmp_path / "scale.cu").write_text(SCALE)
    return tmp_path


@pytest.fixture
def cupy():
    """Stands in for CuPy: remembers what is compiled and launched."""

    class RawModule:
        def __init__(self, *, code, options):
            self.code, self.options = code, options

        def get_function(self, name):
            fake.compiled.append((fake.device, self.options, name))
            time.sleep(fake.seconds)
            if "error" in self.code:
                raise CompileException("scale.cu(7): error: expected a ';'")
            return fake.function(fake.calls)

    fake = ModuleType("fake")
    fake.device, fake.seconds, fake.compiled, fake.calls, fake.function = 0, 0, [], [], Function
    fake.ndarray, fake.RawModule = Array, RawModule
    fake.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: fake.device))
    return fake


def launch(cupy, unit, name, grid, block, args, shared_bytes=0):
    """A launch of which nothing is remembered; x and y, the first two arguments, are arrays."""
    loader.launch(cupy, Launch(unit, name, grid, block, tuple(args[2:]), shared_bytes), *args[:2])


UNIT = Unit("scale.cu", F32, (("INDEX64", 1),))


def conv():
    layout = [("mul", "u4"), ("shift", "u4")]
    fields = [
        ("n", "i4"),
        ("c", "i4"),
        ("flag", "i1"),
        ("strides", "i8", 2),
        ("by", layout, 3),
        ("last", layout),
        ("tail", "i2"),
    ]
    return np.zeros((), np.dtype(fields, align=True))


def arguments(**changes):
    x = on_device(np.zeros((4, 4), F32))
    named = {"x": x, "y": x, "g": conv(), "by": np.float32(2), "count": np.int32(16), "at": np.int64(0), **changes}
    return list(named.values())


# ------------------------------------------------------------------------------------------------ the text


def test_flatten_pastes_each_file_once_and_says_whence(kernels):
    lines = flatten("scale.cu").splitlines()
    assert lines[:3] == ['#line 1 "scale.cu"', "// Multiplies.", '#line 1 "common.cuh"']
    assert lines.count("struct FastDiv { u32 mul, shift; };") == 1
    assert not any("include" in line or "pragma" in line for line in lines)
    back = lines.index('#line 3 "scale.cu"')
    assert lines[back + 1] == ""  # the second #include
    assert lines[back + 2] == SCALE.splitlines()[3]


def test_every_line_of_a_flattened_text_is_where_it_says(kernels):
    (kernels / "deep.cuh").write_text('#include "common.cuh"\nint deep;\n#include "common.cuh"\nint deeper;')
    (kernels / "all.cu").write_text(
        'int a;\n#include "deep.cuh"\n  #  include "common.cuh"\nint b;\n#include "deep.cuh"\n'
    )
    file, number, seen = "", 0, set()
    for line in flatten("all.cu").splitlines():
        if line.startswith("#line"):
            _, number, file = line.split()
            file, number = file.strip('"'), int(number)
            continue
        original = (kernels / file).read_text().splitlines()[number - 1]
        assert line in (original, "")
        assert line == original or original.lstrip().startswith("#")
        seen.add((file, number))
        number += 1
    assert {("all.cu", 4), ("deep.cuh", 2), ("deep.cuh", 4), ("common.cuh", 12)} <= seen


def test_flatten_refuses_a_missing_file(kernels):
    (kernels / "lost.cu").write_text('#include "no_such.cuh"\n')
    with pytest.raises(KernelError, match=r"no_such\.cuh cannot be read among the kernels in .*Reinstall") as caught:
        flatten("lost.cu")
    assert caught.value.file == "no_such.cuh"


@pytest.mark.parametrize("header", ["<cuda_fp16.h>", "HEADER"])
def test_flatten_refuses_the_toolkits_headers(kernels, header):
    (kernels / "half.cu").write_text(f"int a;\n#include {header}\n")
    with pytest.raises(KernelError, match=r"half\.cu, line 2: #include .*Include only files of the folder"):
        flatten("half.cu")


def test_the_folder_has_kernels():
    assert (loader.folder() / "conv.cuh").is_file()


def test_options():
    for code, name in enumerate((*DTYPES, *INTEGERS)):
        dtype = BF16 if name == "bfloat16" else np.dtype(name)
        assert options(Unit("a.cu", dtype)) == ("-std=c++17", f"-DDTYPE={code}")
    assert options(UNIT) == ("-std=c++17", "-DDTYPE=2", "-DINDEX64=1")
    with pytest.raises(DTypeError, match=r"a\.cu: there are no kernels for uint32, only for float16"):
        options(Unit("a.cu", np.dtype(np.uint32)))


def test_a_unit_prints_and_is_a_key():
    assert str(UNIT) == "scale.cu float32 INDEX64=1"
    again = Unit("scale.cu", F32, (("INDEX64", 1),))
    assert again == UNIT
    assert hash(again) == hash(UNIT)
    assert Unit("scale.cu", F32) != UNIT


# ------------------------------------------------------------------------------------------------ signatures


def test_the_parameters_of_a_kernel(kernels):
    found = signatures(flatten("scale.cu"), loader.types(Unit("scale.cu", BF16)))
    assert list(found) == ["scale", "nothing"]
    assert found["nothing"] == ()
    assert [(p.kind, p.dtype) for p in found["scale"]] == [
        ("array", BF16),
        ("array", BF16),
        ("struct", conv().dtype),
        ("number", F32),
        ("number", np.dtype(np.int32)),
        ("number", np.dtype(np.int32)),
    ]
    assert found["scale"][0].text == "const T* __restrict__ x"


@pytest.mark.parametrize(
    ("declared", "dtype"),
    [
        ("unsigned long long n", "u8"),
        ("const  unsigned\nn", "u4"),
        ("const unsigned char* __restrict__ n", "u1"),
        ("double*n", "f8"),
        ("u32 n", "u4"),
        ("Alias *n", "i2"),
        ("const c64* n", "c8"),
        ("R n", "f8"),
        ("bool n", "?"),
        ("const FastDiv n", [("mul", "u4"), ("shift", "u4")]),
    ],
)
def test_types_of_parameters(declared, dtype):
    text = COMMON + f'using Alias = short;\nextern "C" __global__ void f({declared}) {{}}'
    ((parameter,),) = signatures(text, loader.types(Unit("a.cu", np.dtype(np.complex128)))).values()
    assert parameter.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("long n", "type of its parameter `long n` is not known"),
        ("T** x", r"`T\*\* x`"),
        ("int sizes[3]", r"`int sizes\[3\]`"),
        ("void* x", r"`void\* x`"),
        ("Missing g", "`Missing g`"),
        ("Twice n", "`Twice n`"),
        ("Odd g", "`Odd g`"),
        ("T x", "is passed by value, but bfloat16 cannot"),
    ],
)
def test_parameters_that_cannot_be_checked_are_refused(declared, words):
    text = (
        "#if DTYPE\ntypedef float Twice;\n#else\ntypedef double Twice;\n#endif\nstruct Odd { Missing a; };\n"
        f'extern "C" __global__ void f({declared}) {{}}'
    )
    with pytest.raises(KernelError, match=f"^f: .*{words}"):
        signatures(text, loader.types(Unit("a.cu", BF16)))


def test_a_kernel_declared_twice_and_differently_is_refused():
    with pytest.raises(KernelError, match="f is declared twice"):
        signatures('extern "C" __global__ void f(int n) {} extern "C" __global__ void f(float n) {}', {})


@needs_nvrtc
def test_structs_are_laid_out_as_the_compiler_does():
    text = (
        COMMON + "struct alignas(16) Wide { float x, y, z; FastDiv d; };\nstruct Holder { bool b; Wide w[2]; char c; };"
    )
    kernel = 'extern "C" __global__ void f(const Conv a, const Wide b, const Holder c) {}'
    for parameter in signatures(text + kernel, {})["f"]:
        name = parameter.text.split()[1]
        text += f"static_assert(sizeof({name}) == {parameter.dtype.itemsize});\n"
        for field, (_, offset) in parameter.dtype.fields.items():
            text += f"static_assert(__INTADDR__(&((({name}*)0)->{field})) == {offset});\n"
    nvrtc.compile_ptx(text + kernel, ("-std=c++17",), "sm_80")
    with pytest.raises(KernelError, match="static assertion failed"):
        nvrtc.compile_ptx(text + kernel + "static_assert(sizeof(Conv) == 63);", ("-std=c++17",), "sm_80")


# ------------------------------------------------------------------------------------------------ launches


def test_launch_hands_all_of_it_over(kernels, cupy):
    args = arguments()
    launch(cupy, UNIT, "scale", (3, 2), (32, 8), args, shared_bytes=512)
    ((grid, block, given, shared, limit),) = cupy.calls
    assert (grid, block, shared, limit) == ((3, 2), (32, 8), 512, 512)
    assert all(a is b for a, b in zip(given[:2] + given[3:], args[:2] + args[3:], strict=True))
    assert isinstance(given, tuple)


def test_structs_are_handed_over_as_bytes(kernels, cupy):
    """CuPy has their fields described to itself, which takes longer than the launch."""
    g = conv()
    g["n"] = 7
    launch(cupy, UNIT, "scale", (1,), (1,), arguments(g=g))
    passed = cupy.calls[0][2][2]
    assert (passed.dtype, passed.tobytes()) == (np.dtype("V72"), g.tobytes())
    assert len(passed.__array_interface__["descr"]) == 1
    assert np.shares_memory(passed, g)


def test_a_launch_that_is_kept_is_made_ready_once_a_device(kernels, cupy, monkeypatch):
    """Its arrays are checked each time, since they differ; the others are checked once."""
    asked = []
    plain = loader._Kernel.numbers_and_structs
    monkeypatch.setattr(loader._Kernel, "numbers_and_structs", lambda *args: asked.append(1) or plain(*args))
    kept = Launch(UNIT, "scale", (1,), (1,), tuple(arguments()[2:]))
    for cupy.device in (0, 1, 0, 1):
        x = on_device(np.zeros(4, F32), cupy.device)
        loader.launch(cupy, kept, x, x)
        with pytest.raises(DeviceError, match=f"current device, cuda:{cupy.device}, not on cuda:{1 - cupy.device}"):
            loader.launch(cupy, kept, x, on_device(x, 1 - cupy.device))
        with pytest.raises(DTypeError, match=r"an array of float32, not of float64"):
            loader.launch(cupy, kept, x, on_device(np.zeros(4), cupy.device))
        with pytest.raises(TypeError, match=r"takes 2 arrays, 6 arguments .* but 1 arrays were given"):
            loader.launch(cupy, kept, x)
    assert (len(asked), len(cupy.calls), len(cupy.compiled)) == (2, 4, 2)
    monkeypatch.setattr(loader, "_ready", {})
    other = ModuleType("another")
    vars(other).update({**vars(cupy), "calls": []}, cuda=cupy.cuda)
    loader.launch(other, kept, x, x)
    assert len(asked) == 3


def test_null_pointers(kernels, cupy):
    launch(cupy, UNIT, "scale", (1,), (1,), arguments(x=None))
    passed = cupy.calls[0][2][0]
    assert (type(passed), passed) == (np.uintp, 0)


def test_compiles_once_a_device(kernels, cupy):
    for device in (0, 1, 0, 1):
        cupy.device = device
        x = on_device(np.zeros(4, F32), device)
        launch(cupy, UNIT, "scale", (1,), (1,), arguments(x=x, y=x))
    told = ("-std=c++17", "-DDTYPE=2", "-DINDEX64=1")
    assert cupy.compiled == [(0, told, "scale"), (1, told, "scale")]
    assert len(cupy.calls) == 4


def test_nothing_is_launched_for_an_empty_grid(kernels, cupy):
    launch(cupy, UNIT, "nothing", (4, 0), (32,), ())
    assert cupy.calls == []


def test_shared_memory_is_asked_for_and_never_taken_back(kernels, cupy):
    for shared in (0, 512, 60_000, 50_000, 70_000):
        launch(cupy, UNIT, "nothing", (1,), (32,), (), shared)
    assert [call[3:] for call in cupy.calls] == [
        (0, 0), (512, 512), (60_000, 60_000), (50_000, 60_000), (70_000, 70_000),
    ]  # fmt: skip


@pytest.mark.emulated
def test_a_kernels_own_shared_memory_counts(kernels, double, emulated):
    """Together with 48 KB of the launch, which need no asking by themselves."""
    (kernels / "own.cu").write_text(OWN)
    y = double.zeros(4, np.int32)
    for shared in (16, 48 * 1024, 100 * 1024):
        launch(double, Unit("own.cu", F32), "own", (1,), (4,), (y, y), shared)
        assert y.get().tolist() == [3, 2, 1, 0]
    with pytest.raises(KernelError, match=r"with grid \(1,\), block \(4,\), 166912 bytes of shared .*INVALID_VALUE"):
        launch(double, Unit("own.cu", F32), "own", (1,), (4,), (y, None), 163 * 1024)


def test_threads_do_not_take_shared_memory_back_from_each_other(kernels, cupy):
    launch(cupy, UNIT, "nothing", (1,), (32,), ())
    late = threading.Thread(target=launch, args=(cupy, UNIT, "nothing", (1,), (32,), (), 60_000))
    with loader._lock:
        late.start()  # sees that 60,000 bytes are too many, and waits for the lock
        time.sleep(0.1)
        launch(cupy, UNIT, "nothing", (1,), (32,), (), 70_000)
    late.join()
    assert [call[3:] for call in cupy.calls[1:]] == [(70_000, 70_000), (60_000, 70_000)]


def test_threads_compile_once(kernels, cupy):
    cupy.seconds = 0.05
    start = threading.Barrier(8)

    def one():
        start.wait()
        launch(cupy, UNIT, "scale", (1,), (1,), arguments())

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cupy.compiled) == 1
    assert len(cupy.calls) == 8


def test_a_compiler_error_tells_kernel_file_options_and_log(kernels, cupy):
    (kernels / "scale.cu").write_text(SCALE + "error")
    for _ in range(2):  # it is not remembered as loaded
        with pytest.raises(
            KernelError, match=r"^scale \(scale\.cu float32 INDEX64=1\) could not be compiled"
        ) as caught:
            launch(cupy, UNIT, "scale", (1,), (1,), arguments())
    error = caught.value
    assert (error.kernel, error.file, error.options) == ("scale", "scale.cu", options(UNIT))
    assert error.log == "scale.cu(7): error: expected a ';'"
    assert error.log in str(error)
    assert "-DDTYPE=2" in str(error)
    assert isinstance(error.__cause__, CompileException)


def test_running_out_of_memory_while_loading_stays_what_it_is(kernels, cupy):
    def fails(calls):
        raise MemoryError

    cupy.function = fails
    with pytest.raises(MemoryError):
        launch(cupy, UNIT, "nothing", (1,), (1,), ())


def test_a_kernel_that_is_not_there(kernels, cupy):
    with pytest.raises(KernelError, match=r"scale\.cu declares no kernel 'scales'; it has scale, nothing\.") as caught:
        launch(cupy, UNIT, "scales", (1,), (1,), ())
    assert (caught.value.kernel, caught.value.file) == ("scales", "scale.cu")
    assert cupy.compiled == []


def test_a_launch_that_the_device_refuses(kernels, cupy):
    class Refuses(Function):
        def __call__(self, *args, **keywords):
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")

    cupy.function = Refuses
    with pytest.raises(KernelError, match=r"with grid \(1,\), block \(2048,\), 0 bytes .*INVALID_VALUE") as caught:
        launch(cupy, UNIT, "nothing", (1,), (2048,), ())
    assert (caught.value.kernel, caught.value.file) == ("nothing", "scale.cu")


def test_other_errors_of_a_launch_pass(kernels, cupy):
    class Breaks(Function):
        def __call__(self, *args, **keywords):
            raise ZeroDivisionError

    cupy.function = Breaks
    with pytest.raises(ZeroDivisionError):
        launch(cupy, UNIT, "nothing", (1,), (1,), ())


WRONG = {
    "a NumPy array for a pointer": (
        "x",
        np.zeros(4, F32),
        TypeError,
        r"1, `const T\* __restrict__ x`, .*numpy.ndarray",
    ),
    "an int for a pointer": ("x", 4096, TypeError, r"a device array or None, but this is 4096 \(int\)"),
    "another dtype": ("y", on_device(np.zeros(4)), DTypeError, "2, .* an array of float32, not of float64"),
    "raw bits for T": ("y", on_device(np.zeros(4, np.uint32)), DTypeError, "not of uint32"),
    "another device": ("x", on_device(np.zeros(4, F32), 1), DeviceError, "the current device, cuda:0, not on cuda:1"),
    "strides": ("x", on_device(np.zeros((4, 4), F32)[:, ::2]), KernelError, r"C-contiguous .*\(4, 2\) .*\(16, 8\)"),
    "Fortran order": ("x", on_device(np.zeros((4, 4), F32, order="F")), KernelError, "C-contiguous"),
    "an int for a number": (
        "count",
        16,
        TypeError,
        r"5, `int count`, .* int32, but this is 16 \(int\)\. Write np\.int32",
    ),
    "a float for a number": ("by", 2.0, TypeError, r"4, `const A by`, takes a NumPy float32, but this is 2\.0"),
    "a wide number": ("count", np.int64(16), TypeError, r"int32, but this is np\.int64\(16\)"),
    "a narrow number": ("at", np.int32(16), TypeError, r"int64, but this is np\.int32\(16\)"),
    "an unsigned number": ("count", np.uint32(16), TypeError, "takes a NumPy int32"),
    "a 0-d array for a number": ("count", np.array(16, np.int32), TypeError, "takes a NumPy int32"),
    "None for a number": ("count", None, TypeError, "takes a NumPy int32"),
    "None for a struct": ("g", None, TypeError, "takes a 0-d structured array"),
    "a number for a struct": ("g", np.int64(0), TypeError, "takes a 0-d structured array"),
    "a plain array for a struct": ("g", np.array(3), TypeError, "takes a 0-d structured array"),
    "several structs": ("g", np.zeros(1, conv().dtype), TypeError, "takes a 0-d structured array"),
    "a packed struct": ("g", np.zeros((), [("n", "i4")]), TypeError, "`const Conv g`, has 72 bytes .* has 4"),
    "a device array for a struct": ("g", on_device(np.zeros((), [("n", "i4")])), TypeError, "72 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_in_words(kernels, cupy, case):
    name, value, error, words = WRONG[case]
    for _ in range(2):
        with pytest.raises(error, match=rf"^scale \(scale\.cu float32 INDEX64=1\): argument .*{words}"):
            launch(cupy, UNIT, "scale", (1,), (1,), arguments(**{name: value}))
    assert cupy.calls == []
    launch(cupy, UNIT, "scale", (1,), (1,), arguments())


def test_a_struct_with_fields_of_other_names_or_order_is_refused(kernels, cupy):
    right = conv().dtype
    renamed = np.dtype({**_layout(right), "names": ["c", "n", *right.names[2:]]})
    with pytest.raises(TypeError, match=r"has 72 bytes as .* but the array has 72 as"):
        launch(cupy, UNIT, "scale", (1,), (1,), arguments(g=np.zeros((), renamed)))


def _layout(dtype):
    fields = dtype.fields
    return {
        "names": dtype.names,
        "formats": [fields[name][0] for name in dtype.names],
        "offsets": [fields[name][1] for name in dtype.names],
        "itemsize": dtype.itemsize,
    }


@pytest.mark.parametrize("count", [0, 5, 7])
def test_the_number_of_arguments(kernels, cupy, count):
    given = f"{count - 2} others" if count else "0 others"
    with pytest.raises(TypeError, match=rf"takes 2 arrays, 6 arguments in all \(const T.* at\), but {given} were"):
        launch(cupy, UNIT, "scale", (1,), (1,), [*arguments(), None][:count])


def test_numbers_of_every_spelling_of_a_type(kernels, cupy):
    for kind in {np.int64, np.longlong, np.intp}:
        launch(cupy, UNIT, "scale", (1,), (1,), arguments(at=kind(3)))
    assert cupy.calls
