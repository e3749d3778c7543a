"""The choice of an algorithm as data: the chosen one, the possible ones, the refusals with their reasons, the costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from gpuconv import autotune, backend, cpu, heuristics, settings
from gpuconv.algorithms import ALGORITHMS, Algorithm, Problem
from gpuconv.cpu.amx import why_no_amx
from gpuconv.errors import AlgorithmError, GeometryError, WorkspaceError
from gpuconv.geometry import ConvGeometry, PoolGeometry, interned
from gpuconv.simd.host import COMPILED, numba_is_there, try_numba
from gpuconv.support import html
from gpuconv.support.argument_checks import as_int, is_one_of
from gpuconv.support.numbers import si
from gpuconv.typing import AlgorithmName, Direction, DTypeLike, Precision

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Status = Literal["chosen", "possible", "refused"]


@dataclass(frozen=True)
class Candidate:
    """One algorithm of the list, judged for one problem.

    `workspace` (bytes) is None if it is refused, and `seconds` if it was not timed, see `autotune`.
    """

    name: str
    status: Status
    note: str
    workspace: int | None
    seconds: float | None = None


@dataclass(frozen=True, repr=False)
class ConvPlan:
    """The plan of a call. Numbers are attributes; ``str`` is the table, and ``repr`` one line.

    Attributes
    ----------
    geometry : ConvGeometry
    dtype, precision, device, direction : str
    candidates : tuple of Candidate
        All algorithms: the chosen one first, then the possible ones, then those that refuse.
    chosen : str
        Name of the algorithm that runs.
    workspace : int
        Bytes that it takes beyond arguments and result.
    copied : int
        Bytes of the copies made first of arrays on a GPU that are not C-contiguous and channels last. `max_workspace`
        limits both together.
    seconds : float or None
        The time it took when the problem was tuned, see `autotune`.
    by_sample : bool
        Whether samples are computed one by one, see `settings.batch_invariant`. Then `workspace` and `copied` are
        those of one sample.
    captured : bool
        Whether a CUDA graph was being captured; then algorithms that call cuBLAS or cuFFT are refused.
    flops : int

    Examples
    --------
    >>> from gpuconv import plan
    >>> print(plan("n1_h8w8_c4_k4_r1s1", "complex64"))
    n1_h8w8_c4_k4_r1s1  complex64 strict  cpu  forward  2.05 kFLOP
      gemm           chosen    no workspace
      fft            possible  77.8 kB workspace; auto takes it under precision='fast' only
      loops          possible  no workspace
      depthwise      refused   groups=1; needs groups == in_channels (4)
      winograd       refused   kernel (1, 1), stride (1, 1), dilation (1, 1); needs (3, 3), (1, 1), (1, 1)
      winograd_4x4   refused   less precise than float32; needs precision='fast'
      wgmma          refused   runs on CUDA devices only
      implicit_gemm  refused   runs on CUDA devices only
      amx            refused   takes float32 and bfloat16, but the arrays are complex64
      direct         refused   takes float32 and float64 on the CPU, but the arrays are complex64
    """

    geometry: ConvGeometry
    dtype: str
    precision: str
    device: str
    direction: str
    candidates: tuple[Candidate, ...]
    copied: int = 0
    by_sample: bool = False
    captured: bool = False

    @property
    def chosen(self) -> str:
        return self.candidates[0].name

    @property
    def workspace(self) -> int:
        return self.candidates[0].workspace or 0

    @property
    def seconds(self) -> float | None:
        return self.candidates[0].seconds

    @property
    def flops(self) -> int:
        return self.geometry.flops

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.candidates)
        return "\n".join([self._head(), *(f"  {c.name:<{width}}  {c.status:<8}  {c.note}" for c in self.candidates)])

    def _head(self) -> str:
        head = (
            f"{self.geometry}  {self.dtype} {self.precision}  {backend.device_name(self.device)}  "
            f"{self.direction}  {si(self.flops)}FLOP"
        )
        if self.by_sample:
            head += "  sample by sample"
        if self.captured:
            head += "  captured in a graph"
        return head + f"  {si(self.copied)}B copied to channels last" if self.copied else head

    def _repr_html_(self) -> str:
        rows = [(c.name, c.status, c.note) for c in self.candidates]
        return html.table(self._head(), ("algorithm", "status", "cost, or why not"), rows, marked=[0])

    def __repr__(self) -> str:
        return (
            f"<ConvPlan {self.geometry} {self.dtype} {self.direction} on {self.device}: "
            f"{self.chosen}, {_workspace_text(self.workspace)}>"
        )


def plan(
    geometry: ConvGeometry | str,
    dtype: DTypeLike = "float32",
    device: str = "cpu",
    *,
    direction: Direction = "forward",
    precision: Precision = "strict",
    algorithm: AlgorithmName = "auto",
    max_workspace: int | None = None,
) -> ConvPlan:
    """The plan of a convolution of floats. Users call that of functions/plans.py, which knows more problems."""
    problem = problem_of(geometry, dtype, device, direction, precision, max_workspace, "plan")
    return _plan_of(problem, check_algorithm(algorithm, "plan"), "plan")


def problem_of(
    geometry: ConvGeometry | str,
    dtype: DTypeLike,
    device: str,
    direction: Direction,
    precision: Precision,
    max_workspace: int | None,
    caller: str,
) -> Problem:
    """The problem that C-contiguous, channels-last arrays pose, from unchecked arguments."""
    g = geometry if isinstance(geometry, ConvGeometry) else ConvGeometry.parse(geometry)
    if isinstance(g, PoolGeometry):
        raise GeometryError(
            f"{caller}: {g} is a pooling, which has no algorithms to choose from. Give the problem of a convolution, "
            "such as n8_h56w56_c64_k64_r3s3_p1."
        )
    return Problem(
        g,
        backend.as_dtype(dtype, caller),
        backend.check_device(device, caller),
        check_direction(direction, caller),
        check_precision(precision, caller),
        workspace_limit(max_workspace, caller),
    )


def goes_by_sample(direction: Direction) -> bool:
    """Whether a call computes samples one by one, see `settings.batch_invariant`."""
    return settings.batch_invariant and direction != "weight_grad"


def of_a_sample(g: ConvGeometry) -> ConvGeometry:
    """The same convolution of one sample, or of none if there is none."""
    return g if g.n <= 1 else interned(replace(g, n=1))


def as_computed(problem: Problem) -> Problem:
    """The problem that an algorithm is chosen for and computes: the whole batch, or one sample.

    With one sample, neither the choice of the algorithm, nor the shape of a BLAS product, nor the workspace, which
    decides where sums are split, depends on the size of the batch.
    """
    if not goes_by_sample(problem.direction):
        return problem
    return replace(problem, geometry=of_a_sample(problem.geometry))


def may_be_whole(algorithm: Algorithm, problem: Problem, sample: Problem) -> bool:
    """Whether an algorithm chosen for one sample may compute the whole batch at once, with the same bits."""
    if not problem.on_cpu:
        return False
    return algorithm.is_the_same_for(problem, sample) and algorithm.workspace_bytes(problem) <= problem.max_workspace


def plan_of(problem: Problem, algorithm: str, caller: str) -> ConvPlan:
    """The plan of a checked problem, for arrays that exist."""
    check_algorithm(algorithm, caller)
    _try_numba_for(problem, algorithm)
    return _plan_of(problem, algorithm, caller)


def _plan_of(problem: Problem, algorithm: str, caller: str) -> ConvPlan:
    whole, problem = problem, as_computed(problem)
    choice = _choose(problem, algorithm, caller, False, *_circumstances())
    by_sample = goes_by_sample(problem.direction) and not may_be_whole(choice.algorithm, whole, problem)
    candidates = [
        _judge(candidate, whole if candidate is choice.algorithm and not by_sample else problem, choice)
        for candidate in ALGORITHMS
    ]
    order: list[Status] = ["chosen", "possible", "refused"]
    candidates.sort(key=lambda c: order.index(c.status))
    return ConvPlan(
        whole.geometry,
        problem.dtype.name,
        problem.precision,
        problem.device,
        problem.direction,
        tuple(candidates),
        problem.copied,
        by_sample,
        problem.captured,
    )


def choose(problem: Problem, algorithm: str, caller: str) -> Algorithm:
    """The algorithm named, or with "auto" the one expected to be the fastest of those that can serve the problem.

    "auto" follows the heuristics, or timings if those were asked for (`autotune`).

    Raises
    ------
    AlgorithmError
        If there is no algorithm of that name, or it refuses.
    WorkspaceError
        If it cannot stay under ``problem.max_workspace``.
    """
    check_algorithm(algorithm, caller)
    _try_numba_for(problem, algorithm)
    return _choose(as_computed(problem), algorithm, caller, True, *_circumstances()).algorithm


def _try_numba_for(problem: Problem, algorithm: str) -> None:
    """Find out whether Numba works, if compiled loops may serve this problem."""
    # 16-bit floats are served if they are bfloat16, by amx, or where they are widened: see `Folding`.
    if algorithm in COMPILED and problem.on_cpu:
        is_served = problem.dtype.char in "fd" or problem.geometry.pad_mode != "zeros"  # .name takes 3 us
        if is_served or (problem.dtype.name == "bfloat16" and why_no_amx() is None):
            try_numba()


@dataclass(frozen=True)
class _Choice:
    """An algorithm, and the timing that it was chosen by, if any."""

    algorithm: Algorithm
    tuned: autotune.Tuned | None = None


def check_algorithm(algorithm: str, caller: str) -> str:
    """`algorithm`, if it is a string; `choose` knows which names exist."""
    if not isinstance(algorithm, str):
        raise _no_such(algorithm, caller)
    return algorithm


def _no_such(algorithm: object, caller: str) -> AlgorithmError:
    names = ", ".join(repr(a.name) for a in ALGORITHMS)
    return AlgorithmError(f"{caller}: algorithm={algorithm!r} does not exist. Choose 'auto' or one of {names}.")


def _circumstances() -> tuple[int, bool, int, bool, bool | None]:
    """The state that a choice depends on in addition to its problem."""
    return cpu.workers(), settings.autotune, autotune.generation(), numba_is_there(), settings.amx


@lru_cache(maxsize=4096)
def _choose(problem: Problem, algorithm: str, caller: str, may_time: bool, *_: object) -> _Choice:
    if algorithm == "auto":
        # The reference, the last, accepts everything on the CPU; gemm does on a GPU, up to axes of 2**31 - 1.
        willing = [a for a in ALGORITHMS if a.refusal(problem) is None and a.why_not_auto(problem) is None]
        fitting = [a for a in willing if a.workspace_bytes(problem) <= problem.max_workspace]
        if fitting:
            ranked = heuristics.rank(problem, fitting)
            tuned = autotune.consult(problem, ranked, may_time)
            return _Choice(next(a for a in ranked if tuned is None or a.name == tuned.fastest), tuned)
        if not willing:
            raise AlgorithmError(_none_serves(caller, problem))
        least = min(willing, key=lambda a: a.workspace_bytes(problem))
        raise WorkspaceError(_too_large(caller, least, problem))
    for candidate in ALGORITHMS:
        if candidate.name == algorithm:
            break
    else:
        raise _no_such(algorithm, caller)
    reason = candidate.refusal(problem)
    if reason is not None:
        raise AlgorithmError(
            f"{caller}: algorithm={algorithm!r} does not support {problem.geometry}: {reason}. "
            "Choose another, or 'auto'."
        )
    if candidate.workspace_bytes(problem) > problem.max_workspace:
        raise WorkspaceError(_too_large(caller, candidate, problem))
    return _Choice(candidate)


def _judge(candidate: Algorithm, problem: Problem, choice: _Choice) -> Candidate:
    reason = candidate.refusal(problem)
    if reason is not None:
        return Candidate(candidate.name, "refused", reason, None)
    needed = candidate.workspace_bytes(problem)
    if needed > problem.max_workspace:
        note = f"needs {si(needed)}B workspace, but max_workspace is {si(problem.max_workspace)}B"
        return Candidate(candidate.name, "refused", note, None)
    seconds = choice.tuned.seconds.get(candidate.name) if choice.tuned else None
    model = candidate.cost(problem).model
    expected = f"; {model}" if model else ""
    if candidate is choice.algorithm:
        note = _workspace_text(needed) + expected
        if choice.tuned and seconds:
            rate = problem.geometry.flops / seconds
            note = f"tuned {choice.tuned.date}: {si(seconds)}s, {si(rate)}FLOP/s"
        return Candidate(candidate.name, "chosen", note + given_up(problem, candidate.name), needed, seconds)
    reserved = candidate.why_not_auto(problem)
    if reserved is None and heuristics.yields_to_graphs(problem, candidate):
        reserved = "auto takes it for one sample only if twice as fast, as no CUDA graph captures it"
    note = (
        _workspace_text(needed) + expected + (f"; {reserved}" if reserved else "") + given_up(problem, candidate.name)
    )
    return Candidate(candidate.name, "possible", note, needed, seconds)


BITS = {"float32": 24, "complex64": 24, "float64": 53, "complex128": 53}
"""Significant bits of a number. 16-bit floats are not among them: they are summed in float32 at any precision."""


def given_up(problem: Problem, name: str) -> str:
    """What an algorithm gives up under precision="fast", in words that follow a note; empty if it is nothing.

    The error of winograd_4x4 is 3.7 to 8 times that of gemm, in the root of the mean square (2.4 bits in the median of
    nine passes of three float32 layers, Xeon with AVX-512, 2026-11-30). That of FFTs in 32 bits is no larger than
    gemm's, but it is the same for all outputs of a tile.
    """
    bits = BITS.get(problem.dtype.name)
    if problem.precision != "fast" or bits is None:
        return ""
    if name == "amx" and problem.dtype.name == "float32":
        return f"; gives up 8 of {bits} bits of each factor"
    if name == "winograd_4x4":
        return f"; gives up 3 of {bits} bits"
    if name == "fft" and bits == BITS["float32"]:
        return "; gives up bits of outputs that are small beside others of their tile"
    if name in ("implicit_gemm", "gemm") and not problem.on_cpu and bits == BITS["float32"]:
        return f"; gives up 13 of {bits} bits of each factor (TF32)"
    return ""


def _none_serves(caller: str, problem: Problem) -> str:
    reasons = [f"{a.name}: {a.refusal(problem) or a.why_not_auto(problem)}" for a in ALGORITHMS]
    return (
        f"{caller}: no algorithm of 'auto' serves the {problem.direction} of {problem.geometry} in {problem.dtype} "
        f"{problem.precision} on {problem.device}: {'; '.join(reasons)}."
    )


def _too_large(caller: str, candidate: Algorithm, problem: Problem) -> str:
    copies = f" after {problem.copied} bytes of copies" if problem.copied else ""
    return (
        f"{caller}: algorithm={candidate.name!r} needs {candidate.workspace_bytes(problem)} bytes of workspace for "
        f"{problem.geometry}, but max_workspace is {problem.max_workspace}{copies}. Raise max_workspace, "
        "or choose another algorithm."
    )


def _workspace_text(count: int) -> str:
    return f"{si(count)}B workspace" if count else "no workspace"


def check_direction(direction: Direction, caller: str) -> Direction:
    if not is_one_of(direction, DIRECTIONS):
        raise ValueError(f"{caller}: direction={direction!r} is none of {', '.join(map(repr, DIRECTIONS))}.")
    return direction


def check_precision(precision: Precision, caller: str) -> Precision:
    if not is_one_of(precision, PRECISIONS):
        raise ValueError(f"{caller}: precision={precision!r} is none of {', '.join(map(repr, PRECISIONS))}.")
    return precision


def workspace_limit(max_workspace: int | None, caller: str) -> int:
    """The limit of a call in bytes: its own, or the setting of the process."""
    if max_workspace is not None:
        return as_int(max_workspace, "max_workspace", caller, least=0)
    return as_int(settings.max_workspace, "settings.max_workspace", caller, least=0)
