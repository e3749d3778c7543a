"""The PTX tier: each instruction of the table against Python integers and fractions."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from emulator import build, ptx
from emulator.ptx_parse import PtxError, bits_of
from emulator.ptx_table import compile_pattern, examples, rows
from emulator.ptx_translate import translate
from ptx_calls import FORMATS, arithmetic, check, flushed, needs_ptx, rounded, row

pytestmark = needs_ptx

BITS = {"s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64}
NUMPY = {
    "s16": "int16",
    "u16": "uint16",
    "s32": "int32",
    "u32": "uint32",
    "s64": "int64",
    "u64": "uint64",
    "b16": "uint16",
    "b32": "uint32",
    "b64": "uint64",
    "f32": "float32",
    "f64": "float64",
}
SHIFTS = (0, 1, 5, 15, 31, 32, 33, 63, 64, 200)


def integer(asm, type_, expect, count=2):
    return row(f"{asm}.{type_} %0, {', '.join(f'%{i + 1}' for i in range(count))};",
               f"{NUMPY[type_]} = {' '.join([NUMPY[type_]] * count)}", expect)  # fmt: skip


def wide_of(type_):
    return f"{type_[0]}{2 * BITS[type_]}"


def toward_zero(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def some(dtype, *without):
    values = [1, 2, -1, 7, 100, np.iinfo(NUMPY[dtype]).min, np.iinfo(NUMPY[dtype]).max]
    return [np.array(v).astype(NUMPY[dtype])[()] for v in values if v not in without]


# -------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("type_", BITS)
def test_integer_arithmetic_wraps_around(type_):
    bits = BITS[type_]
    name = NUMPY[type_]
    divisors = [np.array(v).astype(name)[()] for v in (1, -1, 3, 100, 2 ** (bits - 1) - 1)]
    rows = [
        integer("add", type_, lambda a, b: a + b),
        integer("sub", type_, lambda a, b: a - b),
        integer("mul.lo", type_, lambda a, b: a * b),
        integer("mul.hi", type_, lambda a, b: a * b >> bits),
        integer("mad.lo", type_, lambda a, b, c: a * b + c, 3),
        integer("mad.hi", type_, lambda a, b, c: (a * b >> bits) + c, 3),
        integer("min", type_, min),
        integer("max", type_, max),
        integer("sad", type_, lambda a, b, c: c + abs(a - b), 3),
        row(f"div.{type_} %0, %1, %2;", f"{name} = {name} {name}", toward_zero, some(type_), divisors),
        row(
            f"rem.{type_} %0, %1, %2;", f"{name} = {name} {name}",
            lambda a, b: a - b * toward_zero(a, b), some(type_), divisors,
        ),
    ]  # fmt: skip
    if bits < 64:
        wide = NUMPY[wide_of(type_)]
        rows += [
            row(f"mul.wide.{type_} %0, %1, %2;", f"{wide} = {name} {name}", lambda a, b: a * b),
            row(f"mad.wide.{type_} %0, %1, %2, %3;", f"{wide} = {name} {name} {wide}", lambda a, b, c: a * b + c),
        ]
    if type_[0] == "s":
        rows += [integer("neg", type_, lambda a: -a, 1), integer("abs", type_, abs, 1)]
    check(rows)


@pytest.mark.parametrize("type_", ["b32", "b64"])
def test_bits(type_):
    name, bits = NUMPY[type_], int(type_[1:])
    mask, whole = (1 << bits) - 1, some(f"u{bits}")

    def brev(a):
        return int(f"{a:0{bits}b}"[::-1], 2)

    check([
        integer("and", type_, lambda a, b: a & b),
        integer("or", type_, lambda a, b: a | b),
        integer("xor", type_, lambda a, b: a ^ b),
        integer("not", type_, lambda a: ~a, 1),
        integer("cnot", type_, lambda a: a == 0, 1),
        integer("brev", type_, brev, 1),
        row(f"popc.{type_} %0, %1;", f"uint32 = {name}", lambda a: a.bit_count()),
        row(f"clz.{type_} %0, %1;", f"uint32 = {name}", lambda a: bits - a.bit_length()),
        row(f"bfind.u{bits} %0, %1;", f"uint32 = {name}", lambda a: a.bit_length() - 1),
        row(f"bfind.s{bits} %0, %1;", f"uint32 = int{bits}", lambda a: (a if a >= 0 else ~a).bit_length() - 1),
        row(f"bfind.shiftamt.u{bits} %0, %1;", f"uint32 = {name}", lambda a: bits - a.bit_length() if a else -1),
        row(f"shl.{type_} %0, %1, %2;", f"{name} = {name} uint32", lambda a, n: a << n & mask, whole, SHIFTS),
        row(f"shr.u{bits} %0, %1, %2;", f"{name} = {name} uint32", lambda a, n: a >> n, whole, SHIFTS),
        row(f"shr.s{bits} %0, %1, %2;", f"int{bits} = int{bits} uint32", lambda a, n: a >> n, some(f"s{bits}"), SHIFTS),
    ])  # fmt: skip


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64"])
def test_bit_fields(type_):
    name, bits = NUMPY[type_], BITS[type_]
    places, lengths = (0, 3, 17, 31, 40, 63, 70), (0, 1, 8, 20, 32, 64)

    def bfe(a, position, length):
        kept = [
            a >> min(position + i, bits - 1) & 1 if type_[0] == "s" or position + i < bits else 0 for i in range(length)
        ]
        sign = kept[-1] if kept and type_[0] == "s" else 0
        return sum(bit << i for i, bit in enumerate(kept[:bits])) | (-1 << length if sign else 0)

    def bfi(a, b, position, length):
        mask = ((1 << length) - 1) << position & (1 << bits) - 1
        return b & ~mask | a << position & mask

    unsigned = NUMPY[f"b{bits}"]
    check([
        row(f"bfe.{type_} %0, %1, %2, %3;", f"{name} = {name} uint32 uint32", bfe, some(type_), places, lengths),
        row(
            f"bfi.b{bits} %0, %1, %2, %3, %4;", f"{unsigned} = {unsigned} {unsigned} uint32 uint32", bfi,
            some(f"u{bits}"), some(f"u{bits}"), places, lengths,
        ),
    ])  # fmt: skip


SHF = {
    "l.wrap": lambda a, b, n: (b << 32 | a) << (n & 31) >> 32,
    "r.wrap": lambda a, b, n: (b << 32 | a) >> (n & 31),
    "l.clamp": lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32,
    "r.clamp": lambda a, b, n: (b << 32 | a) >> min(n, 32),
}


def test_permutations_and_tables():
    def prmt(a, b, selector):
        source = (a | b << 32).to_bytes(8, "little")
        taken = []
        for i in range(4):
            s = selector >> 4 * i & 15
            byte = source[s & 7]
            taken.append((255 if byte & 128 else 0) if s & 8 else byte)
        return int.from_bytes(bytes(taken), "little")

    def lop3(table):
        return lambda a, b, c: sum(
            (table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32)
        )

    def dp4a(a, b, c):
        x, y = (np.array([v], np.uint32).view(np.int8).astype(int) for v in (a, b))
        return c + int(x @ y)

    words = (0x12345678, 0x9ABCDEF0, 0xFFFFFFFF, 0x80017FFE)
    amounts = (0, 1, 8, 31, 32, 33, 40, 64)
    pairs = "uint32 = uint32 uint32 uint32"
    check([
        row("prmt.b32 %0, %1, %2, %3;", pairs, prmt, words, words, (0x3210, 0x7654, 0x5410, 0xBA98, 0x0F4C)),
        *(row(f"lop3.b32 %0, %1, %2, %3, {t};", pairs, lop3(t), words, words, words) for t in (0x80, 0x96, 0xE8, 0x1B)),
        row("dp4a.s32.s32 %0, %1, %2, %3;", "int32 = uint32 uint32 int32", dp4a, words, words, (0, -5)),
        *(row(f"shf.{kind}.b32 %0, %1, %2, %3;", pairs, shift, words, words, amounts) for kind, shift in SHF.items()),
    ])  # fmt: skip


def test_carries_run_from_one_instruction_to_the_next():
    halves = "{ .reg .b32 l, h, m, n; mov.b64 {l, h}, %1; mov.b64 {m, n}, %2; "
    whole = "mov.b64 %0, {l, h}; }"
    pairs = "uint64 = uint64 uint64"
    check([
        row(f"{halves} add.cc.u32 l, l, m; addc.u32 h, h, n; {whole}", pairs, lambda a, b: a + b),
        row(f"{halves} sub.cc.u32 l, l, m; subc.u32 h, h, n; {whole}", pairs, lambda a, b: a - b),
    ])  # fmt: skip


# -------------------------------------------------------------------------------------------- floating point


def plus(a, b):
    return a + b


def minus(a, b):
    return a - b


def product(a, b):
    return a * b


def quotient(a, b):
    return a / b


def fused(a, b, c):
    return a * b + c


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("form", ["f32", "f64"])
def test_floating_point_rounds_once_as_told(form, mode):
    name = NUMPY[form]
    # zeros of either sign under rm have a rule of their own, as have infinities in fma: tested below
    values = list(np.array([1, -2.5, 3.75, 1e-3, 1 + 2.0**-23, 2.0**-126, -3 * 2.0**-149, 1e30, -7e37, 1 / 3], name))
    rows = []
    for ftz in (False, True) if form == "f32" else (False,):
        dots = f"{mode}.ftz.{form}" if ftz else f"{mode}.{form}"
        for word, exact in (("add", plus), ("sub", minus), ("mul", product), ("div", quotient)):
            expect = arithmetic(exact, form, mode, ftz)
            rows.append(row(f"{word}.{dots} %0, %1, %2;", f"{name} = {name} {name}", expect, values, values))
        expect = arithmetic(fused, form, mode, ftz)
        three = (f"fma.{dots} %0, %1, %2, %3;", f"{name} = {name} {name} {name}")
        rows.append(row(*three, expect, values, values, values[:6]))
    check(rows)


def test_nan_and_infinity_pass_through_arithmetic():
    pairs = "float32 = float32 float32"
    check([
        row("add.ftz.f32 %0, %1, %2;", pairs, arithmetic(plus, ftz=True)),
        row("mul.ftz.f32 %0, %1, %2;", pairs, arithmetic(product, ftz=True)),
        row("add.f64 %0, %1, %2;", "float64 = float64 float64", arithmetic(plus, "f64")),
        row("mul.ftz.sat.f32 %0, %1, %2;", pairs, lambda a, b: saturated(arithmetic(product, ftz=True)(a, b))),
    ])  # fmt: skip


def saturated(x):
    return min(max(x, 0.0), 1.0) if x == x and x > 0 else 0.0


def smaller(a, b):
    if a != a or b != b:
        return b if a != a else a
    return a if (a, math.copysign(1, a)) <= (b, math.copysign(1, b)) else b


def test_signs_minimum_and_choice():
    pairs = "float32 = float32 float32"
    check([
        row("neg.f32 %0, %1;", "float32 = float32", lambda a: -a),
        row("neg.ftz.f32 %0, %1;", "float32 = float32", lambda a: -flushed(a)),
        row("abs.ftz.f32 %0, %1;", "float32 = float32", lambda a: abs(flushed(a))),
        row("abs.f64 %0, %1;", "float64 = float64", abs),
        row("min.f32 %0, %1, %2;", pairs, smaller),
        row("max.ftz.f32 %0, %1, %2;", pairs, lambda a, b: -smaller(-flushed(a), -flushed(b))),
        row("min.NaN.f32 %0, %1, %2;", pairs, lambda a, b: math.nan if a != a or b != b else smaller(a, b)),
        row("max.f64 %0, %1, %2;", "float64 = float64 float64", lambda a, b: -smaller(-a, -b)),
        row("copysign.f32 %0, %1, %2;", pairs, lambda a, b: math.copysign(b, a)),
        row("slct.f32.s32 %0, %1, %2, %3;", "float32 = float32 float32 int32", lambda a, b, c: a if c >= 0 else b),
        row("{ .reg .pred p; setp.lt.s32 p, %3, 5; selp.f32 %0, %1, %2, p; }",
            "float32 = float32 float32 int32", lambda a, b, c: a if c < 5 else b),
    ])  # fmt: skip


def test_roots_exponentials_and_the_like_are_near():
    def near(asm, exact, values):
        return row(f"{asm} %0, %1;", "float32 = float32", lambda a: np.float32(exact(a)), values)

    check([
        near("sqrt.rn.f32", rounded_root, (0.25, 2.0, 3.0, 1e-30)),
        near("sqrt.approx.ftz.f32", math.sqrt, (0.25, 4.0, 0.0)),
        near("rsqrt.approx.ftz.f32", lambda a: 1 / math.sqrt(a), (0.25, 4.0, 64.0)),
        near("rcp.approx.ftz.f32", lambda a: 1 / a, (0.25, -4.0, 3.0)),
        near("ex2.approx.ftz.f32", lambda a: 2.0**a, (0.0, 1.0, -5.0, 10.0)),
        near("lg2.approx.ftz.f32", math.log2, (1.0, 8.0, 0.25)),
        near("tanh.approx.f32", math.tanh, (0.0, 20.0, -20.0)),
    ])  # fmt: skip


def rounded_root(a):
    with np.errstate(all="ignore"):
        return np.sqrt(np.float32(a))


COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def test_comparisons_know_signs_and_nan():
    asm = "{{ .reg .pred p; setp.{}.{} p, %1, %2; selp.u32 %0, 1, 0, p; }}"
    rows = []
    for word, holds in COMPARISONS.items():
        rows += [
            row(asm.format(word, t), f"uint32 = {NUMPY[t]} {NUMPY[t]}", holds) for t in ("s32", "u32", "s16", "u64")
        ]
        ordered = lambda a, b, holds=holds: a == a and b == b and holds(a, b)  # noqa: E731
        unordered = lambda a, b, holds=holds: a != a or b != b or holds(a, b)  # noqa: E731
        for t in ("f32", "f64"):
            pair = f"uint32 = {NUMPY[t]} {NUMPY[t]}"
            rows += [row(asm.format(word, t), pair, ordered), row(asm.format(f"{word}u", t), pair, unordered)]
    rows += [
        row(asm.format("lo", "u32"), "uint32 = uint32 uint32", lambda a, b: a < b),
        row(asm.format("num", "f32"), "uint32 = float32 float32", lambda a, b: a == a and b == b),
        row(asm.format("nan", "f32"), "uint32 = float32 float32", lambda a, b: a != a or b != b),
        row(asm.format("eq.ftz", "f32"), "uint32 = float32 float32", lambda a, b: flushed(a) == flushed(b)),
        row("{ .reg .pred p, q; setp.gt.s32 q, %1, 3; setp.lt.and.s32 p|q, %1, %2, !q; "
            "selp.u32 %0, 1, 0, p; @q add.u32 %0, %0, 2; }",
            "uint32 = int32 int32", lambda a, b: (a < b and a <= 3) + 2 * (a >= b and a <= 3)),
        row("set.lt.u32.f32 %0, %1, %2;", "uint32 = float32 float32", lambda a, b: -1 if a < b else 0),
        row("set.gt.f32.s32 %0, %1, %2;", "float32 = int32 int32", lambda a, b: 1.0 if a > b else 0.0),
    ]  # fmt: skip
    check(rows)


# -------------------------------------------------------------------------------------------- conversions

ODD = np.array(
    [0.5, 1.5, 2.5, -0.5, -1.5, 3.7, -3.2, 70000.0, -5e9, 3e38, 1e-40, 0.0, np.inf, -np.inf, np.nan], np.float32
)
WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("mode", WHOLE)
def test_floats_to_integers_saturate(mode):
    def expect(dtype, nan):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

        def whole(x):
            if x != x:
                return nan
            return low if x == -math.inf else high if x == math.inf else min(max(WHOLE[mode](x), low), high)

        return whole

    rows = []
    for type_, dtype in (("s32", "int32"), ("u32", "uint32"), ("s16", "int16"), ("s64", "int64"), ("u64", "uint64")):
        high_bit = 1 << BITS[type_] - 1
        nan = high_bit if BITS[type_] == 64 else 0
        rows.append(row(f"cvt.{mode}.{type_}.f32 %0, %1;", f"{dtype} = float32", expect(dtype, nan), ODD))
        rows.append(row(f"cvt.{mode}.{type_}.f64 %0, %1;", f"{dtype} = float64", expect(dtype, high_bit), ODD))
    rows.append(row(f"cvt.{mode}.f32.f32 %0, %1;", "float32 = float32", whole_float(mode), ODD))
    check(rows)


def whole_float(mode):
    return lambda x: math.copysign(WHOLE[mode](x), x) if math.isfinite(x) else x


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_narrowing_rounds_as_told(mode):
    fine = [1.0, 1 / 3, -2 / 3, 65504.0, 65519.9, 65520.0, -1e6, 6e-8, 1e-7, -3e-8, 1e-41, 2.0**-149, 0.1, 1e38, 3.4e38]
    values = np.array([*fine, 0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)

    def expect(form):
        return lambda x: rounded(frac(x), form, mode, math.copysign(1, x)) if math.isfinite(x) else x

    rows = []
    widen = "{{ .reg .b16 h; cvt.{}.{}.f32 h, %1; {} }}"
    rows.append(row(widen.format(mode, "f16", "cvt.f32.f16 %0, h;"), "float32 = float32", expect("f16"), values))
    if mode in {"rn", "rz"}:
        back = "{ .reg .b32 w; mov.b32 w, {z, h}; mov.b32 %0, w; }"
        bf16 = f"{{ .reg .b16 h, z; mov.u16 z, 0; cvt.{mode}.bf16.f32 h, %1; {back} }}"
        rows.append(row(bf16, "float32 = float32", expect("bf16"), values))
    doubles = np.array([*fine, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 1e300, -1e-300])
    rows.append(row(f"cvt.{mode}.f32.f64 %0, %1;", "float32 = float64", expect("f32"), doubles))
    rows.append(
        row(f"cvt.{mode}.ftz.f32.f64 %0, %1;", "float32 = float64", lambda x: flushed(expect("f32")(x)), doubles)
    )
    check(rows)


def frac(x):
    return Fraction(x)


def test_pairs_and_tf32():
    values = np.array([1 / 3, -0.1, 1 + 2.0**-11, 1 + 2.0**-12, 70000.0], np.float32)

    def bits16(x, form):
        dtype = np.float16 if form == "f16" else ml_dtypes.bfloat16
        with np.errstate(over="ignore"):
            return int(np.array(x, np.float32).astype(dtype).view(np.uint16))

    def pair(form):
        return lambda high, low: bits16(high, form) << 16 | bits16(low, form)

    check([
        row("cvt.rn.f16x2.f32 %0, %1, %2;", "uint32 = float32 float32", pair("f16"), values, values),
        row("cvt.rn.bf16x2.f32 %0, %1, %2;", "uint32 = float32 float32", pair("bf16"), values, values),
        row("{ .reg .b32 t; cvt.rna.tf32.f32 t, %1; mov.b32 %0, t; }", "float32 = float32",
            lambda x: rounded(frac(x), "tf32", "rna"), values),
        row("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; fma.rn.f16 h, h, h, h; cvt.f32.f16 %0, h; }", "float32 = float32",
            fma16, (0.1, 1.5, -3.0, 200.0, 1e-3)),
    ])  # fmt: skip


def fma16(x):
    h = frac(float(np.float16(x)))
    return rounded(h * h + h, "f16")


def test_integers_to_floats_and_integers():
    check([
        row("cvt.rn.f32.s32 %0, %1;", "float32 = int32", lambda a: rounded(frac(a), "f32")),
        row("cvt.rz.f32.u64 %0, %1;", "float32 = uint64", lambda a: rounded(frac(a), "f32", "rz")),
        row("cvt.rn.f64.s64 %0, %1;", "float64 = int64", lambda a: rounded(frac(a), "f64")),
        row("cvt.rp.f64.u64 %0, %1;", "float64 = uint64", lambda a: rounded(frac(a), "f64", "rp")),
        row("cvt.s64.s32 %0, %1;", "int64 = int32", lambda a: a),
        row("cvt.u64.u32 %0, %1;", "uint64 = uint32", lambda a: a),
        row("cvt.s32.s8 %0, %1;", "int32 = int32", lambda a: (a & 255) - 256 * (a >> 7 & 1)),
        row("cvt.u16.u32 %0, %1;", "uint16 = uint32", lambda a: a & 0xFFFF),
        row("cvt.sat.s16.s32 %0, %1;", "int16 = int32", lambda a: min(max(a, -32768), 32767)),
        row("cvt.sat.u16.s32 %0, %1;", "uint16 = int32", lambda a: min(max(a, 0), 65535)),
        row("cvt.f64.f32 %0, %1;", "float64 = float32", lambda a: a),
        row("cvt.ftz.f64.f32 %0, %1;", "float64 = float32", flushed),
    ])  # fmt: skip


def test_the_formats_of_this_test_are_those_of_ieee():
    assert FORMATS["f32"] == (24, -126, 127)
    assert rounded(frac(0.1), "f32") == float(np.float32(0.1))
    assert rounded(frac(1e-7), "f16") == float(np.float16(1e-7))


# -------------------------------------------------------------------------------------------- the table


def module_of(*lines):
    body = "\n".join(lines)
    return f".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n{body}\nret;\n}}\n"


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate.f32 %f1, %f2;",
        "add.rna.f32 %f1, %f2, %f3;",
        "mul.f128 %f1, %f2, %f3;",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%f1}, {%f1}, {%f1}, {%f1};",
        "ld.global.f32.wrong %f1, [%rd1];",
    ],
)
def test_an_unknown_instruction_is_named(line):
    with pytest.raises(PtxError, match=line.split()[0].replace(".", r"\.")):
        translate(module_of(".reg .f32 %f<4>;", ".reg .b64 %rd<4>;", line))


@pytest.mark.parametrize("line", ["add.f32 %f1, %f2;", "add.f32 %f1, %f2, %q;", "ld.global.v2.f32 {%f1}, [%rd1];"])
def test_wrong_operands_are_refused(line):
    with pytest.raises(PtxError):
        translate(module_of(".reg .f32 %f<4>;", ".reg .b64 %rd<4>;", line))


def test_every_expression_of_the_table_compiles():
    registers = [f".reg .{t} %{t}_<5>;" for t in ("pred", "b16", "b32", "b64")]
    lines = []
    for table_row in (r for r in rows() if r.types):
        for opcode in examples(table_row.pattern):
            match = table_row.match(opcode)
            assert match, (opcode, table_row.pattern)
            types = [match.type(name) for name in table_row.types]
            sizes = ["pred" if t == "pred" else f"b{max(16, bits_of(t))}" for t in types]
            operands = ", ".join(f"%{size}_{i}" for i, size in enumerate(sizes))
            lines.append(f"{opcode} {operands};")
    assert len(lines) > 500
    text = translate(module_of(*registers, *lines))
    build.shared_object("every row", text, (*ptx.FLAGS, "-O0"))


def test_patterns():
    pattern = compile_pattern("add[.ROUND][.ftz].<T:f32 f64>")
    assert pattern.fullmatch("add.f32")
    assert pattern.fullmatch("add.rz.ftz.f64")["T"] == "f64"
    assert not pattern.fullmatch("add.ftz.rz.f32")
    assert not pattern.fullmatch("add.rn")
