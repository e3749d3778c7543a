"""Rows of the instruction table: arithmetic, logic, comparison, conversion, moves."""

from .ptx_parse import Instruction, PtxError, bits_of, split_operands
from .ptx_table import Match, expressions, instruction

expressions("""
# integers wrap around, as they do on the GPU, so they are taken unsigned; u() does that to a signed value
add.<T:INT>              uT uT uT     {a} + {b}
add.sat.s32              s32 s32 s32  saturate<s32>(s64({a}) + {b})
sub.<T:INT>              uT uT uT     {a} - {b}
sub.sat.s32              s32 s32 s32  saturate<s32>(s64({a}) - {b})
mul.lo.<T:INT>           uT uT uT     1u * {a} * {b}
mul.hi.<T:INT>           T T T        high({a}, {b})
mul.wide.<T:s16 u16 s32 u32>  2T T T  {2T}({a}) * {2T}({b})
mul24.lo.<T:INT32>       T T T        {T}(u(low24({a})) * u(low24({b})))
mad.lo.<T:INT>           uT uT uT uT  1u * {a} * {b} + {c}
mad.hi.<T:INT>           T T T T      {T}(u(high({a}, {b})) + u({c}))
mad.wide.<T:s16 u16 s32 u32>  2T T T 2T  {2T}(u({2T}({2T}({a}) * {2T}({b}))) + u({c}))
mad24.lo.<T:INT32>       T T T T      {T}(u(low24({a})) * u(low24({b})) + u({c}))
sad.<T:INT>              T T T T      {T}(u({c}) + ({a} < {b} ? u({b}) - u({a}) : u({a}) - u({b})))
div.<T:INT>              T T T        divide({a}, {b}, {site})
rem.<T:INT>              T T T        remainder({a}, {b}, {site})
abs.<T:s16 s32 s64>      T T          {T}({a} < 0 ? 0 - u({a}) : u({a}))
neg.<T:s16 s32 s64>      T T          {T}(0 - u({a}))
min.<T:INT>              T T T        ({a} < {b} ? {a} : {b})
max.<T:INT>              T T T        ({a} < {b} ? {b} : {a})
popc.<T:b32 b64>         u32 T        u32(__builtin_popcountll({a}))
clz.<T:b32 b64>          u32 T        leading_zeros({a})
brev.<T:b32 b64>         T T          reverse_bits({a})
bfind.<T:s32 u32 s64 u64>  u32 T      find_bit({a}, false)
bfind.shiftamt.<T:s32 u32 s64 u64>  u32 T  find_bit({a}, true)
bfe.<T:s32 u32 s64 u64>  T T u32 u32  extract_bits({a}, {b}, {c})
bfi.<T:b32 b64>          T T T u32 u32  insert_bits({a}, {b}, {c}, {e})
dp4a.<S:u32 s32>.<T:u32 s32>  T S T T  dot_bytes<{T}>({a}, {b}, {c})
# with the carry kept from one to the next
add.cc.<T:u32 s32 b32 u64 s64>   T T T    {T}(add_carry(u({a}), u({b}), false, carry))
addc[.cc].<T:u32 s32 b32 u64 s64>  T T T  {T}(add_carry(u({a}), u({b}), carry, carry))
sub.cc.<T:u32 s32 b32 u64 s64>   T T T    {T}(subtract_borrow(u({a}), u({b}), false, carry))
subc[.cc].<T:u32 s32 b32 u64 s64>  T T T  {T}(subtract_borrow(u({a}), u({b}), carry, carry))

# bits
and.<T:pred BITS>        T T T        {a} & {b}
or.<T:pred BITS>         T T T        {a} | {b}
xor.<T:pred BITS>        T T T        {a} ^ {b}
not.pred                 pred pred    !{a}
not.<T:BITS>             T T          ~{a}
cnot.<T:BITS>            T T          {T}({a} == 0)
shl.<T:BITS>             T T u32      shift_left({a}, {b})
shr.<T:BITS INT>         T T u32      shift_right({a}, {b})
shf.l.clamp.b32          b32 b32 b32 u32  b32(pair({a}, {b}) << ({c} < 32 ? {c} : 32) >> 32)
shf.l.wrap.b32           b32 b32 b32 u32  b32(pair({a}, {b}) << ({c} & 31) >> 32)
shf.r.clamp.b32          b32 b32 b32 u32  b32(pair({a}, {b}) >> ({c} < 32 ? {c} : 32))
shf.r.wrap.b32           b32 b32 b32 u32  b32(pair({a}, {b}) >> ({c} & 31))
prmt.b32                 b32 b32 b32 b32  permute({a}, {b}, {c})
lop3.b32                 b32 b32 b32 b32 u32  lop3({a}, {b}, {c}, {e})

# floating point. The modes are flags: ftz, sat, the rounding; `exact` is none of them
add[.ROUND][.ftz][.sat].f32         f32 f32 f32  add<{mode}>({a}, {b})
add[.ROUND].f64                     f64 f64 f64  add<{mode}>({a}, {b})
sub[.ROUND][.ftz][.sat].f32         f32 f32 f32  sub<{mode}>({a}, {b})
sub[.ROUND].f64                     f64 f64 f64  sub<{mode}>({a}, {b})
mul[.ROUND][.ftz][.sat].f32         f32 f32 f32  mul<{mode}>({a}, {b})
mul[.ROUND].f64                     f64 f64 f64  mul<{mode}>({a}, {b})
fma|mad.<R:ROUND>[.ftz][.sat].f32   f32 f32 f32 f32  fma<{mode}>({a}, {b}, {c})
fma|mad.<R:ROUND>.f64               f64 f64 f64 f64  fma<{mode}>({a}, {b}, {c})
div.<R:ROUND approx full>[.ftz].f32  f32 f32 f32  div<{mode}>({a}, {b})
div.<R:ROUND>.f64                   f64 f64 f64  div<{mode}>({a}, {b})
rcp.<R:ROUND approx>[.ftz].f32      f32 f32      div<{mode}>(1.0f, {a})
rcp.<R:ROUND>.f64                   f64 f64      div<{mode}>(1.0, {a})
rcp.approx.ftz.f64                  f64 f64      upper_word(1.0 / upper_word({a}))
sqrt.<R:ROUND approx>[.ftz].f32     f32 f32      square_root<{mode}>({a})
sqrt.<R:ROUND>.f64                  f64 f64      square_root<{mode}>({a})
rsqrt.approx[.ftz].f32              f32 f32      unary<{mode}>({a}, reciprocal_root)
rsqrt.approx[.ftz].f64              f64 f64      upper_word(1 / sqrt(upper_word({a})))
ex2.approx[.ftz].f32                f32 f32      unary<{mode}>({a}, exp2f)
lg2.approx[.ftz].f32                f32 f32      unary<{mode}>({a}, log2f)
sin.approx[.ftz].f32                f32 f32      unary<{mode}>({a}, sinf)
cos.approx[.ftz].f32                f32 f32      unary<{mode}>({a}, cosf)
tanh.approx.f32                     f32 f32      tanhf({a})
neg[.ftz].f32                       f32 f32      -flush<{mode}>({a})
neg.f64                             f64 f64      -({a})
abs[.ftz].f32                       f32 f32      fabsf(flush<{mode}>({a}))
abs.f64                             f64 f64      fabs({a})
min[.ftz][.NaN][.xorsign.abs].f32   f32 f32 f32  minimum<{mode}>({a}, {b})
max[.ftz][.NaN][.xorsign.abs].f32   f32 f32 f32  maximum<{mode}>({a}, {b})
min.f64                             f64 f64 f64  minimum<exact>({a}, {b})
max.f64                             f64 f64 f64  maximum<exact>({a}, {b})
copysign.<T:f32 f64>                T T T        {T}(copysign({b}, {a}))
testp.<K:finite infinite number notanumber normal subnormal>.<T:f32 f64>  pred T  test_{K}({a})
# 16-bit floats: worked out in double and rounded once
add[.rn][.ftz][.sat].<T:HALF HALF2>     T T T    halves<{mode}>({a}, {b}, [](f64 x, f64 y) {{ return x + y; }})
sub[.rn][.ftz][.sat].<T:HALF HALF2>     T T T    halves<{mode}>({a}, {b}, [](f64 x, f64 y) {{ return x - y; }})
mul[.rn][.ftz][.sat].<T:HALF HALF2>     T T T    halves<{mode}>({a}, {b}, [](f64 x, f64 y) {{ return x * y; }})
fma.rn[.ftz][.sat][.relu].<T:HALF HALF2>  T T T T  halves_fma<{mode}>({a}, {b}, {c})
min[.ftz][.NaN].<T:HALF HALF2>          T T T    halves<{mode}>({a}, {b}, minimum<{mode}, f64>)
max[.ftz][.NaN].<T:HALF HALF2>          T T T    halves<{mode}>({a}, {b}, maximum<{mode}, f64>)
neg[.ftz].<T:HALF HALF2>                T T      halves<{mode}>({a}, {a}, [](f64 x, f64) {{ return -x; }})
abs[.ftz].<T:HALF HALF2>                T T      halves<{mode}>({a}, {a}, [](f64 x, f64) {{ return fabs(x); }})
ex2.approx[.ftz].<T:HALF HALF2>         T T      halves<{mode}>({a}, {a}, [](f64 x, f64) {{ return exp2(x); }})
tanh.approx.<T:HALF HALF2>              T T      halves<{mode}>({a}, {a}, [](f64 x, f64) {{ return tanh(x); }})

# conversions: from integer, to integer, between floats
cvt.<D:INT8>.<S:INT8>  D S  {D}({a})
cvt.sat.<D:INT8>.<S:INT8>  D S  saturate<{D}>({a})
cvt.<R:WHOLE>[.ftz][.sat].<D:INT8>.<S:f16 f32 f64>  D S  to_integer<{D}>({R}(flush<{mode}>({a})), sizeof({S}) == 8)
cvt.<R:ROUND>[.sat].<D:f16 f32 f64>.<S:INT8>  D S  from_integer<{mode}, {D}>({a})
cvt.<R:WHOLE>[.ftz][.sat].<D:f16 f32 f64>.<D2:f16 f32 f64>  D D2  convert<{mode}, {D}>({R}({a}))
cvt[.ftz][.sat].<D:f32 f64>.<S:f16 bf16 f32>  D S  convert<{mode}, {D}>({a})
cvt[.sat].<D:f16>.<S:f16>               D S  convert<{mode}, {D}>({a})
cvt[.sat].f64.f64                       f64 f64  convert<{mode}, f64>({a})
cvt.<R:ROUND>[.ftz][.sat].f32.f64       f32 f64  convert<{mode}, f32>({a})
cvt.<R:ROUND>[.ftz][.sat][.relu].<D:f16 bf16>.<S:f32 f64>  D S  convert<{mode}, {D}>({a})
cvt.<R:rn rz>[.relu].<D:f16x2 bf16x2>.f32  D f32 f32  convert_two<{mode}, {D}>({a}, {b})
cvt.rna[.satfinite].tf32.f32            b32 f32  emulator::float_to_tf32({a})
cvt.<R:rn rz>[.relu].tf32.f32           b32 f32  as<b32>(convert<{mode}, tf32>({a}))

# choices
selp.<T:BITS s16 u16 s32 u32 s64 u64 f32 f64>  T T T pred  ({c} ? {a} : {b})
slct[.ftz].<T:BITS s16 u16 s32 u32 s64 u64 f32 f64>.s32  T T T s32  ({c} >= 0 ? {a} : {b})
slct[.ftz].<T:BITS s16 u16 s32 u32 s64 u64 f32 f64>.f32  T T T f32  (flush<{mode}>({c}) >= 0 ? {a} : {b})
""")

_COMPARED = "b16 b32 b64 s16 u16 s32 u32 s64 u64 f16 bf16 f32 f64"
_COMPARISONS = "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan"
_SYMBOLS = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_AS_SIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}  # the type is unsigned where these are used


def _comparison(translator, instruction: Instruction, match: Match) -> str:
    type_, kind = match.names["T"], match.names["C"]
    kind = _AS_SIGNED.get(kind, kind)
    a, b = (translator.value(x, type_) for x in instruction.operands[1:3])
    if type_ in {"f16", "bf16"} or match.mode != "exact":
        a, b = (f"flush<{match.mode}>({x})" for x in (a, b))
    # C++ compares NaN as PTX does, but for "not equal"
    symbol = _SYMBOLS.get(kind) or ("!=" if kind == "ne" and type_[0] in "bsu" and type_ != "bf16" else None)
    return f"({a} {symbol} {b})" if symbol else f"compare_{kind}({a}, {b})"


def _combine(translator, instruction: Instruction, match: Match, value: str) -> str:
    """The comparison and, with .and, .or or .xor, the predicate it is combined with."""
    operator = next((symbol for word, symbol in _LOGIC.items() if word in match.modifiers), None)
    if (operator is not None) != (len(instruction.operands) == 4):
        raise PtxError(f"{instruction}: a fourth operand goes with .and, .or, .xor only")
    return f"({value}) {operator} {translator.value(instruction.operands[3], 'pred')}" if operator else value


_LOGIC = {"and": "&", "or": "|", "xor": "^"}


@instruction(f"setp.<C:{_COMPARISONS}>[.and|or|xor][.ftz].<T:{_COMPARED}>")
def _setp(translator, instruction: Instruction, match: Match) -> None:
    comparison = _comparison(translator, instruction, match)
    targets = instruction.operands[0].split("|")
    values = [_combine(translator, instruction, match, value) for value in (comparison, f"!{comparison}")]
    translator.assign_all([(t.strip(), "pred", value) for t, value in zip(targets, values, strict=False)])


@instruction(f"set.<C:{_COMPARISONS}>[.and|or|xor][.ftz].<D:u32 s32 f32>.<T:{_COMPARED}>")
def _set(translator, instruction: Instruction, match: Match) -> None:
    value = _combine(translator, instruction, match, _comparison(translator, instruction, match))
    yes = "1.0f" if match.names["D"] == "f32" else f"{match.names['D']}(-1)"
    translator.assign(instruction.operands[0], match.names["D"], f"({value}) ? {yes} : {match.names['D']}(0)")


@instruction("mov.<T:pred b16 b32 b64 s16 u16 s32 u32 s64 u64 f16 f32 f64>")
def _mov(translator, instruction: Instruction, match: Match) -> None:
    """Also packs `{low, high}` into a wider register, and unpacks it."""
    target, source = instruction.operands
    type_ = match.names["T"]
    if target.startswith("{"):
        parts = split_operands(target[1:-1])
        width = bits_of(type_) // len(parts)
        whole = translator.temporary(type_, translator.value(source, type_))
        translator.assign_all(
            [(part, f"b{width}", f"b{width}({whole} >> {i * width})") for i, part in enumerate(parts)]
        )
    elif source.startswith("{"):
        parts = split_operands(source[1:-1])
        width = bits_of(type_) // len(parts)
        pieces = (f"{type_}({translator.value(p, f'b{width}')}) << {i * width}" for i, p in enumerate(parts))
        translator.assign(target, type_, f"{type_}({' | '.join(pieces)})")
    else:
        translator.assign(target, type_, translator.value(source, type_))
