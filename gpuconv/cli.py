"""The `gpuconv` command line. Each command imports what it needs, so that `gpuconv --help` answers at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from json import dumps
from os import environ, fstat
from os.path import samestat
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import gpuconv
from gpuconv import autotune, backend, cpu, settings
from gpuconv.algorithms import ALGORITHMS
from gpuconv.cpu.amx import why_no_amx
from gpuconv.errors import DeviceError
from gpuconv.planning import DIRECTIONS, PRECISIONS
from gpuconv.simd.host import try_numba, why_no_numba
from gpuconv.support import disk
from gpuconv.support.numbers import si
from gpuconv.tools import termination
from gpuconv.tools.streams import INTERRUPTED
from gpuconv.typing import AlgorithmName, Direction, Precision

if TYPE_CHECKING:
    from gpuconv.bench.case import Case
    from gpuconv.bench.peers.base import Peer
    from gpuconv.bench.record import Record
    from gpuconv.demo.compare import Comparison
    from gpuconv.tools.check import Outcome

WIDTH_OF_A_FILE = 1000
ROOM_BELOW = 6
SHOWN_FAILURES = 10
STDOUT = Path("-")
"""The file of --json that is standard output, which then holds nothing else."""

app = typer.Typer(
    help="Convolution for NumPy and CuPy arrays, on a CUDA GPU or on the CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what a shell asks for the words that may stand where a beginning was typed."""

    def begun(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return begun


def _suites(incomplete: str) -> list[str]:
    from gpuconv.bench import suites

    return _among(["list", *suites.names()])(incomplete)


NAMES = _among(["auto", *(algorithm.name for algorithm in ALGORITHMS)])
DTYPES = _among(backend.DTYPES)
PASSES = _among(DIRECTIONS)

Device = Annotated[
    str,
    typer.Option(
        help="Where to run: cpu, cuda, or cuda:1 for a certain GPU.", autocompletion=_among(["cpu", "cuda", "cuda:0"])
    ),
]
DType = Annotated[str, typer.Option(help=f"One of {', '.join(backend.DTYPES)}.", autocompletion=DTYPES)]
InPrecision = Annotated[str, typer.Option(help="strict or fast.", autocompletion=_among(PRECISIONS))]
Json = Annotated[
    Path | None, typer.Option(help="Save all of it in this file; - writes it to standard output, and nothing else.")
]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Convolution for NumPy and CuPy arrays, on a CUDA GPU or on the CPU."""
    if version:
        _say(f"gpuconv {gpuconv.__version__}")
        raise typer.Exit


@app.command()
def info(json: Json = None) -> None:
    """Show versions, devices, algorithms, settings and the number of tuned problems."""
    from gpuconv.tools import machine

    with _usage_errors("info"):
        _check_folder_of(json)
    versions = machine.versions()
    why_no_cuda = backend.why_no_cuda()
    devices = {
        device: machine.cpu() if device == "cpu" else backend.product_name(device) for device in backend.devices()
    }
    algorithms = [algorithm.name for algorithm in ALGORITHMS]
    tuned = len(autotune.entries())
    if json:
        content = {
            "versions": versions,
            "devices": devices,
            "why_no_cuda": why_no_cuda or None,
            "why_no_amx": why_no_amx(),
            "algorithms": algorithms,
            "threads": cpu.workers(),
            "max_workspace": settings.max_workspace,
            "tuned": tuned,
        }
        if not _is_put("info", json, content):
            raise typer.Exit(1)
        if json == STDOUT:
            return
    rows = list(versions.items())
    if "cupy" not in versions:
        rows.append(("cupy", why_no_cuda))
    rows += [("devices" if device == "cpu" else "", f"{device} {name}") for device, name in devices.items()]
    if "cupy" in versions and why_no_cuda:
        rows.append(("", why_no_cuda))
    rows += [
        ("amx", why_no_amx() or "permitted"),
        ("algorithms", ", ".join(algorithms)),
        ("threads", str(cpu.workers())),
        ("max_workspace", f"{si(settings.max_workspace)}B"),
        ("tuned", f"{tuned} problems, {_where_tuned()}"),
    ]
    width = max(len(name) for name, _ in rows)
    _say("\n".join(f"{name:{width}}   {text}".rstrip() for name, text in rows))


@app.command()
def check(
    device: Annotated[list[str] | None, typer.Option(help="A device to check; repeatable. Default: all.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="A dtype to check; repeatable. Default: all.", autocompletion=DTYPES)
    ] = None,
    json: Json = None,
) -> None:
    """Is this installation right? Check every algorithm on every device against a reference, at tolerance 0."""
    from gpuconv.tools import check as checks

    devices, dtypes = device or backend.devices(), dtype or checks.available_dtypes()
    with _usage_errors("check"):
        _check_folder_of(json)
        for name in devices:
            backend.check_device(name, "check")
        for name in dtypes:
            backend.as_dtype(name, "check")
    outcomes: list[checks.Outcome] = []
    interrupted = False
    try:
        with _progress() as progress:
            task = progress.add_task("checking", total=checks.count(devices, dtypes))
            for outcome in checks.outcomes(devices, dtypes):
                outcomes.append(outcome)
                progress.advance(task)
    except KeyboardInterrupt:
        interrupted = True
    failures = [outcome for outcome in outcomes if outcome.failure]
    refused = sum(outcome.refused for outcome in outcomes)
    passed = len(outcomes) - refused - len(failures)
    status = INTERRUPTED if interrupted else int(bool(failures))
    if json:
        content = {
            "gpuconv": gpuconv.__version__,
            "right": passed,
            "wrong": len(failures),
            "refused": refused,
            "interrupted": interrupted,
            "cases": [asdict(outcome) for outcome in outcomes],
        }
        status = status or int(not _is_put("check", json, content))
        if json == STDOUT:
            raise typer.Exit(status)
    console = _console()
    console.print(_check_table(outcomes))
    for outcome in failures[:SHOWN_FAILURES]:
        case = f"{outcome.device} {outcome.algorithm} {outcome.dtype} {outcome.problem} {outcome.direction}"
        console.print(f"[red]{case}[/]: {escape(outcome.failure)}", soft_wrap=True)
    console.print(
        f"{passed} cases right, {len(failures)} wrong, {refused} refused by an algorithm that is not made for them"
    )
    raise typer.Exit(status)


@app.command()
def explain(
    problem: Annotated[
        str,
        typer.Argument(
            help="A problem string, for instance n8_h56w56_c64_k64_r3s3_p1, or max_pool2d_n8_h56w56_c64_r3s3_st2."
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(backend.DTYPES)}; forward also int8, uint8, int16, int32 or int64.",
            autocompletion=DTYPES,
        ),
    ] = "float32",
    device: Device = "cpu",
    direction: Annotated[
        str, typer.Option(help="forward, input_grad or weight_grad.", autocompletion=PASSES)
    ] = "forward",
    algorithm: Annotated[
        str, typer.Option(help="The algorithm that a call would name. Default: auto.", autocompletion=NAMES)
    ] = "auto",
    precision: InPrecision = "strict",
    max_workspace: Annotated[int | None, typer.Option(help="Bytes of extra memory allowed.", min=0)] = None,
    json: Json = None,
) -> None:
    """Show which algorithm would run, why, and at what cost."""
    with _usage_errors("explain"):
        _check_folder_of(json)
        if device == "cpu":
            try_numba()
        plan = gpuconv.plan(
            problem,
            dtype,
            device,
            direction=cast("Direction", direction),
            precision=cast("Precision", precision),
            algorithm=cast("AlgorithmName", algorithm),
            max_workspace=max_workspace,
        )
    if json:
        content = {
            "problem": str(plan.geometry),
            **{name: getattr(plan, name) for name in ("dtype", "precision", "device", "direction", "chosen", "flops")},
            **{name: getattr(plan, name) for name in ("workspace", "copied", "seconds", "by_sample")},
            "candidates": [asdict(candidate) for candidate in plan.candidates],
        }
        if not _is_put("explain", json, content):
            raise typer.Exit(1)
        if json == STDOUT:
            return
    _say(plan)


@app.command()
def warmup(
    problem: Annotated[
        list[str] | None, typer.Option(help="A problem whose loops are compiled instead of the usual ones; repeatable.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float64 or, with AMX, bfloat16; repeatable. Default: all of these."),
    ] = None,
) -> None:
    """Compile the loops of the CPU ahead, on all cores, so that no later call on this machine waits for it.

    It needs Numba. Without --problem these are the loops of direct, winograd and pooling, those of the
    depthwise kernels of well-known networks and, for bfloat16, those of amx.
    """
    from gpuconv.tools import compiled_loops

    dtypes = dtype or compiled_loops.served()
    with _usage_errors("warmup"):
        for name in dtypes:
            compiled_loops.check_dtype(name)
        jobs = compiled_loops.of_problems(problem, dtypes) if problem else compiled_loops.usual(dtypes)
    try_numba()
    if reason := why_no_numba():
        _say(f"gpuconv warmup: {reason}", err=True)
        raise typer.Exit(2)
    from gpuconv.simd import compiled_cache

    begin, done, interrupted = perf_counter(), list[compiled_loops.Outcome](), False
    with closing(compiled_loops.compile_all(jobs)) as outcomes, _progress() as progress:
        task = progress.add_task("compiling", total=len(jobs))
        try:
            for outcome in outcomes:
                done.append(outcome)
                progress.update(task, advance=1, description=f"compiling; done: {outcome.job}")
        except KeyboardInterrupt:
            interrupted = True
    compiled, found = sum(outcome.compiled for outcome in done), sum(outcome.found for outcome in done)
    failures = [outcome for outcome in done if outcome.error]
    for outcome in failures[:SHOWN_FAILURES]:
        _say(f"gpuconv warmup: {outcome.job}: {outcome.error}", err=True)
    _say(
        f"{compiled} loops compiled in {perf_counter() - begin:.0f} s, and {found} found that were there; "
        f"they are kept in {compiled_cache.folder()}"
    )
    raise typer.Exit(INTERRUPTED if interrupted else int(bool(failures)))


@app.command()
def kernels(
    arch: Annotated[
        list[str] | None, typer.Option(help="An architecture such as sm_90; repeatable. Default: sm_70 to sm_120.")
    ] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(help="A kernel whose units are all shown; repeatable. Default: all kernels.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every unit for every architecture, which may take half an hour.")
    ] = False,
    json: Json = None,
) -> None:
    """Show registers, spills, shared memory and, with nvdisasm, instructions per step of every CUDA kernel.

    It needs NVRTC, but no GPU.
    """
    from gpuconv.tools import kernel_report, kernel_table

    with _usage_errors("kernels"):
        _check_folder_of(json)
        try:
            archs = kernel_report.architectures(arch or ())
        except ModuleNotFoundError as error:
            _say(f"gpuconv kernels: {error}", err=True)
            raise typer.Exit(2) from None
        sampled = not (arch or kernel or every)
        jobs = kernel_report.sample() if sampled else kernel_report.jobs(archs, kernel or ())
    done: list[kernel_report.Outcome] = []
    interrupted = False
    with closing(kernel_report.compile_all(jobs, count_all=bool(kernel))) as outcomes, _progress() as progress:
        task = progress.add_task("compiling", total=len(jobs))
        try:
            for outcome in outcomes:
                done.append(outcome)
                progress.advance(task)
        except KeyboardInterrupt:
            interrupted = True
    record = kernel_report.record(done, jobs)
    unsaved = json and not _is_put("kernels", json, record)
    faults = record["faults"]
    status = INTERRUPTED if interrupted else int(bool(faults or unsaved))
    if json == STDOUT:
        raise typer.Exit(status)
    console = _console()
    console.print(kernel_table.table(done, kernel or ()))
    if steps := kernel_table.steps(done, kernel or ()):
        console.print("instructions per turn of the main loop, and how many of them do its work", steps)
    for fault in faults[:SHOWN_FAILURES]:
        console.print(f"[red]wrong[/]: {escape(fault)}", soft_wrap=True)
    if len(faults) > SHOWN_FAILURES:
        console.print(f"[red]wrong[/]: {len(faults) - SHOWN_FAILURES} more, all of them in the file that --json saves")
    console.print(kernel_report.summary(done, jobs, sampled), soft_wrap=True)
    raise typer.Exit(status)


@app.command()
def demo(
    image: Annotated[str, typer.Option(help="Your own picture, or one of two photographs: china, flower.")] = "china",
    out: Annotated[
        Path, typer.Option(help="Where to save: a folder, or a file such as demo.png or demo.pdf.")
    ] = Path(),
    device: Device = "cpu",
    epochs: Annotated[int, typer.Option(help="How often the network sees each digit.", min=1)] = 20,
    algorithm: Annotated[
        str, typer.Option(help="The algorithm of the network's convolutions.", autocompletion=NAMES)
    ] = "auto",
    seed: Annotated[int, typer.Option(help="The seed of the network's weights and of all that is random.", min=0)] = 0,
) -> None:
    """Filter a photograph, compare every algorithm with for-loops, and train a network to read digits."""
    from gpuconv.demo import compare, contact_sheet, digits, filter_panels, lenet, pictures, training_figure

    named = cast("AlgorithmName", algorithm)
    with _usage_errors("demo"):
        device = backend.check_device(device, "demo")
        lenet.check_algorithm(named, device)
        photo = pictures.load(image)
        name = Path(image).stem
        path = contact_sheet.target(out, name)
    console, where = _console(), backend.device_name(device)
    with _progress() as progress:
        made = list(
            progress.track(filter_panels.panels(photo, device), total=filter_panels.PANELS, description="filtering")
        )
        progress.add_task("drawing", total=None)
        with _usage_errors("demo"):
            contact_sheet.save(made, path, f"{name}, filtered on {where}")
    console.print(f"{len(made)} pictures on one sheet: [bold]{escape(str(path))}[/]\n", soft_wrap=True)
    with _progress() as progress:
        rows = progress.track(compare.comparisons(photo, device), total=compare.count(), description="comparing")
        table = _comparison_table(rows)
    console.print("A crop of it, by every algorithm", table)
    trained = lenet.train(digits.load(), epochs, algorithm=named, device=device, seed=seed)
    learnt = path.with_name(f"{path.stem}-lenet{path.suffix}")
    with _usage_errors("demo"):
        training_figure.save(trained, learnt, f"{trained.words}, on {where}")
    console.print(f"{trained.words}.")
    console.print(
        f"It reads [bold]{trained.accuracy:.1%}[/] of {len(trained.predicted):,} digits that it never saw: "
        f"[bold]{escape(str(learnt))}[/]",
        soft_wrap=True,
    )
    raise typer.Exit(INTERRUPTED if trained.history.interrupted else 0)


@app.command()
def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite of layers such as resnet50, or unet:r3s3 for those with r3s3; repeatable. list names all.",
            autocompletion=_suites,
        ),
    ] = None,
    problem: Annotated[list[str] | None, typer.Option(help="A problem string; repeatable.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="The batch of every suite. Default: its smallest; on a GPU its largest.", min=1)
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            help="forward, input_grad or weight_grad; repeatable. Default: all three, of integers forward.",
            autocompletion=PASSES,
        ),
    ] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="An algorithm to time; repeatable. Default: the one that is chosen.", autocompletion=NAMES),
    ] = None,
    dtype: DType = "float32",
    precision: InPrecision = "strict",
    device: Device = "cpu",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="matmul (the default), candidates (other algorithms), float64 (for integers), torch, jax, "
            "onnxruntime or scipy; repeatable.",
            autocompletion=_among(["matmul", "candidates", "float64", "torch", "jax", "onnxruntime", "scipy"]),
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads, on both sides. Default: all cores.", min=1)] = None,
    repeats: Annotated[int, typer.Option(help="Turns of each side; fewer if they take too long.", min=1)] = 15,
    json: Annotated[
        Path | None,
        typer.Option(
            help="Save the results with their provenance, in a file, or in a folder under a descriptive name."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into a file such as bench.png or bench.pdf.")] = None,
    show: Annotated[Path | None, typer.Option(help="Measure nothing; print (and --plot) what --json saved.")] = None,
    training_step: Annotated[
        bool, typer.Option("--training-step", help="Instead of layers, one training step of the demo's LeNet.")
    ] = False,
    neighbours: Annotated[
        int | None,
        typer.Option(help="Instead of speed, how much slower calls get beside this many busy processes.", min=1),
    ] = None,
) -> None:
    """Time convolution against its peers, or the machine's own matrix product, turn by turn after validation."""
    from gpuconv.bench import case, peers, runner, suites
    from gpuconv.bench.limits import measure as measure_limits
    from gpuconv.bench.record import Provenance, Record
    from gpuconv.bench.runner import threads as held_to

    if suite == ["list"]:
        _say("\n".join(suites.names()))
        return
    if training_step:
        _training_step(device, batch, against, threads, repeats, json)
        return
    with _usage_errors("bench"):
        _check_folder_of(json, plot)
        if json == STDOUT:
            raise ValueError("--json - is for the other commands: bench saves each row at once. Name a file.")
        if plot:
            from gpuconv.bench import plots

            plots.check_target(plot)
        if show:
            _report(Record.read(show), plot)
            return
        device = backend.check_device(device, "bench")
        chosen = suites.choose(suite, problem, batch, largest=device != "cpu")
        cases, left_out = case.cases(
            chosen,
            cast("list[Direction]", direction or _passes_of(dtype)),
            algorithm or ["auto"],
            dtype,
            cast("Precision", precision),
            device,
        )
        if neighbours and (device != "cpu" or json or plot):
            raise ValueError("--neighbours measures the CPU, and saves and draws nothing")
        against = list(dict.fromkeys(against or ([] if neighbours else ["matmul"])))
        opponents = {name: peers.load(name) for name in against}
    if neighbours:
        with held_to(threads):
            _beside_neighbours(cases, opponents, neighbours)
        return
    versions = {package: version for name in against for package, version in peers.versions(name).items()}
    with held_to(threads):
        record = Record(Provenance.here(device, versions), measure_limits(dtype, device, cases))
        takes = runner.estimate(cases, against, repeats, record.limits)
        _say(f"{len(cases)} cases to measure, {_roughly(takes)}", err=True)
        status = _measure(cases, opponents, repeats, record, json)
    if json and not _is_saved("bench", lambda: record.write(json)):
        status = status or 1
    with _usage_errors("bench"):
        _report(record, plot)
    if left_out:
        _say(f"{len(left_out)} cases left out, for instance: {_plain(left_out[0])}")
    raise typer.Exit(status)


def _passes_of(dtype: str) -> Sequence[str]:
    """The passes that a dtype has: integers have no gradients."""
    from gpuconv.functions.integers import are_integers

    return ("forward",) if are_integers(dtype) else DIRECTIONS


def _beside_neighbours(cases: Sequence[Case], opponents: Mapping[str, Peer], count: int) -> None:
    """Print how much slower each case gets beside busy processes, and the geometric mean of each side."""
    from gpuconv.bench import neighbours

    ratios: dict[str, list[float]] = {}
    for case, side, slowdown, way in neighbours.measure(cases, opponents, count):
        ratios.setdefault(side, []).append(slowdown.ratio)
        _say(
            f"{case}: {side} ({way}) {1e6 * slowdown.alone:.0f} us alone, {1e6 * slowdown.beside:.0f} us beside "
            f"{count} busy processes, {slowdown.ratio:.2f} times as long"
        )
    for side, found in ratios.items():
        mean = neighbours.geometric_mean(found)
        _say(f"{side}: {mean:.2f} times as long in the geometric mean of {len(found)} cases, at most {max(found):.2f}")


def _training_step(
    device: str, batch: int | None, against: list[str] | None, threads: int | None, repeats: int, json: Path | None
) -> None:
    """Measure a training step, and if asked for also PyTorch's."""
    from gpuconv.bench import peers, tables, training
    from gpuconv.bench.record import Provenance
    from gpuconv.bench.runner import WrongResult
    from gpuconv.bench.runner import threads as held_to

    with _usage_errors("bench"):
        device = backend.check_device(device, "bench")
        if set(against or ()) - {"torch"}:
            raise ValueError(f"a training step can be measured against torch, not against {', '.join(against or ())}")
        _check_folder_of(json)
        if against:
            peers.load("torch")
        versions = peers.versions("torch") if against else {}
    with held_to(threads):
        provenance = Provenance.here(device, versions)
        try:
            result = training.measure(device, batch, repeats, against_torch=bool(against))
        except WrongResult as error:
            _say(f"gpuconv bench: {error}", err=True)
            raise typer.Exit(1) from None
    unsaved = json and not _is_saved("bench", lambda: result.write(json, provenance), json)
    console = _console()
    console.print(tables.origin(provenance), markup=False, soft_wrap=True)
    console.print(result.table())
    if notes := tables.notes([result.times, *result.peers.values()]):
        console.print(notes, markup=False, soft_wrap=True)
    if unsaved:
        raise typer.Exit(1)


def _measure(
    cases: Sequence[Case], opponents: Mapping[str, Peer], repeats: int, record: Record, json: Path | None
) -> int:
    """Add a row per case, save and show it at once, and return the exit status.

    After each row the file holds all rows so far, whatever ends the process.
    """
    from gpuconv.bench import runner, tables

    console, progress = _console(), _progress()
    task = progress.add_task("measuring", total=len(cases))
    wrong: list[str] = []
    try:
        # Drawn between the measurements: a drawing thread would slow them down.
        with (
            termination.as_an_interrupt(),
            Live(progress, console=console, transient=True, auto_refresh=False) as live,
        ):
            for number, case in enumerate(cases, 1):
                progress.update(task, description=str(case))
                live.refresh()
                try:
                    row = runner.measure(case, opponents, repeats)
                except runner.WrongResult as error:
                    wrong.append(str(error))
                except Exception as error:  # whatever went wrong, the other cases are still measured
                    wrong.append(f"{case}: {type(error).__name__}: {error}")
                else:
                    record.rows.append(row)
                    if json:
                        with suppress(OSError):  # said at the end, where it is written once more
                            record.write(json)
                    if not console.is_terminal:
                        _say(f"{number} of {len(cases)}: {tables.line(row)}", err=True)
                progress.advance(task)
                latest = record.rows[-max(1, console.height - ROOM_BELOW) :]
                live.update(Group(tables.rows(latest, record.limits, list(opponents), console.width), progress))
    except KeyboardInterrupt as interrupt:
        return termination.status(interrupt)
    finally:
        for message in wrong:
            _say(f"gpuconv bench: {message}", err=True)
    return int(bool(wrong))


def _roughly(seconds: float) -> str:
    """A rough number of seconds in words.

    >>> _roughly(3), _roughly(50), _roughly(400)
    ('a few seconds', 'about a minute', 'about 7 minutes')
    """
    minutes = round(seconds / 60)
    return "a few seconds" if seconds < 20 else "about a minute" if minutes <= 1 else f"about {minutes} minutes"


def _report(record: Record, plot: Path | None) -> None:
    """Print a record, and draw it if asked for."""
    from gpuconv.bench import tables

    console = _console()
    console.print(tables.head(record), markup=False, soft_wrap=True)
    if not record.rows:
        return
    console.print(tables.rows(record.rows, record.limits, record.peers, console.width))
    if notes := tables.notes(record.times):
        console.print(notes, markup=False, soft_wrap=True)
    for peer in record.peers:
        console.print(Text(tables.title_of_means(peer)), tables.means(record, peer, console.width))
        console.print(tables.verdict(record, peer), markup=False, soft_wrap=True)
    if plot:
        from gpuconv.bench import plots

        plots.save(record, plot)
        console.print(f"drawn: {plot}", markup=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------------ tables


def _check_table(outcomes: Sequence[Outcome]) -> Table:
    """Return a table whose rows are algorithms and columns dtypes; a cell counts the cases that ran."""
    dtypes = dict.fromkeys(outcome.dtype for outcome in outcomes)
    table = Table("device", "algorithm", *dtypes, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for device, algorithm in dict.fromkeys((outcome.device, outcome.algorithm) for outcome in outcomes):
        row = [o for o in outcomes if (o.device, o.algorithm) == (device, algorithm) and not o.refused]
        cells = []
        for dtype in dtypes:
            ran = [o for o in row if o.dtype == dtype]
            wrong = sum(bool(o.failure) for o in ran)
            cells.append(
                f"[red]{wrong} of {len(ran)} wrong" if wrong else f"[green]{len(ran)} right" if ran else "refused"
            )
        table.add_row(device, algorithm, *cells)
    return table


def _comparison_table(comparisons: Iterable[Comparison]) -> Table:
    table = Table("filter", "algorithm", box=box.SIMPLE_HEAD, padding=0)
    for header in ("time", "against loops", "largest difference"):
        table.add_column(header, justify="right")
    loops = 0.0
    for row in comparisons:
        if row.refusal:
            table.add_row(row.filter, row.algorithm, "refused", "", "")
        elif row.algorithm == "loops":
            loops = row.seconds
            table.add_row(row.filter, row.algorithm, f"{row.seconds * 1e3:.2f} ms", "", "")
        else:
            speed = f"{loops / row.seconds:.0f} × as fast"
            table.add_row(row.filter, row.algorithm, f"{row.seconds * 1e3:.2f} ms", speed, f"{row.error:.1e}")
    return table


# ------------------------------------------------------------------------------------------------ the terminal


def _say(text: object, *, err: bool = False) -> None:
    """Print a line in the encoding of the stream; typer.echo would use UTF-8 even if that is ASCII."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def _where_tuned() -> str:
    try:
        return f"in {autotune.path()}"
    except FileNotFoundError as error:
        return f"in no file: {error.strerror}"


def _console() -> Console:
    """Return a console on standard output, which in a pipe or a file is wide enough for every table.

    In a pipe COLUMNS, if it is set, still says how wide it is.
    """
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in environ:
        console.width = WIDTH_OF_A_FILE
    return console


def _progress() -> Progress:
    """Return a progress bar that leaves no trace when it is done, and shows nothing without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _check_folder_of(*paths: Path | None) -> None:
    for path in filter(None, paths):
        if path == STDOUT:
            continue
        if not path.parent.is_dir():
            raise ValueError(f"{str(path.parent)!r} is not a folder to save {path.name!r} in")
        if path.is_dir():
            continue
        disk.check_writable(path, "it cannot be saved")
        with suppress(AttributeError, OSError):  # no output, not a stream of the system, no such file
            if samestat(path.stat(), fstat(sys.stdout.fileno())):
                raise ValueError(f"{str(path)!r} is where the tables go; name another file to save in")


def _is_saved(command: str, write: Callable[[], Path | None], path: Path | None = None) -> bool:
    """Save a file and return whether that succeeded; if not, the measurements are still to be shown."""
    try:
        _say(f"saved: {write() or path}")
    except OSError as error:
        _say(f"gpuconv {command}: {error.strerror}: {error.filename!r}", err=True)
        return False
    return True


def _is_put(command: str, json: Path, content: Mapping[str, Any]) -> bool:
    """Write what --json asks for, to standard output or a file, and return whether that succeeded."""
    text = dumps(content, indent=1)
    if json == STDOUT:
        _say(text)
        return True
    return _is_saved(command, lambda: disk.write_whole(json, f"{text}\n".encode(), "--json"), json)


def _plain(message: object) -> str:
    """A message of the library without the name of the function that was called, which the user did not call.

    >>> _plain("plan: dtype is uint8"), _plain("no suite: there is none")
    ('dtype is uint8', 'no suite: there is none')
    """
    return re.sub(r"^(autotune|bench|check|demo|info|limits|parse|plan|warmup|Workload(\.\w+)?): ", "", str(message))


@contextmanager
def _usage_errors(command: str) -> Iterator[None]:
    """Report an argument that the library or the file system refuses in one line, with exit status 2."""
    try:
        yield
    except (DeviceError, MemoryError, TypeError, ValueError) as error:
        _say(f"gpuconv {command}: {_plain(error)}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        _say(f"gpuconv {command}: {error.strerror}: {error.filename!r}", err=True)
        raise typer.Exit(2) from None
