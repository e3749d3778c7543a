"""out=: any strides, also over an input; refused when it cannot hold the result, and then left alone."""

import numpy as np
import pytest
from calls import ALGORITHM_NAMES, CALLS, convolve, same, willing
from cases import CASES, DIRECTIONS, PLAIN, Case
from tolerances import to_numpy

import gpuconv
from gpuconv import backend

OUT_CALLS = {name: call for name, call in CALLS.items() if call.has_layout}


def on(xp, arrays):
    return {name: xp.asarray(a) for name, a in arrays.items()}


@pytest.mark.parametrize("view", ["plain", "fortran", "every second", "backwards"])
@pytest.mark.parametrize("call", OUT_CALLS.values(), ids=OUT_CALLS)
def test_any_strides(xp, call, view):
    arrays = on(xp, call.arrays())
    want = call(arrays)
    out, room = blank(xp, want.shape, want.dtype, view)
    assert call(arrays, out=out) is out
    assert np.array_equal(to_numpy(out), to_numpy(want))
    assert int((room == 99).sum()) == room.size - out.size  # nothing was written between its elements


def blank(xp, shape, dtype, view):
    """An array of this shape filled with 99, which no result here contains, and the room it lies in."""
    if view == "every second":
        room = xp.full([2 * size + 1 for size in shape], 99, dtype)
        return room[tuple(slice(1, None, 2) for _ in shape)], room
    room = xp.full(shape, 99, dtype, order="F" if view == "fortran" else "C")
    return (room[(slice(None, None, -1),) * len(shape)] if view == "backwards" else room), room


@pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "case", ["2d", "2d-1x1", "2d-depthwise", "2d-channels-0", "2d-batch-0", "2d-full-size-kernel", "2d-reflect"]
)
def test_every_algorithm_writes_all_of_it(xp, device, case, direction, algorithm):
    case = CASES[case]
    if algorithm not in willing(case, direction, "float32", device):
        return  # that it then raises is tested with the convolutions
    x, w, dy = map(xp.asarray, case.arrays())
    want = convolve(direction, case, x, w, dy, algorithm=algorithm)
    for view in ("plain", "every second"):
        out, _ = blank(xp, want.shape, want.dtype, view)
        assert convolve(direction, case, x, w, dy, algorithm=algorithm, out=out) is out
        assert np.array_equal(to_numpy(out), to_numpy(want))


OVERLAPS = {  # which two images of four are x, and which are out
    "the next image": lambda room: (room[1:3], room[2:4]),
    "the image before": lambda room: (room[1:3], room[:2]),
    "rows backwards": lambda room: (room[:2], room[:2, ::-1]),
    "every second image": lambda room: (room[:2], room[::2]),
}


class TestOverAnInput:
    """The result is right even where writing it destroys what it is made from."""

    SQUARE = Case(2, (7, 6), 4, 4, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("algorithm", ["auto", *ALGORITHM_NAMES])
    @pytest.mark.parametrize("direction", ["forward", "input_grad"])
    def test_all_of_it(self, xp, device, direction, algorithm, groups):
        case = Case(**{**vars(self.SQUARE), "groups": groups})
        if algorithm not in ["auto", *willing(case, direction, "float32", device)]:
            return  # that it then raises is tested with the convolutions
        x, w, dy = map(xp.asarray, case.arrays())
        want = convolve(direction, case, x, w, dy, algorithm=algorithm).copy()
        source = x if direction == "forward" else dy
        assert convolve(direction, case, x, w, dy, algorithm=algorithm, out=source) is source
        assert np.array_equal(to_numpy(source), to_numpy(want))

    @pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
    @pytest.mark.parametrize("over", OVERLAPS.values(), ids=OVERLAPS)
    def test_part_of_it(self, xp, device, over, algorithm):
        """Computed in one piece or in many, of which the first writes over what the others read."""
        case = Case(**{**vars(self.SQUARE), "groups": 4 if algorithm == "depthwise" else 1})
        if algorithm not in willing(case, "forward", "float32", device):
            return  # that it then raises is tested with the convolutions
        x, w, _ = case.arrays()
        for cap in (2**17 if algorithm.startswith(("winograd", "fft", "amx", "direct")) else 2**12, 2**24):
            room = xp.asarray(np.concatenate([x, x + 1]))
            source, out = over(room)
            keywords = {"algorithm": algorithm, "max_workspace": cap}
            want = convolve("forward", case, source.copy(), w=xp.asarray(w), dy=None, **keywords)
            convolve("forward", case, source, xp.asarray(w), None, **keywords, out=out)
            assert np.array_equal(to_numpy(out), to_numpy(want))

    @pytest.mark.parametrize("lent", ["out", "x", "both"])
    @pytest.mark.parametrize("over", [OVERLAPS["the next image"], OVERLAPS["the image before"]])
    def test_memory_that_is_lent(self, gpu, over, lent):
        """Arrays from DLPack have a memory each, in which CuPy sees no overlap."""
        x, w, _ = self.SQUARE.arrays()
        room = gpu.asarray(np.concatenate([x, x + 1]))
        source, out = over(room)
        source = gpu.from_dlpack(source) if lent != "out" else source
        out = gpu.from_dlpack(out) if lent != "x" else out
        want = gpuconv.conv2d(source.copy(), gpu.asarray(w), pad=1, algorithm="direct")
        assert gpuconv.conv2d(source, gpu.asarray(w), pad=1, algorithm="direct", out=out) is out
        assert np.array_equal(to_numpy(out), to_numpy(want))

    @pytest.mark.parametrize("first", range(5))
    def test_bytes_are_compared_as_numpy_does(self, gpu, first):
        def parts(room):
            return room, room[2:], room[:2], room[1, ::-1, 1:], room[:0]

        ours, theirs = parts(gpu.zeros((4, 3, 2))), parts(np.zeros((4, 3, 2)))
        may_overlap = backend.may_overlap(gpu)
        for a, b in zip(ours, theirs, strict=True):
            assert may_overlap(ours[first], a) is np.may_share_memory(theirs[first], b)
        assert not may_overlap(ours[first], gpu.zeros(9))

    def test_a_weight_gradient_over_the_other_factor(self, xp):
        """A 1-D case where dw has the shape of dy."""
        case = Case(3, (5,), 4, 6, (3,), (1,), (1,), ((0, 0),))
        x, room, _ = map(xp.asarray, case.arrays())  # w has the shape of dw
        dy = room[:, 1:]
        want = gpuconv.conv1d_weight_grad(x, dy.copy(), 3)
        gpuconv.conv1d_weight_grad(x, dy, 3, out=room)
        assert np.array_equal(to_numpy(room), to_numpy(want))

    @pytest.mark.parametrize("function", ["max_pool2d", "avg_pool2d"])
    def test_a_pool(self, xp, rng, function):
        x = xp.asarray(rng.standard_normal((2, 6, 6, 3)))
        keywords = {"kernel_shape": 3, "stride": 1, "pad": 1}
        want = getattr(gpuconv, function)(x.copy(), **keywords)
        assert getattr(gpuconv, function)(x, **keywords, out=x) is x
        assert np.array_equal(to_numpy(x), to_numpy(want))


def locked(want):
    out = np.full(want.shape, 99, want.dtype)
    out.setflags(write=False)
    return out


BAD = {
    "shape": (
        lambda want: np.full((*want.shape[:-1], want.shape[-1] + 1), 99, want.dtype),
        gpuconv.GeometryError,
        r"out.*shape",
    ),
    "a shape that would broadcast": (
        lambda want: np.full((1, *want.shape), 99, want.dtype),
        gpuconv.GeometryError,
        r"out.*shape",
    ),
    "dtype": (lambda want: np.full(want.shape, 99, np.float64), gpuconv.DTypeError, r"out.*float64.*float32"),
    "read-only": (locked, gpuconv.GeometryError, r"out.*(read-only|writ)"),
    "list": (lambda want: [99], TypeError, r"out.*list"),
}


@pytest.mark.parametrize(("make", "error", "says"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("call", OUT_CALLS.values(), ids=OUT_CALLS)
def test_refused(call, make, error, says):
    arrays = call.arrays()
    before = {name: a.copy() for name, a in arrays.items()}
    out = make(call(arrays))
    with pytest.raises(error, match=rf"^{call.function}: {says}"):
        call(arrays, out=out)
    assert all(same(arrays[name], before[name]) for name in arrays)
    assert np.all(np.asarray(out) == 99)


def test_the_message_names_both_shapes():
    x, w, _ = PLAIN[2].arrays()
    with pytest.raises(gpuconv.GeometryError, match=r"^conv2d: out.*\(2, 4, 4, 5\).*\(2, 4, 4, 4\)"):
        gpuconv.conv2d(x, w, out=np.zeros((2, 4, 4, 5), np.float32))
