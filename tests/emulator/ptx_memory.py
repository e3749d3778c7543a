"""Rows of the instruction table: loads, stores, atomics, asynchronous copies, addresses.

An address is a number: that of the host for global, local, constant and generic memory, an offset into the shared
memory of the block for shared memory.
"""

from .ptx_parse import Instruction, PtxError, split_operands
from .ptx_table import Match, instruction

# hints to the caches: they change no value
_PREFETCH = "[.L2::64B|L2::128B|L2::256B]"
_CACHE = (
    "[.ca|cg|cs|lu|cv|wb|wt]"
    "[.L1::evict_normal|L1::evict_last|L1::evict_first|L1::no_allocate|L1::evict_unchanged]" + _PREFETCH
)
_ORDER = "[.weak|relaxed|acquire|release|acq_rel|volatile][.cta|cluster|gpu|sys]"
_MEMORY_TYPES = "b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"
_SHARED = "[.shared|shared::cta]"


def _space(match: Match) -> str:
    """The state space an opcode names; generic where it names none."""
    for name in ("global", "local", "const", "param"):
        if name in match.modifiers:
            return name
    return "shared" if match.modifiers & {"shared", "shared::cta"} else "generic"


def _vector(match: Match, operand: str) -> tuple[str, ...]:
    count = next((int(m[1]) for m in match.modifiers if m in {"v2", "v4"}), 1)
    parts = split_operands(operand[1:-1]) if count > 1 else (operand,)
    if len(parts) != count:
        raise PtxError(f"{operand}: {count} registers wanted")
    return parts


@instruction(
    f"ld{_ORDER}[.global|shared|shared::cta|local|const|param]{_CACHE}[.nc]{_CACHE}[.v2|v4].<T:{_MEMORY_TYPES}>",
    f"ldu[.global][.v2|v4].<T:{_MEMORY_TYPES}>",
)
def _ld(translator, instruction: Instruction, match: Match) -> None:
    type_, space = match.names["T"], _space(match)
    targets = _vector(match, instruction.operands[0])
    address = translator.address(instruction.operands[1], space)
    if space == "param":
        load = f"load_parameter<{type_}, {len(targets)}>({address})"
    else:
        load = f"load<{type_}, {len(targets)}>({address}, {space.upper()}, {translator.place})"
    # all of a vector is read before any register is written: the address may be one of them
    whole = translator.temporary("auto", load)
    translator.assign_all([(target, type_, f"{whole}.part[{i}]") for i, target in enumerate(targets)])


@instruction(f"st{_ORDER}[.global|shared|shared::cta|local|param]{_CACHE}[.v2|v4].<T:{_MEMORY_TYPES}>")
def _st(translator, instruction: Instruction, match: Match) -> None:
    type_, space = match.names["T"], _space(match)
    address = translator.address(instruction.operands[0], space)
    values = [translator.value(part, type_) for part in _vector(match, instruction.operands[1])]
    whole = f"Vector<{type_}, {len(values)}>{{{', '.join(values)}}}"
    if space == "param":
        translator.line(f"store_parameter({address}, {whole});")
    else:
        translator.line(f"store({address}, {whole}, {space.upper()}, {translator.place});")


# ---- atomics ---------------------------------------------------------------------------------------------------------
_CHANGES = {
    "and": "{T}(old & {b})",
    "or": "{T}(old | {b})",
    "xor": "{T}(old ^ {b})",
    "exch": "{b}",
    "min": "(old < {b} ? old : {b})",
    "max": "(old < {b} ? {b} : old)",
    "inc": "(old >= {b} ? 0 : old + 1)",
    "dec": "(old == 0 || old > {b} ? {b} : old - 1)",
    "cas": "(old == {b} ? {c} : old)",
}
_ADDITIONS = {"f32": "old + {b}", "f64": "old + {b}"}
_HALF_ADDITION = "halves<exact>(old, {b}, [](f64 x, f64 y) {{ return x + y; }})"
_INTEGER_ADDITION = "{T}(u(old) + u({b}))"


def _change(match: Match) -> str:
    type_ = match.names["T"]
    if match.names["op"] != "add":
        return _CHANGES[match.names["op"]]
    return _ADDITIONS.get(type_) or (_HALF_ADDITION if "16" in type_ else _INTEGER_ADDITION)


_ATOMIC = (
    f"{_ORDER}[.global|shared|shared::cta].<op:{' '.join(_CHANGES)} add>[.noftz][.L2::cache_hint]"
    ".<T:b32 b64 u32 u64 s32 s64 f32 f64 f16 f16x2 bf16 bf16x2>"
)


@instruction(f"atom{_ATOMIC}", f"red{_ATOMIC}")
def _atom(translator, instruction: Instruction, match: Match) -> None:
    type_, space = match.names["T"], _space(match)
    operands = list(instruction.operands)
    target = operands.pop(0) if instruction.opcode.startswith("atom") else "_"
    address = translator.address(operands[0], space)
    b, c = ([translator.value(operand, type_) for operand in operands[1:]] + [""])[:2]
    change = f"[&]({type_} old) -> {type_} {{ return {_change(match).format(T=type_, b=b, c=c)}; }}"
    translator.assign(target, type_, f"atomic<{type_}>({address}, {change}, {space.upper()}, {translator.place})")


# ---- cp.async --------------------------------------------------------------------------------------------------------
@instruction(f"cp.async.<C:ca cg>{_SHARED}.global{_PREFETCH}")
def _cp_async(translator, instruction: Instruction, match: Match) -> None:
    target, source, size, *rest = instruction.operands
    if size not in ({"16"} if match.names["C"] == "cg" else {"4", "8", "16"}):
        raise PtxError(f"{instruction}: cp.async.{match.names['C']} cannot copy {size} bytes")
    there = translator.value(rest[0], "u32") if rest else size
    addresses = f"{translator.address(target, 'shared')}, {translator.address(source, 'global')}"
    translator.line(f"copy_async({addresses}, {size}, {there}, {translator.place});")


@instruction("cp.async.commit_group")
def _cp_commit(translator, instruction: Instruction, match: Match) -> None:
    translator.run("copy_commit")


@instruction("cp.async.wait_group")
def _cp_wait(translator, instruction: Instruction, match: Match) -> None:
    translator.run("copy_wait", translator.value(instruction.operands[0], "u32"))


@instruction("cp.async.wait_all")
def _cp_wait_all(translator, instruction: Instruction, match: Match) -> None:
    translator.run("copy_wait_all")


@instruction("cp.async.bulk.<D:shared::cluster shared::cta>.global.mbarrier::complete_tx::bytes")
def _cp_bulk(translator, instruction: Instruction, match: Match) -> None:
    target, source, size, barrier = instruction.operands
    translator.run(
        "bulk_copy",
        translator.shared_number(target),
        translator.address(source, "global"),
        translator.value(size, "u32"),
        translator.shared_number(barrier),
    )


# ---- addresses -------------------------------------------------------------------------------------------------------
@instruction("cvta[.to].<S:global local const param shared shared::cta>.<T:u32 u64>")
def _cvta(translator, instruction: Instruction, match: Match) -> None:
    target, source = instruction.operands
    type_ = match.names["T"]
    value = translator.value(source, type_)
    if match.names["S"].startswith("shared"):
        if "to" in match.modifiers:
            value = f"emulator::shared_offset((const void*){value}, {translator.site})"
        else:
            value = f"(u64)emulator::shared_pointer({value})"
    translator.assign(target, type_, f"{type_}({value})")


@instruction(
    "prefetch[.global|local].<L:L1 L2>",
    "prefetchu.L1",
    "applypriority[.global].L2::evict_normal",
    "discard[.global].L2",
)
def _prefetch(translator, instruction: Instruction, match: Match) -> None:
    """A hint."""


@instruction(f"ldmatrix.sync.aligned.m8n8.<N:x1 x2 x4>[.trans]{_SHARED}.b16")
def _ldmatrix(translator, instruction: Instruction, match: Match) -> None:
    count = int(match.names["N"][1])
    targets = split_operands(instruction.operands[0].strip("{}"))
    if len(targets) != count:
        raise PtxError(f"{instruction}: {count} registers wanted")
    transposed = "true" if "trans" in match.modifiers else "false"
    address = translator.shared_number(instruction.operands[1])
    matrices = translator.temporary("auto", f"load_matrices<{count}, {transposed}>({address}, {translator.place})")
    translator.assign_all([(target, "b32", f"{matrices}.part[{i}]") for i, target in enumerate(targets)])
