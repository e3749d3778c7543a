"""Rows of the instruction table: control, barriers, what the lanes of a warp do together, matrices, mbarriers."""

from .ptx_parse import Instruction, PtxError, split_operands
from .ptx_table import Match, expressions, instruction

expressions("""
activemask.b32                      b32                  emulator::active_lanes()
vote.sync.ballot.b32                b32 pred u32         vote<ballot>({a}, {b}, {site})
vote.sync.<K:any all uni>.pred      pred pred u32        vote<vote_{K}>({a}, {b}, {site})
match.any.sync.<T:b32 b64>          b32 T u32            match_any({a}, {b}, {site})
redux.sync.<K:add min max>.<T:u32 s32>  T T u32          reduce<{T}, reduce_{K}<{T}>>({a}, {b}, {site})
redux.sync.<K:and or xor>.b32       b32 b32 u32          reduce<b32, reduce_{K}<b32>>({a}, {b}, {site})
""")


# ---- control ---------------------------------------------------------------------------------------------------------
@instruction("bra[.uni]")
def _bra(translator, instruction: Instruction, match: Match) -> None:
    translator.jump(instruction.operands[0])


@instruction("ret[.uni]")
def _ret(translator, instruction: Instruction, match: Match) -> None:
    translator.line("return;")


@instruction("exit")
def _exit(translator, instruction: Instruction, match: Match) -> None:
    if not translator.function.is_kernel:
        raise PtxError(f"{instruction}: exit outside the kernel itself")
    translator.line("return;")


@instruction("trap", "brkpt")
def _trap(translator, instruction: Instruction, match: Match) -> None:
    translator.line(f'emulator::fault({translator.site}, "trap");')


@instruction("call[.uni]")
def _call(translator, instruction: Instruction, match: Match) -> None:
    operands = list(instruction.operands)
    results = operands.pop(0) if operands[0].startswith("(") else "()"
    name, arguments = operands[0], operands[1] if len(operands) > 1 else "()"
    translator.call(name, split_operands(arguments[1:-1]), split_operands(results[1:-1]))


@instruction(
    "membar.<S:cta gl sys gpu>",
    "fence[.sc|acq_rel|acquire|release].<S:SCOPE>",
    "fence.proxy.<P:async.global alias>",
    "fence.mbarrier_init.release.cluster",
    "nanosleep.u32",
    "griddepcontrol.<K:wait launch_dependents>",
)
def _nothing(translator, instruction: Instruction, match: Match) -> None:
    """Threads run one at a time and see all that was written: there is nothing to wait for."""


# ---- barriers of the block -------------------------------------------------------------------------------------------
def _count(translator, operands: tuple[str, ...], at: int) -> str:
    return translator.value(operands[at], "u32") if len(operands) > at else "0"


@instruction("bar[.cta].sync", "barrier[.cta].sync[.aligned]")
def _bar_sync(translator, instruction: Instruction, match: Match) -> None:
    number = translator.value(instruction.operands[0], "s32")
    translator.run("barrier", number, _count(translator, instruction.operands, 1))


@instruction("bar[.cta].arrive", "barrier[.cta].arrive[.aligned]")
def _bar_arrive(translator, instruction: Instruction, match: Match) -> None:
    number = translator.value(instruction.operands[0], "s32")
    translator.run("barrier_arrive", number, _count(translator, instruction.operands, 1))


@instruction(
    "bar[.cta].red.<K:and or>.pred",
    "barrier[.cta].red.<K:and or>[.aligned].pred",
    "bar[.cta].red.<K:popc>.u32",
    "barrier[.cta].red.<K:popc>[.aligned].u32",
)
def _bar_red(translator, instruction: Instruction, match: Match) -> None:
    target, number, *count, predicate = instruction.operands
    kind = match.names["K"]
    given = translator.value(predicate, "pred")
    votes = (
        f"emulator::barrier_count({translator.value(number, 's32')}, {_count(translator, tuple(count), 0)}, "
        f"{'!' if kind == 'and' else ''}{given}, {translator.site})"
    )
    value = {"popc": votes, "or": f"{votes} != 0", "and": f"{votes} == 0"}[kind]
    translator.assign(target, "u32" if kind == "popc" else "pred", value)


@instruction("bar.warp.sync")
def _bar_warp(translator, instruction: Instruction, match: Match) -> None:
    translator.run("warp_sync", translator.value(instruction.operands[0], "u32"))


# ---- lanes -----------------------------------------------------------------------------------------------------------
@instruction("shfl.sync.<K:up down bfly idx>.b32")
def _shfl(translator, instruction: Instruction, match: Match) -> None:
    targets, value, lane, clamp, mask = instruction.operands
    arguments = ", ".join(translator.value(operand, "b32") for operand in (value, lane, clamp, mask))
    got = translator.temporary("auto", f"shuffle<shuffle_{match.names['K']}>({arguments}, {translator.site})")
    value_target, _, flag_target = targets.partition("|")
    translator.assign_all(
        [(value_target.strip(), "b32", f"{got}.value")]
        + ([(flag_target.strip(), "pred", f"{got}.in_range")] if flag_target else [])
    )


@instruction("elect.sync")
def _elect(translator, instruction: Instruction, match: Match) -> None:
    target, _, flag = instruction.operands[0].partition("|")
    mask = translator.value(instruction.operands[1], "u32")
    leader = translator.temporary("u32", f"vote<vote_leader>(true, {mask}, {translator.site})")
    translator.assign_all(
        [(target.strip(), "b32", leader), (flag.strip(), "pred", f"{leader} == emulator::g.current->lane")]
    )


_KINDS = {
    "m16n8k16.row.col.f32.f16.f16.f32": ("F16", 4, 2),
    "m16n8k16.row.col.f32.bf16.bf16.f32": ("BF16", 4, 2),
    "m16n8k8.row.col.f32.tf32.tf32.f32": ("TF32", 4, 2),
}


@instruction(f"mma.sync.aligned.<K:{' '.join(_KINDS)}>")
def _mma(translator, instruction: Instruction, match: Match) -> None:
    kind, a_count, b_count = _KINDS[match.names["K"]]
    d, a, b, c = (split_operands(operand[1:-1]) for operand in instruction.operands)
    if (len(d), len(a), len(b), len(c)) != (4, a_count, b_count, 4):
        raise PtxError(f"{instruction}: 4, {a_count}, {b_count} and 4 registers wanted")
    sources = [
        f"{{{', '.join(translator.value(x, t) for x in part)}}}" for part, t in ((a, "b32"), (b, "b32"), (c, "f32"))
    ]
    product = translator.temporary("auto", f"multiply(emulator::Mma::{kind}, {', '.join(sources)}, {translator.site})")
    translator.assign_all([(target, "f32", f"{product}.part[{i}]") for i, target in enumerate(d)])


@instruction("fence.proxy.<P:async async.shared::cta>")
def _proxy_fence(translator, instruction: Instruction, match: Match) -> None:
    translator.run("proxy_fence")


# ---- products of a warpgroup -----------------------------------------------------------------------------------------
@instruction("wgmma.fence.sync.aligned")
def _wgmma_fence(translator, instruction: Instruction, match: Match) -> None:
    translator.run("wgmma_fence")


@instruction("wgmma.commit_group.sync.aligned")
def _wgmma_commit(translator, instruction: Instruction, match: Match) -> None:
    translator.run("wgmma_commit")


@instruction("wgmma.wait_group.sync.aligned")
def _wgmma_wait(translator, instruction: Instruction, match: Match) -> None:
    translator.run("wgmma_wait", translator.value(instruction.operands[0], "u32"))


_WGMMA_SHAPES = " ".join(f"m64n{n}k16" for n in range(8, 257, 8))


@instruction(f"wgmma.mma_async.sync.aligned.<S:{_WGMMA_SHAPES}>.f32.<T:f16 bf16>.<U:f16 bf16>")
def _wgmma(translator, instruction: Instruction, match: Match) -> None:
    """The registers of the sums are written behind the compiler's back until the wait: their addresses are kept."""
    sums, a, b, scale, *signs_and_majors = instruction.operands
    columns = int(match.names["S"][len("m64n") : -len("k16")])
    registers = [translator.register(name) for name in split_operands(sums[1:-1])]
    if match.names["T"] != match.names["U"] or len(registers) != columns // 2 or len(signs_and_majors) != 4:
        raise PtxError(f"{instruction}: two factors of one type, {columns // 2} sums and two majors wanted")
    if [scale, *signs_and_majors[:2]] != ["1", "1", "1"]:
        raise PtxError(f"{instruction}: only d += a b is known")
    pointers = translator.temporary("const auto", "{" + ", ".join(f"&{name}" for name in registers) + "}")
    majors = ", ".join("true" if major == "1" else "false" for major in signs_and_majors[2:])
    kind = f"emulator::Wgmma{{{'true' if match.names['T'] == 'bf16' else 'false'}, {columns}, {majors}}}"
    translator.run("wgmma_issue", kind, f"{pointers}.begin()", translator.value(a, "u64"), translator.value(b, "u64"))


# ---- mbarrier --------------------------------------------------------------------------------------------------------
_IN_SHARED = "[.shared|shared::cta]"
_SEMANTICS = "[.release|relaxed|acquire][.cta|cluster]"


@instruction(f"mbarrier.init{_IN_SHARED}.b64")
def _mbarrier_init(translator, instruction: Instruction, match: Match) -> None:
    address, count = instruction.operands
    translator.run("mbarrier_init", translator.shared_number(address), translator.value(count, "u32"))


@instruction(f"mbarrier.inval{_IN_SHARED}.b64")
def _mbarrier_inval(translator, instruction: Instruction, match: Match) -> None:
    translator.run("mbarrier_invalidate", translator.shared_number(instruction.operands[0]))


@instruction(f"mbarrier.arrive[.expect_tx]{_SEMANTICS}{_IN_SHARED}.b64")
def _mbarrier_arrive(translator, instruction: Instruction, match: Match) -> None:
    target, address, *given = instruction.operands
    number = translator.value(given[0], "u32") if given else ("0" if "expect_tx" in match.modifiers else "1")
    arrivals, bytes_ = ("1", number) if "expect_tx" in match.modifiers else (number, "0")
    call = f"emulator::mbarrier_arrive({translator.shared_number(address)}, {arrivals}, {bytes_}, {translator.site})"
    translator.assign(target, "b64", call)


@instruction(f"mbarrier.expect_tx{_SEMANTICS}{_IN_SHARED}.b64")
def _mbarrier_expect(translator, instruction: Instruction, match: Match) -> None:
    address, count = instruction.operands
    translator.run("mbarrier_expect", translator.shared_number(address), translator.value(count, "u32"))


@instruction(f"mbarrier.<K:test_wait try_wait>[.parity]{_SEMANTICS}{_IN_SHARED}.b64")
def _mbarrier_wait(translator, instruction: Instruction, match: Match) -> None:
    target, address, phase = instruction.operands[:3]
    parity = translator.value(phase, "u32" if "parity" in match.modifiers else "u64")
    call = f"emulator::mbarrier_try_wait({translator.shared_number(address)}, unsigned({parity}), {translator.site})"
    translator.assign(target, "pred", call)


@instruction(f"cp.async.mbarrier.arrive[.noinc]{_IN_SHARED}.b64")
def _cp_mbarrier(translator, instruction: Instruction, match: Match) -> None:
    increments = "false" if "noinc" in match.modifiers else "true"
    address = translator.shared_number(instruction.operands[0])
    translator.run("mbarrier_arrive_after_copies", address, increments)
