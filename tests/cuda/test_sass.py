"""Instructions per turn of a main loop, counted in machine code as nvdisasm writes it."""

import numpy as np
import pytest
from cases import DIRECTIONS
from nvrtc_here import needs_nvrtc

from gpuconv.algorithms.cuda import implicit_gemm
from gpuconv.algorithms.cuda.implicit_gemm_tiles import INSTRUCTIONS, MEDIUM, SMALL, TINY
from gpuconv.cuda import Unit, loader, nvrtc, options
from gpuconv.tools import sass
from gpuconv.tools.sass import Step

NVDISASM = sass.disassembler() or ""
needs_nvdisasm = pytest.mark.skipif(not NVDISASM, reason="there is no nvdisasm")


def code(text):
    """Words as nvdisasm writes them: a name before a colon, a label, or an instruction."""
    lines, at = [], 0
    for line in text.split("\n"):
        word = line.strip()
        if word.endswith(":"):
            lines.append(word if word.startswith(".L") else f".text.{word}")
        elif word:
            predicate, _, rest = word.partition(" ") if word.startswith("@") else ("", "", word)
            lines.append(f"        /*{at:04x}*/   {predicate:>6} {rest} ;")
            at += 16
    return "\t.headerflags\n" + "\n".join(lines)


def steps(text):
    return list(sass.steps(code(text)))


def test_the_innermost_loop_with_most_of_the_work_and_those_around_it():
    found = steps("""
        product:
        LDC R1, c[0x0][0x28]
        .L_x_0:
        IADD3 R1, R1, 0x1, RZ
        .L_x_1:
        HMMA.16816.F32.BF16 R4, R8, R12, R4
        HMMA.16816.F32.BF16 R4, R8, R12, R4
        FFMA R0, R0, R0, R0
        FFMA R0, R0, R0, R0
        FFMA R0, R0, R0, R0
        @P1 BRA `(.L_x_1)
        @!P0 BRA `(.L_x_0)
        .L_x_2:
        HMMA.16816.F32.BF16 R4, R8, R12, R4
        @P0 BRA `(.L_x_2)
        EXIT
    """)
    assert found == [Step("product", 6, 2, "HMMA", (6, 8))]
    assert str(found[0]) == "6/2 HMMA"


def test_a_block_that_is_elsewhere_belongs_to_its_loop():
    """And one inside the loop's addresses does not, if it leaves the loop."""
    [step] = steps("""
        away:
        MOV R0, R1
        .L_x_0:
        FFMA R0, R0, R0, R0
        @P2 BRA `(.L_x_2)
        .L_x_1:
        @P3 BRA `(.L_x_3)
        IADD3 R1, R1, 0x1, RZ
        BRA.U !UP0, `(.L_x_0)
        EXIT
        .L_x_2:
        MOV R1, R2
        MOV R1, R3
        BRA `(.L_x_1)
        .L_x_3:
        EXIT
    """)
    assert (step.instructions, step.work) == (8, 1)


def test_a_jump_back_that_makes_no_loop():
    assert (
        steps("""
        straight:
        @P0 BRA `(.L_x_1)
        .L_x_0:
        FFMA R0, R0, R0, R0
        EXIT
        .L_x_1:
        BRA `(.L_x_0)
    """)
        == []
    )


def test_two_branches_to_one_start_are_one_loop():
    [step] = steps("""
        again:
        MOV R0, R1
        .L_x_0:
        FFMA R0, R0, R0, R0
        @P0 BRA `(.L_x_0)
        DFMA R0, R0, R0, R0
        @P1 BRA `(.L_x_0)
        EXIT
    """)
    assert step == Step("again", 4, 1, "FFMA", (4,))


def test_kernels_of_one_text_and_one_without_loops():
    text = "\n".join(
        f"""{name}:
        .L_x_{name}:
        {opcode} R0, R0
        @P0 BRA `(.L_x_{name})
        EXIT"""
        for name, opcode in {"a": "DFMA", "b": "MOV", "c": "LDG.E"}.items()
    )
    assert steps(text) == [Step("a", 2, 1, "DFMA", (2,)), Step("c", 2, 1, "LDG", (2,))]


KERNEL = """
extern "C" __global__ void powers(float* x, int n) {
  float sums[8], a = x[threadIdx.x];
  #pragma unroll
  for (int i = 0; i < 8; i++) sums[i] = a * i;
  #pragma unroll 1
  for (int j = 0; j < n; j++)
    #pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = sums[i] * a + x[i];
  #pragma unroll
  for (int i = 0; i < 8; i++) x[i * 32 + threadIdx.x] = sums[i];
}
"""


def test_a_loop_that_makes_activations_is_no_main_loop():
    own = """k:
        .L_1:
        FFMA R0, R1, R2, R0
        @P0 BRA `(.L_1)
        .L_2:
        FFMA R0, R1, R2, R0
        FFMA R0, R1, R2, R0
        MUFU.EX2 R0, R0
        MUFU.RCP R0, R0
        @P0 BRA `(.L_2)
        EXIT"""
    assert steps(own) == [Step("k", 2, 1, "FFMA", (2,))]
    assert sass.totals(code(own)) == {"k": 3}
    assert [step.work for step in steps(own.replace("MUFU.EX2", "MUFU.RCP"))] == [2]


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_what_nvdisasm_writes_is_read(arch):
    [step] = sass.steps(sass.disassemble(nvrtc.compile_cubin(KERNEL, ("-std=c++17",), arch)[0], NVDISASM))
    assert (step.kernel, step.work, step.kind) == ("powers", 8, "FFMA")
    assert 8 + 2 <= step.instructions <= 40
    assert step.around == (step.instructions,)


@needs_nvdisasm
def test_what_nvdisasm_refuses_is_told():
    with pytest.raises(RuntimeError, match=r"nvdisasm failed: .*fatal"):
        sass.disassemble(b"no cubin", NVDISASM)


def test_a_file_that_cannot_be_run_is_told_and_not_taken_for_the_end_of_the_process(tmp_path):
    with pytest.raises(RuntimeError, match=r"nothing cannot be run on a cubin in a temporary file: .*No such file"):
        sass.disassemble(b"cubin", str(tmp_path / "nothing"))


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize("key", [(2, 1, SMALL, 16), (2, 1, TINY, 16), (4, 3, MEDIUM, 16), (4, 1, SMALL, 8)], ids=str)
def test_the_model_counts_what_is_in_the_machine_code(key):
    """Within a tenth: another compiler may count otherwise. tests/predictions.py counts the kernels with COPY=16."""
    size, products, tile, copy = key
    macros = (("TILE_M", tile.m), ("TILE_N", tile.n), ("COPY", copy), ("PRODUCTS", products))
    dtype = np.dtype(np.float16 if size == 2 else np.float32)
    for direction, wanted in zip(DIRECTIONS, INSTRUCTIONS[key], strict=True):
        unit = Unit("implicit_gemm_weights.cu", dtype, macros)
        if direction != "weight_grad":
            unit = Unit("implicit_gemm.cu", dtype, (("INPUT_GRAD", int(direction == "input_grad")), *macros))
        cubin, _ = nvrtc.compile_cubin(loader.flatten(unit.file), options(unit), "sm_90")
        (step,) = sass.steps(sass.disassemble(cubin, NVDISASM))
        assert step.instructions == pytest.approx(wanted, rel=0.1)


def test_the_model_has_a_count_for_every_unit():
    known = {(size, products, tile.m, tile.n, copy) for size, products, tile, copy in INSTRUCTIONS}
    units = [(unit.dtype.itemsize, dict(unit.macros)) for unit in implicit_gemm.UNITS]
    assert known == {(size, m["PRODUCTS"], m["TILE_M"], m["TILE_N"], m["COPY"]) for size, m in units}
    assert all(count > 0 for counts in INSTRUCTIONS.values() for count in counts)
