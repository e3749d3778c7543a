"""Calls single PTX instructions in the emulator, and says in Python integers and fractions what they should give."""

import functools
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from emulator import Module, ptx

needs_ptx = pytest.mark.skipif(ptx.unavailable() is not None, reason=str(ptx.unavailable()))

CONSTRAINTS = {
    **dict.fromkeys(("int16", "uint16"), ("h", "unsigned short")),
    **dict.fromkeys(("int32", "uint32"), ("r", "unsigned int")),
    **dict.fromkeys(("int64", "uint64"), ("l", "unsigned long long")),
    "float32": ("f", "float"),
    "float64": ("d", "double"),
}
EDGES = (0, 1, 2, -1, 7, 100, -128, 255)
FLOATS = (0.0, -0.0, 1.0, -2.5, 3.75, 1e-3, math.inf, -math.inf, math.nan)
VALUES = {
    **{
        dtype: [np.array(v).astype(dtype)[()] for v in (*EDGES, np.iinfo(dtype).min, np.iinfo(dtype).max, 0x1234567)]
        for dtype in ("int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
    # the smallest normal number and two below it; odd ones in the last place
    "float32": np.array(
        [*FLOATS, 2.0**-126, 2.0**-127, -3 * 2.0**-149, 1 + 2.0**-23, -(2 - 2.0**-23), 2.0**127, 2**24 + 2.0],
        np.float32,
    ),
    "float64": np.array([*FLOATS, 2.0**-1022, 2.0**-1040, 1 + 2.0**-52, -(2 - 2.0**-52), 2.0**1023]),
}


@dataclass(frozen=True)
class Row:
    """`asm` with %0 the result and %1, %2, ... the operands; `expect` of Python scalars is what it should give."""

    asm: str
    result: str  # dtypes
    operands: tuple[str, ...]
    expect: object
    values: tuple = ()  # of the operands; those of VALUES where there are none

    def inputs(self):
        lists = self.values or tuple(VALUES[dtype] for dtype in self.operands)
        columns = zip(*itertools.product(*lists), strict=True)
        return [np.array(column).astype(dtype) for column, dtype in zip(columns, self.operands, strict=True)]


def row(asm, types, expect, *values):
    """`types` as "int32 = int32 int32"."""
    result, _, operands = types.partition(" = ")
    return Row(asm, result, tuple(operands.split()), expect, values)


def kernel_of(number, r):
    letters, names = zip(*(CONSTRAINTS[dtype] for dtype in (r.result, *r.operands)), strict=True)
    parameters = ", ".join(f"const {name}* a{i}" for i, name in enumerate(names[1:]))
    sources = ", ".join(f'"{letter}"(a{i}[t])' for i, letter in enumerate(letters[1:]))
    return f"""extern "C" __global__ void k{number}({names[0]}* out, {parameters}, int n) {{
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= n) return;
  {names[0]} d;
  asm volatile("{r.asm}" : "={letters[0]}"(d) : {sources});
  out[t] = d;
}}
"""


@functools.cache
def module(text, **how):
    return Module(text, tier="ptx", **how)


def check(rows):
    """Runs the instruction of each row over its inputs, and compares bit by bit; a NaN is a NaN."""
    made = module("".join(kernel_of(i, r) for i, r in enumerate(rows)))
    wrong = []
    for number, r in enumerate(rows):
        inputs = r.inputs()
        got = np.empty(len(inputs[0]), r.result)
        made.launch(f"k{number}", -(-len(got) // 128), 128, (got, *inputs, np.int32(len(got))))
        scalars = list(zip(*(column.tolist() for column in inputs), strict=True))
        expected = np.array([to(r.result, r.expect(*values)) for values in scalars], r.result)
        same = got.view(f"u{got.itemsize}") == expected.view(f"u{got.itemsize}")
        if got.dtype.kind == "f":
            same |= np.isnan(got) & np.isnan(expected)
        wrong += [f"{r.asm} of {scalars[i]}: {got[i]}, not {expected[i]}" for i in np.flatnonzero(~same)[:3]]
    assert not wrong, "\n".join(wrong)


def to(dtype, value):
    """A Python number in a dtype; integers wrap around."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return dtype.type(value)
    bits = 8 * dtype.itemsize
    wrapped = int(value) & (1 << bits) - 1
    return wrapped - (1 << bits) if dtype.kind == "i" and wrapped >> bits - 1 else wrapped


# -------------------------------------------------------------------------------------------- the numbers, by fractions

FORMATS = {  # precision in bits, least exponent of a normal number, greatest exponent
    "f16": (11, -14, 15),
    "bf16": (8, -126, 127),
    "tf32": (11, -126, 127),
    "f32": (24, -126, 127),
    "f64": (53, -1022, 1023),
}


def rounded(x, form, mode="rn", sign=1):
    """A fraction in a format. `sign` is that of a result of zero."""
    precision, least, greatest = FORMATS[form]
    if x == 0:
        return math.copysign(0.0, sign)
    negative, x = x < 0, abs(x)
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    exponent -= x < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, least) - precision + 1)
    below = x // step
    rest = x / step - below
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    result = (below + up) * step
    most = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** greatest
    if result > most:
        to_infinity = mode in {"rn", "rna"} or (mode == "rm" and negative) or (mode == "rp" and not negative)
        return math.copysign(math.inf if to_infinity else float(most), -1 if negative else 1)
    return math.copysign(float(result), -1 if negative else 1)


def flushed(x, form="f32"):
    return math.copysign(0.0, x) if abs(x) < 2.0 ** FORMATS[form][1] else x


SUMS = ("plus", "minus", "fused")


def arithmetic(exact, form="f32", mode="rn", ftz=False):
    """What a floating-point instruction gives: `exact` of fractions, rounded once; of NaN and infinities, of floats."""

    def expect(*operands):
        if ftz:
            operands = [flushed(x) for x in operands]
        with np.errstate(all="ignore"):
            plain = float(exact(*(np.float64(x) for x in operands)))
        if not all(math.isfinite(x) for x in operands) or math.isnan(plain):
            return plain
        try:
            value = exact(*map(Fraction, operands))
        except ZeroDivisionError:
            return plain
        zero_sign = math.copysign(1.0, plain)
        if mode == "rm" and exact.__name__ in SUMS and any(math.copysign(1, x) < 0 or x for x in operands):
            zero_sign = -1.0  # what cancels is -0 when rounding down
        result = rounded(value, form, mode, zero_sign)
        return flushed(result) if ftz else result

    return expect
