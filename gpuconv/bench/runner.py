"""The measurement of one row: the result is validated first, then timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from gpuconv import backend, cpu, settings
from gpuconv.algorithms import ALGORITHMS
from gpuconv.bench import timer
from gpuconv.bench.case import Case, bytes_moved
from gpuconv.bench.limits import Limits
from gpuconv.bench.peers.base import Contestant, Peer, refusal_of
from gpuconv.bench.record import Row, Times
from gpuconv.geometry import PoolGeometry
from gpuconv.tools import check
from gpuconv.tools.workload import Workload
from gpuconv.typing import Array

WINDOWS = 32
AT_ONCE = 2**24
"""Elements of a dot product at a time, which are widened to 8 or 16 bytes."""
EXACT = {algorithm.name for algorithm in ALGORITHMS if algorithm.exact}

TOLERANCES = {2: 5e-2, 4: 1e-4, 8: 1e-11}
"""The largest difference of two right results, over their root mean square, by the bytes of a real."""

FAST_TOLERANCE = 1e-2


WAYS = {"torch": 2, "scipy": 2}
"""How many ways of doing a pass a peer has, if more than one."""

RESTS, SECONDS_BEFORE_TURNS = 3, 0.3
"""For how many times its window a turn rests, and what a case takes before its first turn: for estimates of the whole
(Xeon with AVX-512, 2026-11-30)."""


class WrongResult(AssertionError):
    """A convolution gave a wrong result, and is not timed."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Limit gpuconv, NumPy's BLAS and the peers to this many threads; None means every core of this process."""
    before, settings.threads = settings.threads, count
    try:
        with threadpool_limits(cpu.workers(), user_api="blas"):
            yield
    finally:
        settings.threads = before


def estimate(cases: Sequence[Case], peers: Sequence[str], repeats: int, limits: Limits) -> float:
    """The seconds that it takes to measure these cases, roughly.

    A call is taken to reach half of the rates of this machine. What takes longer per call than a turn lasts, such as an
    algorithm in plain Python, takes longer than estimated.
    """
    total = 0.0
    for case in cases:
        g, pace, ways = case.geometry, timer.turns(case.device), 1 + sum(WAYS.get(name, 1) for name in peers)
        moved = bytes_moved(g, case.dtype)
        call = 2e-9 * (g.flops / limits.gflops + moved / limits.gbs)
        turn = pace.warm + pace.slot + RESTS * pace.rest + 2 * call
        total += SECONDS_BEFORE_TURNS + ways * max(timer.FEWEST * turn, min(repeats * turn, pace.budget))
    return total


def measure(case: Case, peers: Mapping[str, Peer], repeats: int) -> Row:
    """Validate one case, measure its memory, and time it in turns with its peers, whose results must agree.

    Raises
    ------
    WrongResult
        If the result of gpuconv is wrong, or a peer does not agree with it.
    """
    validate(case)
    plan = case.plan()
    work = Workload.normal(case.geometry, case.dtype, case.device)

    def convolve() -> Array:
        return case.run(work)

    y = convolve()
    extra = timer.peak_bytes(convolve, case.device) - y.nbytes
    refusals = {name: words for name, peer in peers.items() if (words := refusal_of(name, peer, case))}
    ways = {name: peer.contestants(case, work) for name, peer in peers.items() if name not in refusals}
    calls: dict[str, timer.Call] = {"gpuconv": convolve}
    for name, contestants in ways.items():
        for way, contestant in contestants.items():
            _compare(case, f"{name} ({way})", contestant, y)
            calls[f"{name} {way}"] = contestant.call
    taken = timer.interleaved(calls, repeats, timer.stopwatch(case.device), timer.turns(case.device))
    return Row(
        suite=case.layer.suite,
        layer=case.layer.name,
        problem=str(case.geometry),
        direction=case.direction,
        algorithm=plan.chosen,
        dtype=case.dtype,
        precision=case.precision,
        times=Times.of(taken["gpuconv"]),
        peers={
            name: {way: Times.of(taken[f"{name} {way}"], c.scale) for way, c in contestants.items()}
            for name, contestants in ways.items()
        },
        refusals=refusals,
        workspace=plan.workspace,
        extra_bytes=max(0, extra),
        max_workspace=settings.max_workspace,
    )


# ------------------------------------------------------------------------------------------------ validation


def validate(case: Case) -> None:
    """Compare a case with exact arithmetic on small integers, or, if it has to round, with a case that need not.

    Raises
    ------
    WrongResult
        If they differ, or differ by more than rounding.
    """
    work = Workload.integers(case.geometry, case.dtype, case.device)
    if isinstance(case.geometry, PoolGeometry):
        _validate_pooling(case, case.geometry, work)
        return
    exact_dtype = backend.accumulator(work.x.dtype).name
    if exact_dtype == case.dtype and case.plan().chosen in EXACT:
        _validate_exactly(case, work)
        return
    reference = replace(case, dtype=exact_dtype, precision="strict", algorithm="auto")
    if reference.plan().chosen not in EXACT:
        reference = replace(reference, algorithm="gemm")
    exact_work = Workload.integers(case.geometry, exact_dtype, case.device)
    _validate_exactly(reference, exact_work)
    got, want = case.run(work), reference.run(exact_work)
    if not (error := _error(got, want)) <= _tolerance(case):
        raise WrongResult(f"{case} by {case.plan().chosen} is wrong: it is off by {error:.1e} of its root mean square")


def _validate_exactly(case: Case, work: Workload) -> None:
    """Compare a forward result with the definition in some windows, a gradient with its adjoint identity, exactly."""
    g, name = case.geometry, case.plan().chosen
    y = case.run(work) if case.direction == "forward" else work.run("forward")
    if g.banks:  # samples with weights of their own cannot be added: the first and the last are compared
        compared = [(_over_samples(y[n : n + 1]), _over_samples(work.x[n : n + 1]), work.w[n]) for n in (0, g.n - 1)]
    else:
        compared = [(_over_samples(y), _over_samples(work.x), work.w)]
    rng = np.random.default_rng(0)
    windows = [(0,) * g.ndim, tuple(size - 1 for size in g.out), *rng.integers(0, g.out, (WINDOWS, g.ndim))]
    for sums, x, one_w in compared:
        padded, w = check.pad(x, g), backend.to_numpy(one_w)
        for at in windows:
            start = tuple(int(p) * stride for p, stride in zip(at, g.stride, strict=True))
            if not np.array_equal(sums[(slice(None), *at)], check.window_sum(padded, w, g, start)):
                raise WrongResult(f"{g} forward by {name} is wrong at output {tuple(map(int, at))}")
    if case.direction == "forward":
        return
    left, right = _dot(y, work.dy), _dot(work.x if case.direction == "input_grad" else work.w, case.run(work))
    if not left == right:
        raise WrongResult(f"{case} by {name} is not the adjoint: {left:g} against {right:g}")


def _validate_pooling(case: Case, g: PoolGeometry, work: Workload) -> None:
    """Compare some windows with the definition, and a gradient with its identity.

    Each dy of a maximum reaches one x, which is that maximum, so that <y, dy> == <x, dx>, as for the linear mean. The
    sum of dx is that of dy besides, unless a mean counts pads.
    """
    y, name, tolerance = work.run("forward"), case.plan().chosen, _tolerance(case)
    rng = np.random.default_rng(0)
    for at in [(0,) * g.ndim, tuple(size - 1 for size in g.out), *rng.integers(0, g.out, (WINDOWS, g.ndim))]:
        inside, count = [], 1
        for p, step, dilation, (lo, hi), taps, size in zip(
            at, g.stride, g.dilation, g.asked, g.kernel, g.spatial, strict=True
        ):
            start = int(p) * step - lo
            positions = range(start, start + taps * dilation, dilation)
            there = [position for position in positions if 0 <= position < size]
            inside.append(slice(there[0], there[-1] + 1, dilation))
            count *= sum(-lo <= position < size + hi for position in positions) if g.include_pad else len(there)
        window = _exact(work.x[(slice(None), *inside)]).reshape(g.n, -1, g.c)
        want = window.max(axis=1) if g.kind == "max" else window.sum(axis=1) / count
        if not _error(_exact(y[(slice(None), *at)]), want) <= (0.0 if g.kind == "max" else tolerance):
            raise WrongResult(f"{g} forward by {name} is wrong at output {tuple(map(int, at))}")
    if case.direction == "forward":
        return
    dx = case.run(work)
    pairs = [(_dot(y, work.dy), _dot(work.x, dx))]
    if not g.include_pad:
        ones = backend.array_module(dx).ones_like
        pairs.append((_dot(ones(work.dy), work.dy), _dot(ones(dx), dx)))
    for left, right in pairs:
        allowed = 0.0 if g.kind == "max" else tolerance * (abs(left) + 4 * float(np.sqrt(work.dy.size)))
        if not abs(left - right) <= allowed:
            raise WrongResult(f"{case} by {name} is not the gradient: {left:g} against {right:g}")


def _exact(a: Array) -> Array:
    """An array on the host, in a dtype that holds its numbers and their sums."""
    host = backend.to_numpy(a)
    return host.astype(np.result_type(host.dtype, np.float64))


def _over_samples(a: Array) -> Array:
    """An exact sum of all samples, as a batch of one on the CPU, in which the samples have different weights.

    A convolution of the sums is the sum of the convolutions, so one sample is compared in place of all, and only it
    leaves the device. A prime number of weights keeps samples apart that are a power of two from each other.
    """
    with backend.on_device_of(a):
        wide = np.result_type(a.dtype, np.float64)
        total = backend.array_module(a).zeros((1, *a.shape[1:]), wide)
        for number in range(len(a)):
            total += (number % 97 + 1) * a[number].astype(wide)
        return backend.to_numpy(total)


def _dot(a: Array, b: Array) -> complex:
    """The exact dot product of two arrays of integers, some at a time."""
    wide = np.result_type(a.dtype, np.float64)
    a, b = a.reshape(-1), b.reshape(-1)
    total = 0j
    with backend.on_device_of(a):
        for start in range(0, a.size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            total += complex((a[part].conj().astype(wide) * b[part]).sum())
    return total


def _compare(case: Case, name: str, contestant: Contestant, ours: Array) -> None:
    """Raise if a peer's result differs from that of gpuconv: only a peer that agrees is timed."""
    if contestant.result is None:
        return
    theirs = backend.to_device(contestant.result(contestant.call()), case.device)
    if theirs.shape != ours.shape:
        raise WrongResult(f"{case}: {name} gives the shape {theirs.shape}, but gpuconv gives {ours.shape}")
    error, tolerance = _error(ours, theirs), _tolerance(case)
    if not error <= tolerance:
        raise WrongResult(
            f"{case}: {name} and gpuconv differ by {error:.1e} of their root mean square, "
            f"but only {tolerance:.0e} is allowed"
        )


def _error(got: Array, want: Array) -> float:
    """The largest difference over the root mean square of `want`."""
    if not want.size:
        return 0.0
    xp = backend.array_module(want)
    with backend.on_device_of(want):
        got, want = (
            array.astype(np.float64 if array.dtype.kind in "iu" else backend.accumulator(array.dtype))
            for array in (got, want)
        )
        scale = float(xp.sqrt(xp.square(xp.abs(want)).mean(dtype=np.float64)))
        return float(xp.abs(got - want).max()) / (scale or 1.0)


def _tolerance(case: Case) -> float:
    if case.is_of_integers:
        return 0.0
    dtype = backend.as_dtype(case.dtype, "bench")
    strict = TOLERANCES[dtype.itemsize // (2 if backend.is_complex(dtype) else 1)]
    return strict if case.precision == "strict" else max(strict, FAST_TOLERANCE)
