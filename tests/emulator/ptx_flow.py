"""The flow of control of a PTX function: labels made unique, and the loops each statement stands in.

The traffic report must know which accesses of the 32 lanes of a warp are one request. Here each thread runs by itself
from barrier to barrier, so requests are put together afterwards: accesses of one instruction belong together where the
threads were in the same pass of every loop around it. Hence a counter for each loop, which this file places.
"""

from dataclasses import dataclass, field, replace

from .ptx_parse import Instruction, Label, PtxError, Scope, Statement


def unique_labels(body: list[Statement]) -> list[Statement]:
    """The body with labels and targets renamed: a label is known in its { } only, and inlined asm repeats them."""
    paths, path, opened = [], (0,), 0
    for statement in body:
        if isinstance(statement, Scope):
            opened += statement.opens
            path = (*path, opened) if statement.opens else path[:-1]
        paths.append(path)
    known = {(p, s.name): f"{s.name}_{p[-1]}" for p, s in zip(paths, body, strict=True) if isinstance(s, Label)}

    def target(path: tuple[int, ...], name: str) -> str:
        for depth in range(len(path), 0, -1):
            if (path[:depth], name) in known:
                return known[path[:depth], name]
        raise PtxError(f"no label {name}")

    renamed = []
    for path, statement in zip(paths, body, strict=True):
        if isinstance(statement, Label):
            statement = Label(known[path, statement.name])
        elif isinstance(statement, Instruction) and is_branch(statement):
            statement = replace(statement, operands=(target(path, statement.operands[0]),))
        renamed.append(statement)
    return renamed


def is_branch(statement: Statement) -> bool:
    return isinstance(statement, Instruction) and statement.opcode in {"bra", "bra.uni"}


def ends(statement: Statement) -> bool:
    """Whether control never goes on to the next statement."""
    if not isinstance(statement, Instruction) or statement.guard:
        return False
    return statement.opcode in {"bra", "bra.uni", "ret", "ret.uni", "exit", "trap"}


@dataclass
class Block:
    first: int  # its statements are body[first:last]
    last: int
    next: list[int] = field(default_factory=list)


def blocks_of(body: list[Statement]) -> list[Block]:
    starts = {0, *(i for i, s in enumerate(body) if isinstance(s, Label))}
    starts |= {i + 1 for i, s in enumerate(body) if (is_branch(s) or ends(s)) and i + 1 < len(body)}
    order = sorted(starts)
    blocks = [Block(a, b) for a, b in zip(order, [*order[1:], len(body)], strict=True)]
    at = {body[block.first].name: i for i, block in enumerate(blocks) if isinstance(body[block.first], Label)}
    for i, block in enumerate(blocks):
        final = body[block.last - 1]
        if is_branch(final):
            block.next.append(at[final.operands[0]])
        if not ends(final) and i + 1 < len(blocks):
            block.next.append(i + 1)
    return blocks


def dominators(blocks: list[Block]) -> list[int]:
    """For each block the set of blocks that every way to it goes through, as bits of an int."""
    before: list[list[int]] = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        for j in block.next:
            before[j].append(i)
    every = (1 << len(blocks)) - 1
    dominates = [1, *[every] * (len(blocks) - 1)]
    changed = True
    while changed:
        changed = False
        for i in range(1, len(blocks)):
            common = every
            for j in before[i]:
                common &= dominates[j]
            if (found := common | 1 << i) != dominates[i]:
                dominates[i], changed = found, True
    return dominates


class Loops:
    """The natural loops of a body, by the number of the block that each begins with."""

    def __init__(self, body: list[Statement]):
        self.blocks = blocks_of(body)
        self.members: dict[int, set[int]] = {}
        before: dict[int, list[int]] = {}
        for i, block in enumerate(self.blocks):
            for j in block.next:
                before.setdefault(j, []).append(i)
        dominates = dominators(self.blocks)
        self.back_edges = {
            (i, head) for i, block in enumerate(self.blocks) for head in block.next if dominates[i] >> head & 1
        }
        for tail, head in self.back_edges:
            inside = self.members.setdefault(head, {head})
            todo = [tail]
            while todo:
                if (block := todo.pop()) not in inside:
                    inside.add(block)
                    todo += before.get(block, ())
        self.head_at = {body[self.blocks[h].first].name: h for h in self.members}

    def around(self, block: int) -> list[int]:
        """The loops that a block is in, the outermost first."""
        return sorted((h for h, inside in self.members.items() if block in inside), key=lambda h: -len(self.members[h]))

    def step(self, block: int, to: int) -> str:
        """C++ for going from one block to another: the counter of a loop is reset on entry and grows with each pass."""
        if to not in self.members:
            return ""
        return f"++pass{to}; " if (block, to) in self.back_edges else f"pass{to} = 0; "
