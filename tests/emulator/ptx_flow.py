"""The flow of control of a PTX function: labels made unique, and the loops each statement stands in.

The traffic report must know which accesses of the 32 lanes of a warp are one request. Here each thread runs by itself
from barrier to barrier, so requests are put together afterwards: accesses of one instruction belong together where the
threads were in the same pass of every loop around it. Hence a counter for each loop, which this file places.
"""

from collections.abc import Callable
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


def cycles(blocks: list[Block], inside: set[int]) -> list[list[int]]:
    """The largest sets of blocks within `inside` that lead to each other (Kosaraju's two walks)."""
    before: dict[int, list[int]] = {i: [] for i in inside}
    for i in inside:
        for j in blocks[i].next:
            if j in inside:
                before[j].append(i)

    def walk(start: int, to: Callable[[int], list[int]], seen: set[int]) -> list[int]:
        """Blocks that can be reached and were not seen before, each after those that it leads to."""
        seen.add(start)
        finished, path = [], [(start, iter(to(start)))]
        while path:
            rest = path[-1][1]
            following = next((j for j in rest if j in inside and j not in seen), None)
            if following is None:
                finished.append(path.pop()[0])
            else:
                seen.add(following)
                path.append((following, iter(to(following))))
        return finished

    seen: set[int] = set()
    order = [block for i in sorted(inside) if i not in seen for block in walk(i, lambda j: blocks[j].next, seen)]
    seen = set()
    found = [walk(i, lambda j: before[j], seen) for i in reversed(order) if i not in seen]
    return [sorted(same) for same in found if len(same) > 1 or same[0] in blocks[same[0]].next]


class Loops:
    """The loops of a body, by the number of the block that each begins with.

    A loop is a set of blocks that lead to each other. It begins with the block that is entered from outside, the first
    of those where the compiler made several. Loops inside it are what still is a cycle without that block.
    """

    def __init__(self, body: list[Statement]):
        self.blocks = blocks_of(body)
        firsts = ((body[block.first], i) for i, block in enumerate(self.blocks) if block.last > block.first)
        self.labelled = {first.name: i for first, i in firsts if isinstance(first, Label)}
        self.members: dict[int, set[int]] = {}
        todo = [set(range(len(self.blocks)))]
        while todo:
            for cycle in cycles(self.blocks, todo.pop()):
                inside = set(cycle)
                outside = set(range(len(self.blocks))) - inside
                entered = {j for i in outside for j in self.blocks[i].next} & inside
                head = min(entered or inside)
                self.members[head] = inside
                todo.append(inside - {head})

    def around(self, block: int) -> list[int]:
        """The loops that a block is in, the outermost first."""
        return sorted((h for h, inside in self.members.items() if block in inside), key=lambda h: -len(self.members[h]))

    def step(self, block: int, to: int) -> str:
        """C++ for going from one block to another: the counter of a loop is reset on entry and grows with each pass."""
        steps = []
        for head in self.around(to):
            if block not in self.members[head]:
                steps.append(f"pass{head} = 0; ")
            elif to == head:
                steps.append(f"++pass{head}; ")
        return "".join(steps)
