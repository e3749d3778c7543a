"""The `gpuconv` command line. Each command imports what it needs, so that `gpuconv --help` answers at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import gpuconv
from gpuconv import backend, cpu, settings
from gpuconv.algorithms import ALGORITHMS
from gpuconv.errors import DeviceError
from gpuconv.plan import DIRECTIONS, si
from gpuconv.typing import Direction, Precision

if TYPE_CHECKING:
    from gpuconv.bench.results import Row
    from gpuconv.check import Outcome
    from gpuconv.demo.compare import Comparison

WIDTH_OF_A_FILE = 132
SHOWN_FAILURES = 10
INTERRUPTED = 130

app = typer.Typer(
    help="Convolution for NumPy and CuPy arrays, on a CUDA GPU or on the CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, or cuda:1 for a certain GPU.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Convolution for NumPy and CuPy arrays, on a CUDA GPU or on the CPU."""
    if version:
        typer.echo(f"gpuconv {gpuconv.__version__}")
        raise typer.Exit


@app.command()
def info() -> None:
    """What is here: versions, devices, algorithms, settings."""
    from gpuconv import machine

    table = Table.grid(padding=(0, 3))
    versions = machine.versions()
    for name, version in versions.items():
        table.add_row(name, version)
    if "cupy" not in versions:
        table.add_row("cupy", "not installed; for a CUDA GPU: python -m pip install 'gpuconv\\[cuda13]' (or cuda12)")
    cpu_row, *gpu_rows = backend.devices()
    table.add_row("devices", f"{cpu_row} {machine.cpu()}")
    for device in gpu_rows:
        table.add_row("", backend.device_name(device))
    table.add_row("algorithms", ", ".join(algorithm.name for algorithm in ALGORITHMS))
    table.add_row("threads", str(cpu.workers()))
    table.add_row("max_workspace", f"{si(settings.max_workspace)}B")
    _console().print(table)


@app.command()
def check(
    device: Annotated[list[str] | None, typer.Option(help="A device to check; repeatable. Default: all.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="A dtype to check; repeatable. Default: all.")] = None,
) -> None:
    """Is this installation right? Every algorithm on every device, held to an independent reference at tolerance 0."""
    from gpuconv import check as checks

    devices, dtypes = device or backend.devices(), dtype or checks.available_dtypes()
    with _usage_errors("check"):
        for name in devices:
            backend.check_device(name, "device")
        for name in dtypes:
            backend.as_dtype(name, "dtype")
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
    console = _console()
    console.print(_check_table(outcomes))
    for outcome in failures[:SHOWN_FAILURES]:
        case = f"{outcome.device} {outcome.algorithm} {outcome.dtype} {outcome.problem} {outcome.direction}"
        console.print(f"[red]{case}[/]: {escape(outcome.failure)}", soft_wrap=True)
    passed = len(outcomes) - refused - len(failures)
    console.print(
        f"{passed} cases right, {len(failures)} wrong, {refused} refused by an algorithm that is not made for them"
    )
    raise typer.Exit(INTERRUPTED if interrupted else int(bool(failures)))


@app.command()
def explain(
    problem: Annotated[str, typer.Argument(help="A problem string, for instance n8_h56w56_c64_k64_r3s3_p1.")],
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(backend.DTYPES)}.")] = "float32",
    device: Device = "cpu",
    direction: Annotated[str, typer.Option(help="forward, input_grad or weight_grad.")] = "forward",
    precision: Annotated[str, typer.Option(help="strict or fast.")] = "strict",
    max_workspace: Annotated[int | None, typer.Option(help="Bytes of extra memory allowed.", min=0)] = None,
) -> None:
    """Which algorithm would run, why, and at what cost."""
    with _usage_errors("explain"):
        typer.echo(
            gpuconv.plan(
                problem,
                dtype,
                device,
                direction=cast("Direction", direction),
                precision=cast("Precision", precision),
                max_workspace=max_workspace,
            )
        )


@app.command()
def demo(
    image: Annotated[str, typer.Option(help="A picture of yours; or one of the photographs: china, flower.")] = "china",
    out: Annotated[
        Path, typer.Option(help="Where to save: a folder, or a file such as demo.png or demo.pdf.")
    ] = Path(),
    device: Device = "cpu",
) -> None:
    """A photograph under a bank of filters, saved as one picture, and every algorithm held to the for-loops."""
    from gpuconv.demo import compare, panels, pictures, sheet

    with _usage_errors("demo"):
        backend.check_device(device, "device")
        photo = pictures.load(image)
        name = Path(image).stem
        path = sheet.target(out, name)
    console = _console()
    with _progress() as progress:
        made = list(progress.track(panels.panels(photo, device), total=panels.PANELS, description="filtering"))
        progress.add_task("drawing", total=None)
        with _usage_errors("demo"):
            sheet.save(made, path, f"{name}, filtered on {backend.device_name(device)}")
    console.print(f"{len(made)} pictures on one sheet: [bold]{escape(str(path))}[/]\n", soft_wrap=True)
    with _progress() as progress:
        rows = progress.track(compare.comparisons(photo, device), total=compare.count(), description="comparing")
        table = _comparison_table(rows)
    console.print(table)


@app.command()
def bench(
    problem: Annotated[
        list[str] | None, typer.Option(help="A problem string; repeatable. Default: three layers and a large picture.")
    ] = None,
    direction: Annotated[
        list[str] | None, typer.Option(help="forward, input_grad or weight_grad; repeatable. Default: all three.")
    ] = None,
    algorithm: Annotated[
        list[str] | None, typer.Option(help="An algorithm to time; repeatable. Default: the one that is chosen.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Turns to take the median of; fewer where they take over 10 s.", min=1)
    ] = 15,
    json: Annotated[
        Path | None, typer.Option(help="Save the rows here, with their provenance.", dir_okay=False)
    ] = None,
) -> None:
    """Float32 convolution on the CPU beside NumPy's own matrix product of the same FLOPs, turn by turn."""
    from gpuconv.bench import results, runner, suites

    directions = cast("list[Direction]", direction or DIRECTIONS)
    cases = list(itertools.product(problem or suites.DEFAULT, directions, algorithm or ["auto"]))
    with _usage_errors("bench"):
        for case in cases:
            runner.chosen(*case)
        if json and not json.parent.is_dir():
            raise ValueError(f"{str(json.parent)!r} is not a folder to save {json.name!r} in")
    provenance = results.Provenance()
    rows: list[results.Row] = []
    table = _bench_table()
    console, progress = _console(), _progress()
    status = 0
    try:
        with Live(Group(table, progress), console=console, transient=True):
            for case in progress.track(cases, description="measuring"):
                row = runner.measure(*case, repeats)
                rows.append(row)
                table.add_row(*_bench_cells(row))
    except runner.WrongResult as error:
        typer.echo(f"gpuconv bench: {error}", err=True)
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    console.print(
        f"{provenance.device}, {provenance.cores} cores, NumPy {provenance.versions['numpy']}, {provenance.date}"
    )
    console.print(table)
    if json:
        results.write(json, rows, provenance)
        console.print(f"saved: {escape(str(json))}", soft_wrap=True)
    raise typer.Exit(status)


# ------------------------------------------------------------------------------------------------ tables


def _check_table(outcomes: Sequence[Outcome]) -> Table:
    """Rows are algorithms, columns dtypes; a cell counts the cases that ran."""
    dtypes = dict.fromkeys(outcome.dtype for outcome in outcomes)
    table = Table("device", "algorithm", *dtypes, box=box.SIMPLE_HEAD)
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
    table = Table(
        "filter", "algorithm", box=box.SIMPLE_HEAD, title="A crop of it, by every algorithm", title_justify="left"
    )
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


def _bench_table() -> Table:
    table = Table("problem", "direction", "algorithm", box=box.SIMPLE_HEAD)
    for header in ("ms", "GFLOP/s", "matmul GFLOP/s", "ratio", "extra memory", "allowed"):
        table.add_column(header, justify="right")
    return table


def _bench_cells(row: Row) -> tuple[str, ...]:
    return (
        row.problem,
        row.direction,
        row.algorithm,
        f"{row.milliseconds:.2f}",
        f"{row.gflops:.1f}",
        f"{row.matmul_gflops:.1f}",
        f"{row.ratio:.2f}",
        f"{si(row.extra_bytes)}B",
        f"{si(row.max_workspace)}B",
    )


# ------------------------------------------------------------------------------------------------ the terminal


def _console() -> Console:
    """Standard output; in a pipe or a file, wide enough for every table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    return console


def _progress() -> Progress:
    """A bar that leaves no trace when it is done, and shows nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def _usage_errors(command: str) -> Iterator[None]:
    """An argument that the library or the file system refuses is told in one line, with exit status 2."""
    try:
        yield
    except (DeviceError, MemoryError, TypeError, ValueError) as error:
        typer.echo(f"gpuconv {command}: {error}", err=True)
        raise typer.Exit(2) from None
