"""What the cost model of the tensor-core kernels expects of an H200, as Markdown: `python tests/predictions.py`.

No device is needed: the double of CuPy says that it is an H200. The first run on one is to be held to these numbers.
"""

import sys

import cupy_double
from cupy_double import streams

from gpuconv.algorithms import ALGORITHMS
from gpuconv.algorithms.cuda.implicit_gemm import _tiling
from gpuconv.bench import suites
from gpuconv.planning import problem_of

H200 = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "multiProcessorCount": 132}
WAYS = {"bfloat16": ("bfloat16", "strict"), "TF32": ("float32", "fast"), "float32": ("float32", "strict")}
DIRECTIONS = ("forward", "input_grad", "weight_grad")
NAME = "implicit_gemm"


def expected(layer, way, direction):
    """The cut of a layer, from the model."""
    dtype, precision = WAYS[way]
    problem = problem_of(layer, dtype, "cuda:0", direction, precision, None, "predictions")
    (algorithm,) = (a for a in ALGORITHMS if a.name == NAME)
    assert algorithm.refusal(problem) is None
    return _tiling(problem)[1]


def table(suite, batch):
    """Microseconds, expected and at least, of the forward pass of each layer; below, all layers once, in each pass."""
    layers = [layer.geometry for layer in suites.layers(suite, batch)]
    yield f"| {suite}, N={batch} | " + " | ".join(f"{way}: us (floor), tiles, waves" for way in WAYS) + " |"
    yield "|-" * (len(WAYS) + 1) + "|"
    for layer in layers:
        cuts = [expected(layer, way, "forward") for way in WAYS]
        texts = [
            f"{1e6 * c.seconds:.3g} ({1e6 * c.floor:.3g}), {c.tile.m}x{c.tile.n}"
            + (f"/{c.splits}" if c.splits > 1 else "")
            + f", {c.waves:.1f}"
            for c in cuts
        ]
        yield f"| `{layer}` | " + " | ".join(texts) + " |"
    for direction in DIRECTIONS:
        cuts = [[expected(layer, way, direction) for layer in layers] for way in WAYS]
        texts = [f"{1e6 * sum(c.seconds for c in some):.4g} ({1e6 * sum(c.floor for c in some):.4g})" for some in cuts]
        yield f"| all once, {direction} | " + " | ".join(texts) + " |"


def main():
    streams.PROPERTIES.update(H200)
    with cupy_double.installed():
        tables = ["\n".join(table(suite, batch)) + "\n" for suite, batch in (("resnet50", 128), ("resnet50", 1))]
        sys.stdout.write("\n".join(tables))


if __name__ == "__main__":
    main()
