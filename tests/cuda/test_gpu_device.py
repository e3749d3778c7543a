"""What only a CUDA device can show: streams and threads that run at once, memory that really runs out."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from calls import CALLS, convolve, problem
from cases import CASES, DIRECTIONS, Case, reals
from on_gpu import cupy_with_a_device, room_for, same_bits, sent

import gpuconv
from gpuconv.algorithms import ALGORITHMS

pytestmark = pytest.mark.gpu

SQUARE = Case(4, (56, 56), 64, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
DEPTHWISE = Case(4, (56, 56), 64, 64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 64)


@pytest.fixture
def cupy():
    module, why_not = cupy_with_a_device()
    if module is None:
        pytest.skip(why_not)
    return module


def three(cupy, case, fill=reals, dtype="float32", seed=0):
    return tuple(sent(cupy, dict(zip("xwd", case.arrays(fill, dtype, seed), strict=True))).values())


def served(case, direction="forward", dtype="float32"):
    plan = gpuconv.plan(problem(case), dtype, "cuda:0", direction=direction)
    return [one.name for one in plan.candidates if one.status != "refused"]


class TestAtOnce:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_two_streams(self, cupy, direction):
        arrays = [three(cupy, SQUARE, seed=seed) for seed in range(2)]
        want = [convolve(direction, SQUARE, *a) for a in arrays]
        cupy.cuda.Device().synchronize()
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in arrays]
        got = [[], []]
        for _ in range(10):
            for stream, a, made in zip(streams, arrays, got, strict=True):
                with stream:
                    made.append(convolve(direction, SQUARE, *a))
        cupy.cuda.Device().synchronize()
        for made, right in zip(got, want, strict=True):
            # cuBLAS promises the same bits on one stream at a time only.
            assert all(cupy.allclose(one, right, rtol=1e-5, atol=1e-4) for one in made)

    def test_two_threads(self, cupy):
        """Each on a stream of its own; the first calls of a process compile in both at once."""
        calls = [CALLS[name] for name in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad", "max_pool2d", "im2col")]
        want = [call(call.arrays()) for call in calls]
        wrong = []

        def work():
            try:
                with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
                    for call, right in zip(calls * 5, want * 5, strict=True):
                        got = call(sent(cupy, call.arrays()))
                        stream.synchronize()
                        if not np.array_equal(got.get(), right):
                            wrong.append(call.function)
            except BaseException as error:  # a thread's own would be lost
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestBits:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("case", [SQUARE, DEPTHWISE, CASES["2d-reflect"]], ids=["square", "depthwise", "reflect"])
    def test_are_the_same_in_20_runs(self, cupy, case, direction, dtype):
        arrays = three(cupy, case, dtype=dtype)
        for name in served(case, direction, dtype):
            once = convolve(direction, case, *arrays, algorithm=name)
            for number in range(19):
                # What was freed and is handed out again holds another number each time.
                del_me = cupy.full(4 * once.size, number, np.float32)
                del del_me
                assert same_bits(convolve(direction, case, *arrays, algorithm=name), once), name


@pytest.mark.alone
class TestMemory:
    def test_real_exhaustion_and_recovery(self, cupy):
        case = replace(SQUARE, n=256)  # a result of 205 MB
        x, w, dy = three(cupy, case)
        want = convolve("forward", case, x, w, dy).get()
        cupy.get_default_memory_pool().free_all_blocks()
        free, _ = cupy.cuda.runtime.memGetInfo()
        ballast = cupy.empty(free - 100 * 2**20, np.uint8)
        with pytest.raises(gpuconv.WorkspaceError, match=r"out of memory on cuda:0: .*max_workspace"):
            convolve("forward", case, x, w, dy)
        del ballast
        assert same_bits(convolve("forward", case, x, w, dy), want)

    def test_under_a_limit_of_the_pool(self, cupy):
        x, w, dy = three(cupy, SQUARE)
        want = convolve("forward", SQUARE, x, w, dy)
        with room_for(cupy, want.nbytes // 2), pytest.raises(gpuconv.WorkspaceError, match=rf"{want.nbytes} bytes"):
            convolve("forward", SQUARE, x, w, dy)
        assert same_bits(convolve("forward", SQUARE, x, w, dy), want)


@pytest.mark.alone
class TestMoreThan32Bits:
    """Arrays of more than 2**31 elements: an index of 32 bits would come around to the first of them."""

    N, W, C = 33, 2**16, 1024  # 33 * 2**26 elements, 4.4 GB in float16

    @pytest.mark.parametrize("algorithm", [one.name for one in ALGORITHMS if one.exact])
    def test_forward(self, cupy, algorithm):
        case = Case(self.N, (self.W,), self.C, self.C, (1,), (1,), (1,), ((0, 0),), self.C)
        if algorithm not in served(case, dtype="float16"):
            return
        free, _ = cupy.cuda.runtime.memGetInfo()
        need = 3 * self.N * self.W * self.C * 2 + 2**30
        if free < need:
            pytest.skip(f"needs {need} bytes of device memory, {free} are free")
        x = cupy.zeros(case.x_shape, np.float16)
        last = cupy.arange(self.C).astype(np.float16) % 128
        x[-1, -1] = last
        w = cupy.full(case.w_shape, 2, np.float16)
        y = gpuconv.conv1d(x, w, groups=self.C, algorithm=algorithm, max_workspace=2**29)
        assert bool((y[-1, -1] == 2 * last).all())
        assert not bool(y[:-1].any())
        assert not bool(y[-1, :-1].any())

    def test_im2col_and_back(self, cupy):
        n = 2**31 // (9 * 256) + 1
        free, _ = cupy.cuda.runtime.memGetInfo()
        need = 8 * n * 9 * 256 + 2**30
        if free < need:
            pytest.skip(f"needs {need} bytes of device memory, {free} are free")
        x = cupy.zeros((n, 3, 3, 256), np.float16)
        x[-1] = 1
        cols = gpuconv.im2col(x, 3)
        assert cols.size > 2**31
        assert bool((cols[-1] == 1).all())
        assert not bool(cols[:-1].any())
        back = gpuconv.col2im(cols, x.shape, 3)
        assert bool((back[-1] == 1).all())
        assert not bool(back[:-1].any())
