"""Pooling as a problem: its string, and a plan that names who computes it."""

import numpy as np
import pytest
from tolerances import to_numpy

import gpuconv
from gpuconv import ConvGeometry, PoolGeometry
from gpuconv.functions.pooling import averages, compiled, cuda, large, maxima
from gpuconv.simd.host import numba_is_there, try_numba

STRINGS = [
    "max_pool2d_n2_h11w12_c4_r3s3_p1_st2",
    "max_pool1d_n2_w9_c3_s3_p0-2_st2_dl2",
    "avg_pool2d_n1_h8w8_c16_r3s3_st2_ceil",
    "avg_pool3d_n1_d4h8w8_c16_t2r3s3_p1-0x1x1_st2x1x2_dl1x2x1_includepad",
]


@pytest.mark.parametrize("text", STRINGS)
def test_the_string_is_read_back(text):
    g = ConvGeometry.parse(text)
    assert isinstance(g, PoolGeometry)
    assert str(g) == text
    assert ConvGeometry.parse(str(g)) == g
    x = np.random.default_rng(0).standard_normal(g.x_shape)
    more = {"count_include_pad": g.include_pad} if g.kind == "avg" else {}
    function = getattr(gpuconv, text.partition("_n")[0])
    y = function(x, g.kernel, stride=g.stride, pad=g.asked, dilation=g.dilation, ceil_mode=g.ceil_mode, **more)
    assert y.shape == g.y_shape
    assert g.bytes(8) == x.nbytes + y.nbytes
    assert g.flops == y.size * np.prod(g.kernel)


def test_the_stride_is_the_kernel_and_ceil_mode_is_named_where_it_counts():
    assert str(PoolGeometry.of("max", 1, (6, 6), 4, 2)) == "max_pool2d_n1_h6w6_c4_r2s2_st2"
    assert str(PoolGeometry.of("max", 1, (6, 6), 4, 2, ceil_mode=True)) == "max_pool2d_n1_h6w6_c4_r2s2_st2"
    assert str(PoolGeometry.of("max", 1, (7, 7), 4, 2, ceil_mode=True)) == "max_pool2d_n1_h7w7_c4_r2s2_st2_ceil"
    assert PoolGeometry.of("max", 1, 7, 0, 2).y_shape == (1, 3, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_pool2d_n8_w9_c4_s3", "not the problem string of a pooling. It reads like max_pool2d_n8"),
        ("max_pool1d_n8_w9_c4_k4_s3", "not the problem string of a pooling"),
        ("max_pool1d_n8_w9_c4_s3_g2", "without groups, pad mode"),
        ("max_pool1d_n8_w9_c4_s3_banks", "without groups, pad mode and weights"),
        ("max_pool1d_n8_w9_c4_s3_includepad", "no pad is counted by a maximum. Use kind='avg'"),
        ("min_pool1d_n8_w9_c4_s3", r"not a problem string.* begins with the function: max_pool2d_n8"),
        ("max_pool1d_n8_w9_c4_s10", "the kernel spans 10 along w"),
    ],
)
def test_what_is_no_string(text, says):
    with pytest.raises(gpuconv.GeometryError, match=f"^parse: .*{says}"):
        ConvGeometry.parse(text)


def test_what_has_no_plan():
    text = STRINGS[0]
    for says, keywords in [
        ("has no weights", {"direction": "weight_grad"}),
        ("the ways of pooling have no names", {"algorithm": "gemm"}),
        ("gpuconv computes in", {"dtype": "int8", "direction": "input_grad"}),
        ("no order and no maximum", {"dtype": "complex64"}),
        ("is not a dtype", {"dtype": "float3"}),
    ]:
        with pytest.raises((ValueError, TypeError), match=f"^plan: .*{says}"):
            gpuconv.plan(text, **keywords)
    with pytest.raises(gpuconv.GeometryError, match=r"^plan: the window of output 1 along w holds only padding"):
        gpuconv.plan("max_pool1d_n1_w3_c1_s2_p0-4_st3")
    with pytest.raises(gpuconv.GeometryError, match=r"^warmup: max_pool2d.* is a pooling, which has no algorithms"):
        gpuconv.warmup(text)


# kind and direction, windows, dtype; who computes on the CPU with Numba, without, and on a GPU
PLANS = [
    ("max", "forward", "n1_h64w64_c16_r3s3_p1_st2", "float32", "compiled", "taps", "kernel"),
    ("max", "forward", "n1_h12w12_c3_r3s3_p1_st2", "float32", "taps", "taps", "kernel"),
    ("max", "forward", "n1_h20w20_c16_r9s9_p1", "float16", "halves", "halves", "kernel"),
    ("max", "forward", "n1_h72w70_c16_r34s34", "float32", "halves", "halves", "halves"),
    ("max", "forward", "n1_h12w12_c4_r2s2_st2", "int16", "taps", "taps", "kernel"),
    ("max", "input_grad", "n1_h64w64_c16_r3s3_p1_st2", "float32", "compiled", "taps", "kernel"),
    ("max", "input_grad", "n1_h20w20_c3_r9s9_p1", "float64", "halves", "halves", "kernel"),
    ("avg", "forward", "n1_h64w64_c16_r7s7_st7", "float32", "compiled", "taps", "kernel"),
    ("avg", "forward", "n1_h12w12_c4_r2s2_st2", "int8", "taps", "taps", "taps"),
    ("avg", "input_grad", "n1_h40w40_c2_r33s33", "float64", "halves", "halves", "halves"),
    ("avg", "input_grad", "n1_h10w9_c2_r3s3_st2_ceil", "complex64", "taps", "taps", "kernel"),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: " ".join(plan[:4]))
def test_the_plan_names_who_computes(xp, plan, monkeypatch):
    kind, direction, rest, dtype, with_numba, without, on_gpu = plan
    text = f"{kind}_pool2d_{rest}"
    try_numba()
    want = on_gpu if xp is not np else with_numba if numba_is_there() else without
    made = gpuconv.plan(text, dtype, "cpu" if xp is np else "cuda:0", direction=direction)
    assert made.chosen == want
    assert {one.name for one in made.candidates} == {"kernel", "compiled", "halves", "taps"}
    assert str(made).startswith(f"{text}  {dtype}  c")
    assert "chosen" in made._repr_html_()
    name = f"{kind}_pool" + ("_grad" if direction == "input_grad" else "")
    ran = []
    for way, module in (
        ("kernel", cuda),
        ("compiled", compiled),
        ("halves", large),
        ("taps", maxima),
        ("taps", averages),
    ):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, watched(getattr(module, name), way, ran))
    g = ConvGeometry.parse(text)
    x, dy = (xp.asarray(np.arange(np.prod(shape)).reshape(shape) % 7).astype(dtype) for shape in (g.x_shape, g.y_shape))
    keywords = {"stride": g.stride, "pad": g.asked, "ceil_mode": g.ceil_mode}
    function = getattr(gpuconv, name.replace("_pool", "_pool2d"))
    if direction == "forward":
        result = function(x, g.kernel, **keywords)
    else:
        result = function(dy, x if kind == "max" else g.x_shape, g.kernel, **keywords)
    assert to_numpy(result).any()
    assert set(ran) == {want}  # a kernel is also told to calls that repeat this one


def watched(function, way, ran):
    def watch(*arguments, **keywords):
        ran.append(way)
        return function(*arguments, **keywords)

    return watch


def test_the_plan_of_a_gradient_on_a_gpu_knows_its_argmax(gpu):
    made = gpuconv.plan("max_pool2d_n2_h9w9_c8_r3s3_st2", device="cuda:0", direction="input_grad")
    assert made.workspace == 2 * 4 * 4 * 8
    assert repr(made) == "<PoolPlan max_pool2d_n2_h9w9_c8_r3s3_st2 float32 input_grad on cuda:0: kernel>"
