"""What calls really take: of random problems, by every function and algorithm, no more than they say; nothing stays.

Measured is the most that is held at any time during a call, beside arguments and result.
"""

import gc
import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from calls import ALGORITHM_NAMES, channels_first
from campaigns.arrays import ORDERS
from campaigns.configuration import chance, pick, sizes
from cases import DTYPES
from peaks import left_by, peak

import gpuconv
from gpuconv.algorithms import columns
from gpuconv.cpu.amx import why_no_amx
from gpuconv.functions import by_sample
from gpuconv.functions import call as call_module
from gpuconv.planning import as_computed  # the function plan hides the module
from gpuconv.simd import host as compiled_loops

KIB, MIB = 2**10, 2**20

OBJECTS = 64 * KIB
"""What Python's objects take: slices, views and tuples of a call, and lists of free ones of the interpreter."""

NUMPY_BUFFERS = 3 * 8192
"""Elements that NumPy takes by itself where an operation's operands are not walked in one step: 8192 an operand."""

KEPT = 24 * KIB
"""Of a geometry, in all directions, when calls are over: its plans and how it is cut, as README says."""

PASSES = ("forward", "input_grad", "weight_grad", "transposed", "prepared")
NAMES = [name for name in ALGORITHM_NAMES if name not in ("wgmma", "implicit_gemm")]
SMALL = 1 / 64
"""Every element: no sum of products leaves float16."""

ALONG_A_ROW = {"kernel": (2, 5), "stride": (1, 1, 3), "dilation": (1, 1, 2)}
"""Of depthwise convolutions."""

MOST_STEPS = 10**5
"""Operations called one by one from Python: half a second of them."""

CAPS = (None, 2**16, 2**18, 2**20, 2**22)


@pytest.fixture(autouse=True)
def _what_tests_have_left_is_not_collected_again():
    """There are hundreds of collections here, which would take a third of a second each at the end of a long run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["numpy", "compiled"])
def path(request, monkeypatch):
    """By NumPy alone, and by compiled loops where they serve."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled_loops, "_trial", ["is switched off by a test"])
    elif not compiled_loops.numba_is_there():
        pytest.skip("needs Numba")
    return request.param


@pytest.fixture
def problems(monkeypatch):
    """The problems that calls pose, and the algorithms that they choose, as they come.

    With little memory "auto" may choose the for-loops for a problem on which they take a minute: it is refused.
    """
    seen, choose = [], call_module.choose

    def choosing(problem, name, caller):
        algorithm = choose(problem, name, caller)
        if algorithm.cost(problem).steps > MOST_STEPS:
            raise gpuconv.AlgorithmError(f"{caller}: {algorithm.name} would take too long.")
        seen.append((as_computed(problem), algorithm))
        return algorithm

    for module in (call_module, by_sample):
        monkeypatch.setattr(module, "choose", choosing)
    return seen


def peak_of_second(function):
    """As `peak`, without what any first call loads, compiles, and leaves in the interpreter's lists of free objects."""
    gc.collect()
    function()
    return peak(function)


def buffers(dtype, threads=1):
    return threads * NUMPY_BUFFERS * max(4, np.dtype(dtype).itemsize)


def test_the_meter_sees_numpy():
    """A measurement that reads 0 whatever happens would pass every test below."""

    def use_16_mib():
        return (np.ones(MIB) + np.ones(MIB))[:10].copy()

    _, most = peak(use_16_mib)
    assert 16 * MIB <= most <= 17 * MIB


# -------------------------------------------------------------------------------------------------- convolutions


@dataclass(frozen=True)
class Drawn:
    """A call of a convolution. The sizes are those of x and w as they are passed: `c` of x, `k` of the result."""

    which: str
    algorithm: str
    n: int
    spatial: tuple
    c: int
    k: int
    groups: int
    kernel: tuple
    stride: tuple
    dilation: tuple
    pads: tuple
    mode: str
    dtype: str
    layout: str
    precision: str
    orders: tuple
    out: str | None
    bias: bool
    activation: str | None
    threads: int
    cap: int | None
    invariant: bool

    @property
    def ndim(self):
        return len(self.spatial)

    @property
    def out_sizes(self):
        axes = zip(self.spatial, self.kernel, self.stride, self.dilation, self.pads, strict=True)
        if self.which == "transposed":
            return tuple((i - 1) * s + (t - 1) * d + 1 - sum(p) for i, t, s, d, p in axes)
        return tuple((i + sum(p) - (t - 1) * d - 1) // s + 1 for i, t, s, d, p in axes)

    @property
    def macs(self):
        outputs = self.spatial if self.which == "transposed" else self.out_sizes
        return self.n * math.prod(outputs) * math.prod(self.kernel) * self.c // self.groups * self.k

    def call(self):
        """A function without arguments, and the bytes of a result that it makes itself."""
        x, y = (self.n, *self.spatial, self.c), (self.n, *self.out_sizes, self.k)
        w = (*self.kernel, self.c // self.groups, self.k)
        if self.which == "transposed":
            w = (*self.kernel, self.k // self.groups, self.c)
        read, other, made = {"input_grad": (y, w, x), "weight_grad": (x, y, w)}.get(self.which, (x, w, y))
        other_is, made_is = ("x", "w") if self.which == "weight_grad" else ("w", "x")
        dtype, out, room = DTYPES[self.dtype], None, np.empty(0)
        if self.out == "overlapping":
            room = np.empty(max(math.prod(read), math.prod(made)), dtype)
            first = room[: math.prod(read)].reshape(read)
            out = self._placed(room[: math.prod(made)].reshape(made), made_is)
        else:
            first = ORDERS[self.orders[0]](np.full(read, SMALL, dtype))
            if self.out is not None:
                out = self._placed(ORDERS[self.out](np.full(made, SMALL, dtype)), made_is)
        first = self._placed(first, "x")
        second = self._placed(ORDERS[self.orders[1]](np.full(other, SMALL, dtype)), other_is)
        keywords = {"stride": self.stride, "dilation": self.dilation, "pad": self.pads, "groups": self.groups}
        keywords |= {"algorithm": self.algorithm, "precision": self.precision, "layout": self.layout}
        keywords["max_workspace"] = self.cap
        if self.which != "transposed":
            keywords["pad_mode"] = self.mode
        if self.which in ("forward", "transposed", "prepared"):
            keywords |= {"bias": np.ones(self.k, dtype) if self.bias else None, "activation": self.activation}
        own = 0 if out is not None else math.prod(made) * dtype.itemsize
        if self.which == "prepared":
            prepared = gpuconv.prepare(second, first.shape, **keywords)
            return lambda: (room.fill(SMALL), prepared(first, out))[1], own
        sizes = {"input_grad": (self._shape(x),), "weight_grad": (self.kernel,)}.get(self.which, ())
        name = {"forward": "conv{}d", "transposed": "conv_transpose{}d"}.get(self.which, "conv{}d_" + self.which)
        function = getattr(gpuconv, name.format(self.ndim))
        return lambda: (room.fill(SMALL), function(first, second, *sizes, out=out, **keywords))[1], own

    def _placed(self, array, argument):
        return channels_first(array, argument) if self.layout == "channels_first" else array

    def _shape(self, shape):
        return (shape[0], shape[-1], *shape[1:-1]) if self.layout == "channels_first" else shape


def draw(rng, which):
    """A legal one, large enough for a copy of an array to show, or for `loops` small enough to wait for."""
    while True:
        drawn = _draw(rng, which)
        if min(drawn.out_sizes) >= 1 and drawn.macs <= (1e5 if drawn.algorithm == "loops" else 2e7):
            return drawn


def _draw(rng, which):
    algorithm = pick(rng, ("auto", *NAMES))
    ndim = 2 if algorithm.startswith("winograd") else pick(rng, (1, 2, 2, 3))
    least, most = (
        (2, {1: 60, 2: 8, 3: 4}[ndim]) if algorithm == "loops" else {1: (200, 6000), 2: (20, 90), 3: (6, 22)}[ndim]
    )
    one, depthwise, dtype = (1,) * ndim, algorithm == "depthwise" or chance(rng, 0.15), pick(rng, ("float32", *DTYPES))
    groups = pick(rng, (2, 3, 8, 17, 32)) if depthwise else pick(rng, (1, 1, 1, 2, 4))
    pads = tuple(sizes(rng, 2, 0, pick(rng, (3, 3, 30))) for _ in range(ndim))
    orders = [name for name in ORDERS if dtype != "bfloat16" or name != "swapped"]
    drawn = Drawn(
        which,
        algorithm,
        n=pick(rng, (1, 1, 2, 5)),
        spatial=sizes(rng, ndim, least, most),
        c=groups * (1 if depthwise else pick(rng, (1, 3, 4, 8, 16, 24))),
        k=groups * (pick(rng, (1, 1, 2)) if depthwise else pick(rng, (1, 2, 3, 8, 16, 40))),
        groups=groups,
        kernel=sizes(rng, ndim, 1, {1: 15, 2: 7, 3: 4}[ndim]),
        stride=pick(rng, (one, one, sizes(rng, ndim, 1, 4))),
        dilation=pick(rng, (one, one, sizes(rng, ndim, 1, 5))),
        pads=pick(rng, (((0, 0),) * ndim, pads, pads)),
        mode="zeros" if which == "transposed" else pick(rng, ("zeros", "zeros", "reflect", "replicate", "circular")),
        dtype=dtype,
        layout=pick(rng, ("channels_last", "channels_last", "channels_first")),
        precision=pick(rng, ("strict", "fast")),
        orders=(pick(rng, ("C", "C", *orders)), pick(rng, ("C", "C", *orders))),
        out=pick(rng, (None, None, None, "C", "Fortran", "spread", "overlapping")),
        bias=chance(rng, 0.5),
        activation=None if dtype.startswith("complex") else pick(rng, (None, None, "relu", "sigmoid")),
        threads=pick(rng, (1, 1, 3)),
        cap=pick(rng, CAPS),
        invariant=chance(rng, 0.1),
    )
    if depthwise:  # for each of these along a row, and each dtype, loops are compiled
        drawn = replace(
            drawn, **{name: (*getattr(drawn, name)[:-1], pick(rng, few)) for name, few in ALONG_A_ROW.items()}
        )
    return replace(drawn, kernel=(3, 3), stride=one, dilation=one) if algorithm.startswith("winograd") else drawn


@pytest.mark.parametrize("which", PASSES)
def test_a_convolution_takes_what_it_says(path, which, problems, monkeypatch):
    rng, measured = np.random.default_rng(PASSES.index(which)), 0
    while measured < 15:
        drawn = draw(rng, which)
        monkeypatch.setattr(gpuconv.settings, "threads", drawn.threads)
        monkeypatch.setattr(gpuconv.settings, "batch_invariant", drawn.invariant)
        problems.clear()
        try:
            call, own = drawn.call()
            _, most = peak_of_second(call)
        except (gpuconv.AlgorithmError, gpuconv.WorkspaceError):
            continue
        limit = gpuconv.settings.max_workspace if drawn.cap is None else drawn.cap
        if problems:  # what is prepared chooses beforehand
            problem, algorithm = problems[-1]
            said = algorithm.workspace_bytes(problem) + problem.copied
            assert said <= limit, drawn
            limit = said
        assert most - own <= limit + OBJECTS + buffers(drawn.dtype, drawn.threads), drawn
        measured += 1


def test_a_result_that_is_made_elsewhere_is_counted():
    """Where `out` overlaps an argument, on the CPU and on a GPU."""
    x, w = np.full((1, 64, 64, 16), SMALL, np.float32), np.full((3, 3, 16, 16), SMALL, np.float32)
    with pytest.raises(gpuconv.WorkspaceError, match=r"^conv2d: out overlaps.* 262144 bytes.*max_workspace is 200000"):
        gpuconv.conv2d(x, w, pad=1, out=x, max_workspace=200_000)
    want = gpuconv.conv2d(x, w, pad=1)
    assert gpuconv.conv2d(x, w, pad=1, out=x, max_workspace=2 * MIB) is x
    assert np.array_equal(x, want)


@pytest.mark.parametrize("order", ["unaligned", "swapped"])
def test_what_is_no_matrix_to_numpy_is_none_to_gemm(order, problems, monkeypatch):
    """NumPy would multiply copies that nobody counts."""
    monkeypatch.setattr(gpuconv.settings, "threads", 1)
    x, w = ORDERS[order](np.ones((1, 200, 200, 32), np.complex128)), np.ones((1, 1, 32, 8), np.complex128)
    result, most = peak_of_second(partial(gpuconv.conv2d, x, w, algorithm="gemm", max_workspace=8 * MIB))
    problem, algorithm = problems[-1]
    assert most - result.nbytes <= algorithm.workspace_bytes(problem) + OBJECTS + buffers("complex128")


FAR = 30_000_000  # what gemm would take for a padded copy is over max_workspace


@pytest.mark.parametrize("algorithm", ["auto", "loops"])
def test_pads_and_holes_in_the_millions_take_no_memory(path, algorithm):
    """Of windows that see three positions of the input or fewer."""
    x, w = np.ones((1, 8, 2), np.float32), np.ones((3, 2, 2), np.float32)
    keywords = {"pad": FAR, "dilation": FAR, "algorithm": algorithm}
    for call in (
        lambda: gpuconv.conv1d(x, w, **keywords),
        lambda: gpuconv.conv1d(x, w, pad_mode="circular", **keywords),
        lambda: gpuconv.conv1d_input_grad(x, w, x.shape, **keywords),
        lambda: gpuconv.conv1d_weight_grad(x, x, 3, **keywords),
        lambda: gpuconv.im2col(x, 3, pad=FAR, dilation=FAR),
        lambda: gpuconv.col2im(np.ones((8, 6), np.float32), x.shape, 3, pad=FAR, dilation=FAR),
        lambda: gpuconv.col2im(np.ones((8, 6), np.float32), x.shape, 3, pad=FAR, dilation=FAR, method="scatter"),
    ):
        result, most = peak_of_second(call)
        assert most - result.nbytes <= OBJECTS + buffers("float32")


# -------------------------------------------------------------------------------------------------- windows


def draw_windows(rng, largest):
    """x, and the keywords by which windows look at it: some with pads or holes many times as large as x."""
    while True:
        ndim, dtype = pick(rng, (1, 2, 2, 3)), pick(rng, ("float32", "int64", *DTYPES))
        spatial = sizes(rng, ndim, 1, largest[ndim])
        kernel, stride = sizes(rng, ndim, 1, 4), pick(rng, ((1,) * ndim, sizes(rng, ndim, 1, 3)))
        far = pick(rng, (1, 1, 5, 10**6 if ndim == 1 else 10**3))
        dilation = sizes(rng, ndim, far, far)
        pads = tuple((int(rng.integers(0, 3)) + (t - 1) * (far - 1),) * 2 for t in kernel)
        out = tuple(
            (i + sum(p) - (t - 1) * d - 1) // s + 1
            for i, t, s, d, p in zip(spatial, kernel, stride, dilation, pads, strict=True)
        )
        n, c = pick(rng, (1, 2, 3)), pick(rng, (1, 3, 8, 17))
        elements = n * math.prod(out) * math.prod(kernel) * c
        if min(out) >= 1 and 2e4 < elements < 4e6:
            order = pick(rng, [name for name in ORDERS if name != "swapped"])
            x = ORDERS[order](np.ones((n, *spatial, c), DTYPES.get(dtype, np.dtype(dtype))))
            return x, kernel, {"stride": stride, "dilation": dilation, "pad": pads}


@pytest.mark.parametrize("function", ["im2col", "gather", "scatter", "pad"])
def test_columns_and_padding_take_next_to_nothing(function):
    rng = np.random.default_rng(len(function))
    for _ in range(15):
        x, kernel, keywords = draw_windows(rng, {1: 5000, 2: 70, 3: 16})
        limit = columns.BUFFER
        if function == "im2col":
            result, most = peak_of_second(partial(gpuconv.im2col, x, kernel, **keywords))
            limit = max(limit, result[0].nbytes)
        elif function == "pad":
            padding = tuple(int(side) for side in rng.integers(0, 200, 2 * len(kernel)) // len(kernel) ** 3)
            mode = pick(rng, ("zeros", "reflect", "replicate", "circular"))
            (result, _), most = peak_of_second(partial(gpuconv.pad, x, padding, mode=mode))
        else:
            cols = ORDERS[pick(rng, ("C", "Fortran", "spread"))](gpuconv.im2col(x, kernel, **keywords))
            result, most = peak_of_second(partial(gpuconv.col2im, cols, x.shape, kernel, method=function, **keywords))
            limit = max(limit, 4 * cols[0].nbytes)
            if function == "scatter" and x.dtype.itemsize == 2:
                limit += 2 * result[0].nbytes  # the sums of a sample, in float32
        wrong = f"{most - result.nbytes} bytes, {x.shape} {x.dtype} {x.strides} {kernel} {keywords}"
        assert most - result.nbytes <= limit + OBJECTS + buffers(x.dtype), wrong


def draw_pooling(rng, function):
    """A call of a pooling function, large enough for a copy of an array to show."""
    while True:
        n, c = pick(rng, (1, 2, 4)), pick(rng, (1, 3, 8, 16, 33))
        kernel, dilation = sizes(rng, 2, 1, pick(rng, (3, 3, 9))), sizes(rng, 2, 1, pick(rng, (1, 1, 3)))
        dilation = dilation if function.startswith("max") else (1, 1)
        stride, pads = pick(rng, (None, (1, 1), sizes(rng, 2, 1, 4))), tuple(int(rng.integers(0, t)) for t in kernel)
        x = (n, *sizes(rng, 2, 60, 300), c)
        axes = zip(x[1:3], kernel, kernel if stride is None else stride, dilation, pads, strict=True)
        out = tuple((i + 2 * p - (t - 1) * d - 1) // s + 1 for i, t, s, d, p in axes)
        if math.prod(x) < 2e5 or n * math.prod(out) * math.prod(kernel) * c > 2e7:
            continue
        dtype = DTYPES[pick(rng, ("float32", "float32", "float16", "float64"))]
        values = rng.integers(-8, 9, x).astype(dtype)
        dy, x = np.ones((n, *out, c), dtype), ORDERS[pick(rng, ("C", "C", "Fortran", "spread"))](values)
        keywords = {"stride": stride, "pad": pads}
        if function.startswith("max"):
            keywords["dilation"] = dilation
        arrays = {"max_pool2d": (x,), "avg_pool2d": (x,), "max_pool2d_grad": (dy, x), "avg_pool2d_grad": (dy, x.shape)}
        return partial(getattr(gpuconv, function), *arrays[function], kernel, **keywords), dtype


@pytest.mark.parametrize("function", ["max_pool2d", "max_pool2d_grad", "avg_pool2d", "avg_pool2d_grad"])
def test_pooling_stays_under_the_setting(path, function, monkeypatch):
    monkeypatch.setattr(gpuconv.settings, "max_workspace", MIB)
    rng = np.random.default_rng(len(function))
    for _ in range(12):
        threads = pick(rng, (1, 2))
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        call, dtype = draw_pooling(rng, function)
        try:
            result, most = peak_of_second(call)
        except gpuconv.WorkspaceError:
            continue
        assert most - result.nbytes <= MIB + OBJECTS + buffers(dtype, threads), call


# -------------------------------------------------------------------------------------------------- what stays


def _convolutions(i, algorithm):
    """One convolution and both its gradients, of a size that no other number has."""
    depthwise = algorithm == "depthwise"
    x, w = np.ones((1, 12 + i % 20, 12 + i // 20, 8), np.float32), np.ones((3, 3, 1 if depthwise else 8, 8), np.float32)
    keywords = {"pad": 1, "groups": 8 if depthwise else 1, "algorithm": algorithm}
    y = gpuconv.conv2d(x, w, **keywords)
    gpuconv.conv2d_input_grad(y, w, x.shape, **keywords)
    gpuconv.conv2d_weight_grad(x, y, 3, **keywords)


def _strided(i):
    """Input gradients of many parts."""
    w = np.ones((9, 9, 4, 8), np.float32)
    g = gpuconv.ConvGeometry.create(1, (20 + i % 20, 20 + i // 20), 4, 8, (9, 9), 1 + i % 9, 4, 1 + i % 2)
    gpuconv.conv2d_input_grad(np.ones(g.y_shape, np.float32), w, g.x_shape, stride=g.stride, pad=4, dilation=g.dilation)


def _long(i):
    """Long axes, long pads."""
    x, w = np.ones((1, 3000 + i, 4), np.float32), np.ones((5, 4, 8), np.float32)
    y = gpuconv.conv1d(x, w, pad=(20 * i, 20 * i), dilation=10, pad_mode="reflect")
    gpuconv.conv1d_input_grad(y, w, x.shape, pad=(20 * i, 20 * i), dilation=10, pad_mode="reflect")


def _columns(i):
    x = np.ones((1, 12 + i % 20, 12 + i // 20, 3), np.float32)
    cols = gpuconv.im2col(x, 3, pad=i)
    gpuconv.col2im(cols, x.shape, 3, pad=i)
    gpuconv.col2im(cols, x.shape, 3, pad=i, method="scatter")
    gpuconv.pad(x, i, mode="circular")


def _plans(i):
    """Of convolutions that nobody computes: strides and kernels in the hundreds, thousands of channels."""
    for problem in (
        f"n1_h{20_000 + i}w{20_000 + i}_c1_k1_r{300 + i}s{300 + i}_st{300 + i}",
        f"n1_w{2_000_000 + i}_c1_k1_s{300 + i}_st{400 + i}_dl{399 + i}",
        f"n1_h{60 + i}w60_c{512 + i}_k{2048 + i}_r9s9_p4",
    ):
        for direction in ("forward", "input_grad", "weight_grad"):
            gpuconv.plan(problem, direction=direction)


LEFT = {
    **{
        f"convolutions by {name}": partial(_convolutions, algorithm=name)
        for name in NAMES
        if name not in ("loops", "winograd_4x4")
    },
    "strided": _strided,
    "long": _long,
    "columns": _columns,
    "plans": _plans,
}


@pytest.mark.parametrize("name", LEFT)
def test_many_geometries_leave_little_behind(path, name):
    """As README says: some kilobytes each, and not their arrays, nor anything as long as an axis of them."""
    function, count, of_each = LEFT[name], 60, 1
    if name == "plans":  # each of them takes tracemalloc a while
        count, of_each = 8, 3
    if name in ("convolutions by direct", "convolutions by amx") and path == "numpy":
        return  # that it is refused is tested elsewhere
    if name == "convolutions by amx" and why_no_amx() is not None:
        pytest.skip(why_no_amx())
    for i in range(3):
        function(200 + i)

    def many():
        for i in range(count):
            function(i)

    assert left_by(many) <= count * of_each * KEPT + OBJECTS
