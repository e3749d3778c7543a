"""What the memory accesses of a launch would cost a GPU, a source line at a time."""

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SPACES = ("global", "shared", "local", "const", "generic")
ACCESSES = ("read", "write", "atomic")


@dataclass(frozen=True)
class Row:
    """The requests of one line to one kind of memory, summed over all warps of a launch.

    A request is what the lanes of a warp ask for with one instruction. `cost` counts 32-byte sectors of global memory,
    or wavefronts of shared memory (a wavefront serves each of 32 banks once); `ideal` what the cost would be if the
    bytes lay side by side. `worst` is the cost of the worst single request. Accesses of helpers in .cuh files stand
    under the line of the .cu file that called them.
    """

    file: str
    line: int
    space: str  # global, shared, local
    access: str  # read, write, atomic
    requests: int
    bytes: int
    cost: int
    ideal: int
    worst: int

    @property
    def kind(self) -> str:
        return f"{self.space} {self.access}"

    @property
    def sectors(self) -> int:
        return self.cost if self.space == "global" else 0

    @property
    def ideal_sectors(self) -> int:
        return self.ideal if self.space == "global" else 0

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts more than needed."""
        return self.cost - self.ideal if self.space == "shared" else 0

    @property
    def ratio(self) -> float:
        return self.cost / self.ideal

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return (
            f"{place:24} {self.kind:14} {self.requests:9} requests {self.cost:9} for {self.ideal:9}"
            f"  x{self.ratio:5.2f}  worst {self.worst}"
        )


@dataclass(frozen=True)
class Traffic:
    """The rows of one launch; `print` shows them as a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))

    def only(self, space: str | None = None, access: str | None = None, file: str | None = None) -> "Traffic":
        """The rows of one space, access, file."""
        wanted = {"space": space, "access": access, "file": file}
        return Traffic(tuple(r for r in self.rows if all(v is None or getattr(r, k) == v for k, v in wanted.items())))

    def ratio(self, space: str = "global", access: str | None = None, file: str | None = None) -> float:
        """Cost over ideal cost of all such rows together: 1 is perfect. 1.0 where there are none."""
        rows = self.only(space, access, file)
        return total(rows, "cost") / max(total(rows, "ideal"), 1) if len(rows) else 1.0

    @property
    def bank_conflicts(self) -> int:
        return total(self.rows, "bank_conflicts")

    @property
    def sectors(self) -> int:
        return total(self.rows, "sectors")

    @property
    def ideal_sectors(self) -> int:
        return total(self.rows, "ideal_sectors")


def total(rows: Iterable[Row], what: str) -> int:
    return sum(getattr(row, what) for row in rows)


def read(runtime: ctypes.CDLL) -> Traffic:
    """The rows of the launch that the runtime has just run with COUNT."""
    runtime.emulator_traffic.restype = ctypes.c_char_p
    rows = []
    for line in runtime.emulator_traffic().decode().splitlines():
        where, number, space, access, *counts = line.split("\t")
        # "conv.cuh:30 in im2col.cu": the last is the file of the line
        file = where.rpartition(" ")[2]
        rows.append(Row(file, int(number), SPACES[int(space)], ACCESSES[int(access)], *map(int, counts)))
    return Traffic(tuple(merged(rows)))


def merged(rows: list[Row]) -> list[Row]:
    """One row for a line: several helpers may stand on it."""
    by_key: dict[tuple, list[Row]] = {}
    for row in rows:
        by_key.setdefault((row.file, row.line, row.space, row.access), []).append(row)
    return [
        Row(
            *key,
            *(sum(getattr(row, name) for row in same) for name in ("requests", "bytes", "cost", "ideal")),
            max(row.worst for row in same),
        )
        for key, same in sorted(by_key.items())
    ]
