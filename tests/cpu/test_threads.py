"""Threads make a call faster and nothing else: not the bits, not the caller's BLAS, not a neighbour's result."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from calls import CALLS, convolve, same, willing
from cases import DIRECTIONS, Case, reals
from threadpoolctl import threadpool_info, threadpool_limits

import gpuconv
from gpuconv import cpu
from gpuconv.cpu import threads as cpu_threads

# Large enough to be cut into many strips under the cap.
LARGE = Case(3, (40, 37), 12, 20, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
CAP = 2**19
SHAPES = {
    "2d": LARGE,
    "one image": Case(1, (64, 61), 12, 20, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "strided groups": Case(3, (41, 40), 12, 16, (3, 4), (2, 1), (1, 2), ((1, 1), (2, 2)), 4, "circular"),
    "depthwise": Case(3, (40, 37), 24, 24, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 24),
    "few inputs": Case(2, (90, 61), 3, 32, (5, 5), (2, 2), (1, 1), ((2, 2), (2, 2))),
    "1d": Case(4, (1500,), 8, 16, (7,), (1,), (1,), ((3, 3),)),
    "3d": Case(2, (11, 12, 13), 6, 10, (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1), (1, 1), (1, 1))),
    "1x1": Case(3, (40, 37), 48, 20, (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
}


@pytest.mark.parametrize("scipy_is_first", [False, True])
def test_the_blas_that_is_named_is_numpys(monkeypatch, scipy_is_first):
    """What was tuned is kept by its name; SciPy brings one of another version."""
    packages = Path(np.__file__).resolve().parents[1]
    found = [
        {"internal_api": "openblas", "version": version, "filepath": str(packages / folder / "libscipy_openblas.so")}
        for folder, version in (("numpy.libs", "0.3.31"), ("scipy.libs", "0.3.30"))
    ]
    found = found[::-1] if scipy_is_first else found
    monkeypatch.setattr(cpu_threads, "_blas", lambda: SimpleNamespace(info=lambda: found))
    assert cpu_threads.blas_name.__wrapped__() == "openblas 0.3.31"
    del found[0]  # a NumPy that was built with the system's has none in its folders
    assert cpu_threads.blas_name.__wrapped__().startswith("openblas 0.3.3")


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_the_bits_do_not_depend_on_the_number(monkeypatch, case, direction, dtype):
    arrays = case.arrays(reals, dtype)
    names = [name for name in willing(case, direction, dtype, max_workspace=CAP) if name != "loops"]
    results = {}
    for threads in (1, 2, 4, None):
        monkeypatch.setattr(gpuconv.settings, "threads", threads)
        for name in names:
            results.setdefault(name, []).append(
                convolve(direction, case, *arrays, algorithm=name, max_workspace=CAP).tobytes()
            )
    assert all(len(set(bits)) == 1 for bits in results.values())


def test_the_bits_do_not_depend_on_the_caller_s_thread_or_its_limit():
    """BLAS rounds differently on one thread and on two, so a limit that does not take hold shows in the bits."""
    cases = [LARGE, SHAPES["1d"], SHAPES["1x1"], Case(1, (20, 20), 8, 9, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))]
    inputs = [case.arrays(reals) for case in cases]

    def run():
        return [
            convolve(direction, case, *arrays).tobytes()
            for case, arrays in zip(cases, inputs, strict=True)
            for direction in DIRECTIONS
        ]

    results = {"main": run()}
    with ThreadPoolExecutor(1) as pool:
        results["another thread"] = pool.submit(run).result()
    for limit in (1, 2):
        with threadpool_limits(limit):
            results[f"limit {limit}"] = run()
    with ThreadPoolExecutor(1) as pool:
        results["a third thread"] = pool.submit(run).result()
    results["main again"] = run()
    different = {name for name, bits in results.items() if bits != results["main"]}
    assert not different


def blas_threads():
    return [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]


def test_concurrent_calls_agree_and_leave_blas_alone():
    """Calls that overlap, all of them cut into strips that hold BLAS to one thread, from threads of the caller."""
    jobs = [(direction, case) for case in (LARGE, SHAPES["strided groups"]) for direction in DIRECTIONS]
    inputs = {case: case.arrays(reals) for _, case in jobs}
    want = {job: convolve(job[0], job[1], *inputs[job[1]], max_workspace=CAP) for job in jobs}
    before, together = blas_threads(), threading.Barrier(4)

    def run(offset):
        together.wait()
        order = jobs[offset:] + jobs[:offset]
        return [(job, convolve(job[0], job[1], *inputs[job[1]], max_workspace=CAP)) for job in order * 2]

    with ThreadPoolExecutor(4) as pool:
        results = [result for some in pool.map(run, range(4)) for result in some]
    assert len(results) == 4 * 2 * len(jobs)
    assert all(same(got, want[job]) for job, got in results)
    assert blas_threads() == before


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_of_the_caller_is_kept(limit):
    arrays = LARGE.arrays(reals)
    with threadpool_limits(limit):
        before = blas_threads()
        convolve("forward", LARGE, *arrays, max_workspace=CAP)
        assert blas_threads() == before


def test_an_error_leaves_blas_alone():
    before = blas_threads()
    x, w, dy = LARGE.arrays(reals)
    with pytest.raises(gpuconv.WorkspaceError):
        convolve("forward", LARGE, x, w, dy, algorithm="gemm", max_workspace=1)
    assert blas_threads() == before


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_function_is_safe_to_call_from_several_threads(call):
    arrays = call.arrays()
    want = call(arrays)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: call(arrays), range(8)))
    assert all(same(got, want) for got in results)


@pytest.mark.parametrize("threads", [0, -1])
def test_a_senseless_setting_is_named(monkeypatch, threads):
    monkeypatch.setattr(gpuconv.settings, "threads", threads)
    x, w, dy = LARGE.arrays(reals)
    with pytest.raises(ValueError, match=r"settings\.threads"):
        convolve("forward", LARGE, x, w, dy)
    assert np.isfinite(x).all()


def test_threads_of_a_scheduler_share_the_cores(monkeypatch):
    """Each has its part of those that were there when it came; the main thread, which may be interrupted, has all."""
    monkeypatch.setattr("gpuconv.settings.threads", 8)
    steps = [threading.Barrier(2, timeout=60) for _ in "12"]

    def first():
        with cpu.sharing_cores:
            alone = cpu.workers()
            steps[0].wait()
            steps[1].wait()
            return alone, cpu.workers()

    def second():
        steps[0].wait()
        with cpu.sharing_cores:
            beside = cpu.workers()
            steps[1].wait()
        return beside, cpu.workers()

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(first), pool.submit(second)]
        with cpu.sharing_cores:
            assert cpu.workers() == 8
        assert [future.result() for future in found] == [(8, 8), (4, 8)]
    assert cpu.workers() == 8
    with pytest.raises(ZeroDivisionError), ThreadPoolExecutor(1) as pool:
        pool.submit(_fails).result()
    assert not cpu.sharing_cores.counts


def _fails():
    with cpu.sharing_cores:
        raise ZeroDivisionError
