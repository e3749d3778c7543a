"""What models of the kernels expect of an H200, as Markdown: `python tests/predictions.py`.

The model of the kernels on tensor cores is that of gpuconv/algorithms/cuda/implicit_gemm_tiles.py, which chooses tiles
and splits. Its instructions per step are written down there; here they are counted anew.

For the kernels on multiply-add units it counts the clocks of a step alone. All code of a step is counted there, also
what runs once in many steps, or only where an array is padded by other values than zeros.

No device is needed: the double of CuPy says that it is an H200. NVRTC and nvdisasm are needed to count instructions.
The first run on a device is to be held to these numbers.
"""

import math
import sys
from functools import cache, partial

import cupy_double
import numpy as np
from cupy_double import streams

from gpuconv import cuda
from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.cuda import depthwise, direct_stem, direct_tiles, implicit_gemm, implicit_gemm_tiles
from gpuconv.algorithms.wrappers import unwrapped
from gpuconv.bench import suites
from gpuconv.cuda import Unit, loader, nvrtc
from gpuconv.planning import problem_of
from gpuconv.tools import sass

H200 = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "multiProcessorCount": 132}
WAYS = {"bfloat16": ("bfloat16", "strict"), "TF32": ("float32", "fast"), "float32": ("float32", "strict")}
DIRECTIONS = ("forward", "input_grad", "weight_grad")
NAME = "implicit_gemm"

CLOCK, PROCESSORS = 1.755e9, 132
SHARED_BYTES = 128  # per clock
MEMORY_BYTES = 4.3e12  # per second
L2_BYTES = 38  # per clock and multiprocessor: an estimate


def posed(layer, way, direction):
    dtype, precision = WAYS[way]
    return problem_of(layer, dtype, "cuda:0", direction, precision, None, "predictions")


@cache
def disassembled(unit):
    """The machine code of a unit, for sm_90."""
    cubin, _ = nvrtc.compile_cubin(loader.flatten(unit.file), cuda.options(unit), "sm_90")
    return sass.disassemble(cubin, sass.disassembler())


def compiled(unit):
    """The main loop of a unit's kernel."""
    (step,) = sass.steps(disassembled(unit))
    return step


def unit_of(problem, tile, copy):
    macros = implicit_gemm._macros(problem, tile, copy)
    if problem.direction == "weight_grad":
        return Unit("implicit_gemm_weights.cu", problem.dtype, macros)
    back = int(problem.direction == "input_grad")
    return Unit("implicit_gemm.cu", problem.dtype, (("INPUT_GRAD", back), *macros))


def tiling_of(layer, way, direction):
    problem = posed(layer, way, direction)
    (algorithm,) = (a for a in ALGORITHMS if a.name == NAME)
    assert algorithm.refusal(problem) is None
    return implicit_gemm._tiling(problem)[1]


def told(one):
    splits = f"/{one.splits}" if one.splits > 1 else ""
    return f"{1e6 * one.seconds:.3g} {one.bound}, {one.tile.m}x{one.tile.n}{splits}"


def table(suite, batch):
    """Microseconds of the forward pass of each layer, what bounds it, tile and splits; below, sums over layers."""
    layers = [layer.geometry for layer in suites.layers(suite, batch)]
    yield f"| {suite}, N={batch} | " + " | ".join(f"{way}: us, bound, tile" for way in WAYS) + " |"
    yield "|-" * (len(WAYS) + 1) + "|"
    for layer in layers:
        yield f"| `{layer}` | " + " | ".join(told(tiling_of(layer, way, "forward")) for way in WAYS) + " |"
    wide = [layer for layer in layers if layer.c_group >= 8]  # "auto" takes another algorithm for the stem
    flop = 2e-12 * sum(layer.macs for layer in wide)
    for direction in DIRECTIONS:
        cells = []
        for way in WAYS:
            every = [tiling_of(layer, way, direction) for layer in wide]
            whole, issue = sum(one.seconds for one in every), sum(max(one.by.issue, one.memory) for one in every)
            cells.append(f"{1e6 * whole:.4g} us, {flop / whole:.3g} TFLOP/s; by issue and memory {flop / issue:.3g}")
        yield f"| all but the stem once, {direction} | " + " | ".join(cells) + " |"


def steps():
    """Clocks of a step by each bound, of the kernels with 16-byte copies."""
    yield "| kernel, tile | instructions of a warp | tensor | issue | shared | L2 |"
    yield "|-" * 6 + "|"
    some = suites.layers("resnet50", 128)[1].geometry
    for way, (dtype, _) in WAYS.items():
        for tile in implicit_gemm._TILES[2 if dtype == "bfloat16" else 4]:
            for direction in DIRECTIONS:
                problem = posed(some, way, direction)
                product = implicit_gemm.product_by(problem, 16)
                clocks = implicit_gemm_tiles.step_clocks(tile, product, implicit_gemm_tiles.device("cuda:0"), 10**6)
                count = compiled(unit_of(problem, tile, 16)).instructions
                cells = " | ".join(f"{value:.0f}" for value in clocks)
                yield f"| {way} {direction}, {tile.m}x{tile.n} | {count} | {cells} |"


def multiply_add_steps():
    """Clocks of a step by each bound, of direct.cu and direct_weights.cu; a thread reads its factors of its own."""
    yield "| kernel, tile | instructions of a warp | multiply-add | issue | shared | L2 | TFLOP/s |"
    yield "|-" * 7 + "|"
    for dtype in ("float32", "bfloat16"):
        size = np.dtype(dtype).itemsize
        for tile in direct_tiles.WIDE_TILES[size]:
            for direction in DIRECTIONS:
                macros = (("ALIGNED", 1), ("INDEX64", 0), *tile.macros)
                if direction == "weight_grad":
                    unit = Unit("direct_weights.cu", np.dtype(dtype), macros)
                else:
                    back = int(direction == "input_grad")
                    unit = Unit("direct.cu", np.dtype(dtype), (("INPUT_GRAD", back), *macros))
                step, products = compiled(unit), tile.k * tile.thread_m * tile.thread_n
                inner, around, *_ = step.around  # the loop over the products of a step, and the loop over steps
                count = products // step.work * inner + around - inner
                warps = tile.threads / 32
                numbers = tile.k * (tile.thread_m + tile.thread_n) * tile.threads + tile.k * (tile.m + tile.n)
                clocks = {
                    "multiply-add": products * warps / 4,
                    "issue": count * warps / 4,
                    "shared": 4 * numbers / SHARED_BYTES,
                    "L2": size * tile.k * (tile.m + tile.n) / L2_BYTES,
                }
                cells = " | ".join(f"{value:.0f}" for value in clocks.values())
                rate = 2e-12 * tile.m * tile.n * tile.k / max(clocks.values()) * CLOCK * PROCESSORS
                yield f"| {dtype} {direction}, {tile.m}x{tile.n}x{tile.k} | {count} | {cells} | {rate:.0f} |"


SMALL_LAYERS = (("depthwise", "mobilenetv2_dw", 128), ("depthwise", "convnext_dw7x7", 64))
STEM_LAYERS = (("direct", "stems", 128), ("direct", "vgg16", 128), ("direct", "convnext_stem", 64))


def executed(launch, problem):
    """Instructions of a warp from its start to its end, without activation: the main loop as often as it turns."""
    (total,) = sass.totals(disassembled(launch.unit)).values()
    if launch.name == "depthwise_weight_grad":
        sums = depthwise._sums(problem)
        strips = problem.geometry.n * math.prod(problem.geometry.out[:-1]) * sums.strips
        turns = -(-strips // (sums.block[1] * sums.splits))
        return total + (turns - 1) * compiled(launch.unit).instructions
    if launch.name == "direct_stem":
        inner, around, *_ = compiled(launch.unit).around  # a column of the strip, and a stage of them
        columns = problem.geometry.kernel[-1] * problem.geometry.c
        stages = -(-columns // (4 if problem.geometry.kernel[0] > 7 else 8))
        return total + (columns - 1) * inner + (stages - 1) * (around - inner)
    return total


def layers_by_issue_and_memory():
    """Microseconds of depthwise layers, and of stems: the longer of what issue and memory take."""
    yield "| layer | " + " | ".join(f"{dtype} {d}" for dtype in ("float32", "bfloat16") for d in DIRECTIONS) + " |"
    yield "|-" * 7 + "|"
    for name, suite, batch in (*SMALL_LAYERS, *STEM_LAYERS):
        (algorithm,) = (
            unwrapped(a, posed("n1_h3w3_c4_k4_r3s3_g4", "float32", "forward")) for a in ALGORITHMS if a.name == name
        )
        for layer in (one.geometry for one in suites.layers(suite, batch)):
            if name == "direct" and layer.c_group > direct_stem.MOST_CHANNELS:
                continue
            cells = []
            for way in ("float32", "bfloat16"):
                for direction in DIRECTIONS if name == "depthwise" else ("forward",):
                    problem = posed(layer, way, direction)
                    launch, _ = algorithm.launches(problem, (0, 0, 0)).steps[0]
                    warps = math.prod(launch.grid) * -(-math.prod(launch.block) // 32)
                    issue = warps * executed(launch, problem) / (4 * PROCESSORS * CLOCK)
                    memory = layer.bytes(problem.dtype.itemsize) / MEMORY_BYTES
                    cells.append(f"{1e6 * max(issue, memory):.3g} {'issue' if issue > memory else 'memory'}")
                cells += [""] * (2 if name == "direct" else 0)
            yield f"| `{layer}` | " + " | ".join(cells) + " |"


def main():
    streams.PROPERTIES.update(H200)
    with cupy_double.installed():
        tables = [partial(table, suite, batch) for suite, batch in (("resnet50", 128), ("resnet50", 1))]
        for rows in (*tables, layers_by_issue_and_memory, steps, multiply_add_steps):
            sys.stdout.write("\n".join(rows()) + "\n\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
