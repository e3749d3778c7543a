"""ConvGeometry: sizes against counted windows, every form of pad, the problem string, every message."""

import dataclasses
import math
import re

import numpy as np
import oracle
import pytest
from cases import CASES, cases
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuconv import ConvGeometry, GeometryError


def geometry(case):
    return ConvGeometry.create(case.n, case.spatial, case.c, case.k, case.kernel, **case.keywords)


def create(ndim=2, **changes):
    """A plain geometry with some arguments changed."""
    plain = {"n": 2, "spatial": (9, 8, 7)[:ndim], "c": 4, "k": 6, "kernel": (3, 2, 3)[:ndim]}
    return ConvGeometry.create(**{**plain, **changes})


class TestSizes:
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    def test_are_those_of_the_walk(self, case):
        g = geometry(case)
        assert (g.ndim, g.out) == (case.ndim, case.out)
        assert (g.x_shape, g.w_shape, g.y_shape) == (case.x_shape, case.w_shape, case.y_shape)

    @given(st.one_of(*map(cases, (1, 2, 3))))
    @settings(max_examples=400)
    def test_of_any_case(self, case):
        assert geometry(case).out == case.out

    @given(st.one_of(*map(cases, (1, 2))))
    @settings(max_examples=100)
    def test_multiply_adds_are_the_taps_walked_over(self, case):
        g, shape = geometry(case), oracle.sources(case.spatial, case.pads, case.mode).shape
        taps = sum(math.prod(case.kernel) for _ in oracle.windows(shape, case.kernel, case.stride, case.dilation))
        assert g.macs == case.n * taps * (case.c // case.groups) * case.k
        assert g.flops == 2 * g.macs

    def test_flops_by_hand(self):
        assert create(n=8, spatial=56, c=64, k=64, kernel=(3, 3), pad=1).flops == 2 * 8 * 56 * 56 * 9 * 64 * 64
        assert create(n=8, spatial=56, c=64, k=64, kernel=(3, 3), pad=1, groups=64).flops == 2 * 8 * 56 * 56 * 9 * 64

    def test_an_int_serves_every_axis(self):
        assert create(3, kernel=(2, 2, 2), stride=2, pad=1, dilation=2) == create(
            3, kernel=(2,) * 3, stride=(2,) * 3, pad=((1, 1),) * 3, dilation=(2,) * 3
        )

    @pytest.mark.parametrize("kind", [list, np.array, lambda sizes: tuple(map(np.int16, sizes))])
    def test_lists_and_arrays_of_numpy_integers_serve_as_sizes(self, kind):
        sizes = {"spatial": (9, 8), "kernel": (3, 2), "stride": (2, 1), "dilation": (1, 2)}
        assert create(**{name: kind(values) for name, values in sizes.items()}) == create(**sizes)

    def test_big_sizes_do_not_wrap(self):
        g = create(1, n=2**20, spatial=2**31, kernel=3)
        assert g.out == (2**31 - 2,)
        assert g.macs == 2**20 * (2**31 - 2) * 3 * 4 * 6


class TestPads:
    @pytest.mark.parametrize(
        ("ndim", "pad", "pairs"),
        [
            (1, 2, ((2, 2),)),
            (1, (2,), ((2, 2),)),
            (1, (2, 1), ((2, 1),)),
            (1, ((2, 1),), ((2, 1),)),
            (2, 2, ((2, 2), (2, 2))),
            (2, (2, 1), ((2, 2), (1, 1))),
            (2, (1, 2, 3, 4), ((1, 2), (3, 4))),
            (2, ((1, 2), (3, 4)), ((1, 2), (3, 4))),
            (2, [[1, 2], [3, 4]], ((1, 2), (3, 4))),
            (2, np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
            (2, np.array([1, 2, 3, 4]), ((1, 2), (3, 4))),
            (2, np.int64(2), ((2, 2), (2, 2))),
            (2, [np.int32(2), np.uint8(1)], ((2, 2), (1, 1))),
            (3, (1, 2, 3), ((1, 1), (2, 2), (3, 3))),
            (3, (1, 2, 3, 4, 5, 6), ((1, 2), (3, 4), (5, 6))),
            (3, ((1, 2), (3, 4), (5, 6)), ((1, 2), (3, 4), (5, 6))),
            (2, "valid", ((0, 0), (0, 0))),
            (2, "full", ((2, 2), (1, 1))),
            (1, "causal", ((2, 0),)),
        ],
    )
    def test_every_form(self, ndim, pad, pairs):
        g = create(ndim, pad=pad)
        assert g.pad == pairs
        assert all(type(side) is int for pair in g.pad for side in pair)

    def test_named_pads_count_the_holes(self):
        assert create(pad="full", dilation=(2, 5)).pad == ((4, 4), (5, 5))
        assert create(1, pad="causal", dilation=3).pad == ((6, 0),)

    @pytest.mark.parametrize(
        ("size", "kernel", "stride", "dilation", "pair", "out"),
        [  # known from TensorFlow's padding="SAME"
            (5, 3, 1, 1, (1, 1), 5),
            (5, 2, 1, 1, (0, 1), 5),
            (5, 4, 1, 1, (1, 2), 5),
            (6, 3, 2, 1, (0, 1), 3),
            (5, 3, 2, 1, (1, 1), 3),
            (224, 7, 2, 1, (2, 3), 112),
            (13, 6, 5, 1, (1, 2), 3),
            (4, 1, 2, 1, (0, 0), 2),
            (4, 2, 3, 1, (0, 1), 2),
            (10, 3, 1, 2, (2, 2), 10),
            (10, 3, 3, 4, (4, 4), 4),
            (1, 3, 1, 1, (1, 1), 1),
        ],
    )
    def test_same_follows_tensorflow(self, size, kernel, stride, dilation, pair, out):
        g = create(1, spatial=size, kernel=kernel, stride=stride, dilation=dilation, pad="same")
        assert (g.pad, g.out) == ((pair,), (out,))

    @given(*map(st.integers, (1, 1, 1, 1), (40, 9, 7, 4)))
    @settings(max_examples=300)
    def test_same_is_the_fewest_zeros_for_a_window_at_every_stride(self, size, kernel, stride, dilation):
        g = create(1, spatial=size, kernel=kernel, stride=stride, dilation=dilation, pad="same")
        assert g.pad == (oracle.same_pads(size, kernel, stride, dilation),)
        assert g.out == (len(range(0, size, stride)),)
        lower = create(1, spatial=size, kernel=kernel, stride=stride, dilation=dilation, pad="same_lower")
        assert (lower.pad, lower.out) == ((g.pad[0][::-1],), g.out)


class TestProblemString:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"n": 8, "spatial": 56, "c": 64, "k": 64, "kernel": (3, 3), "pad": 1}, "n8_h56w56_c64_k64_r3s3_p1"),
            ({"n": 1, "spatial": 56, "c": 3, "k": 8, "kernel": 5}, "n1_w56_c3_k8_s5"),
            ({"n": 1, "spatial": (8, 56, 57), "c": 3, "k": 8, "kernel": (1, 2, 3)}, "n1_d8h56w57_c3_k8_t1r2s3"),
            ({"pad": (1, 0), "stride": (2, 1)}, "n2_h9w8_c4_k6_r3s2_p1x0_st2x1"),
            ({"pad": ((0, 1), (2, 2)), "dilation": 2}, "n2_h9w8_c4_k6_r3s2_p0-1x2_dl2"),
            ({"groups": 2, "pad_mode": "reflect", "pad": 1}, "n2_h9w8_c4_k6_r3s2_p1_g2_reflect"),
            (
                {"pad": (1, 2), "stride": 2, "dilation": (1, 3), "groups": 2, "pad_mode": "circular"},
                "n2_h9w8_c4_k6_r3s2_p1x2_st2_dl1x3_g2_circular",
            ),
            ({"n": 0, "c": 0, "k": 0, "pad_mode": "replicate"}, "n0_h9w8_c0_k0_r3s2_replicate"),
            ({"pad": "same_lower", "pad_mode": "symmetric"}, "n2_h9w8_c4_k6_r3s2_p1x1-0_symmetric"),
        ],
    )
    def test_golden(self, arguments, text):
        g = create(**arguments)
        assert str(g) == text
        assert ConvGeometry.parse(text) == g

    @pytest.mark.parametrize("text", ["p0-1x0-1", "p0-1"])
    def test_equal_lopsided_pads_read_either_way(self, text):
        assert ConvGeometry.parse(f"n1_h5w5_c1_k1_r2s2_{text}").pad == ((0, 1), (0, 1))

    @given(st.one_of(*map(cases, (1, 2, 3))))
    @example(CASES["3d-everything"])
    @settings(max_examples=300)
    def test_parses_back(self, case):
        g = geometry(case)
        assert ConvGeometry.parse(str(g)) == g
        assert hash(ConvGeometry.parse(str(g))) == hash(g)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "n8",
            "hello",
            "n8_h56w56_c64_k64",
            "n8_h56w56_c64_k64_r3s3_p1_",
            "n8_h56w56_c64_k64_r3s3_p-1",
            "n8_h56w56_c64_k64_r3s3_st2_p1",
            "n8_h56w56_c64_k64_r3s3_mirror",
            "n8_h56w56_c64_k64_s3",
            "n8_w56h56_c64_k64_r3s3",
            "n8_h56w56_c64_k64_r3s3_p1x1x1",
            "n8_h56w56_c64_k64_r3s3_st1x2x3",
            "n8_h56w56_c64_k64_r3s3 ",
            "n8_h56w56_c64_k64_r3s3\n",
        ],
    )
    def test_refuses_what_is_none(self, text):
        with pytest.raises(GeometryError, match="parse: "):
            ConvGeometry.parse(text)

    def test_parsing_checks_the_rules(self):
        with pytest.raises(GeometryError, match=r"parse: groups=3 does not divide the 64 input channels"):
            ConvGeometry.parse("n8_h56w56_c64_k64_r3s3_g3")


class TestImmutable:
    def test_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            create().n = 3

    def test_equal_whatever_the_form(self):
        assert create(pad="valid", stride=[1, 1]) == create(pad=0, stride=np.int64(1))
        assert len({create(pad="valid"), create(pad=0), create(pad=1)}) == 2


class TestErrors:
    """Each names the caller, the argument, the rule and the numbers."""

    @pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(2), None])
    @pytest.mark.parametrize(
        "name", ["n", "c", "k", "spatial", "kernel", "stride", "dilation", "groups", "pad"], ids=lambda name: name
    )
    def test_not_an_integer(self, name, value):
        with pytest.raises(GeometryError, match=f"^ConvGeometry: {name}={re.escape(repr(value))} "):
            create(**{"spatial": 9, name: value})

    @pytest.mark.parametrize("name", ["spatial", "kernel", "stride", "dilation", "pad"])
    def test_one_entry_is_not_an_integer(self, name):
        with pytest.raises(GeometryError, match=rf"^ConvGeometry: {name}=1\.5 is not an integer"):
            create(**{name: (2, 1.5)})

    @pytest.mark.parametrize(
        ("name", "value", "least"),
        [
            ("n", -1, 0),
            ("c", -1, 0),
            ("k", -1, 0),
            ("spatial", (5, -1), 0),
            ("pad", -1, 0),
            ("kernel", (3, 0), 1),
            ("stride", 0, 1),
            ("dilation", (0, 1), 1),
            ("groups", 0, 1),
        ],
    )
    def test_too_small(self, name, value, least):
        small = min(value) if isinstance(value, tuple) else value
        with pytest.raises(GeometryError, match=rf"^ConvGeometry: {name}={small} is less than {least}"):
            create(**{name: value})

    @pytest.mark.parametrize("name", ["spatial", "stride", "dilation"])
    def test_wrong_number_of_entries(self, name):
        with pytest.raises(GeometryError, match=rf"^ConvGeometry: {name}=\(3, 3, 3\) has 3 entries for 2 axes"):
            create(**{name: (3, 3, 3)})

    @pytest.mark.parametrize("kernel", [(), (1, 1, 1, 1)])
    def test_number_of_axes(self, kernel):
        with pytest.raises(GeometryError, match=rf"kernel=.* has {len(kernel)} axes, but a convolution has 1 to 3"):
            ConvGeometry.create(1, 5, 1, 1, kernel)

    @pytest.mark.parametrize(
        ("ndim", "pad", "says"),
        [
            (2, "smae", r"pad='smae' is none of 'same', 'same_lower', 'valid', 'full', 'causal'"),
            (2, "causal", r"pad='causal' is for 1 axis, but this convolution has 2"),
            (2, (1, 2, 3), r"pad=\(1, 2, 3\) has 3 entries; 2 axes take 1, 2 or 4"),
            (3, (1, 2), r"pad=\(1, 2\) has 2 entries; 3 axes take 1, 3 or 6"),
            (2, ((1, 2),), r"pad=\(\(1, 2\),\) needs one \(lo, hi\) per axis, 2 in all"),
            (2, ((1, 2, 3), (1, 2, 3)), r"pad=.* needs one \(lo, hi\) per axis, 2 in all"),
            (2, (), r"pad=\(\) has 0 entries; 2 axes take 1, 2 or 4"),
            (2, (1, (2, 3)), r"pad=\(2, 3\) is not an integer"),
        ],
    )
    def test_pads(self, ndim, pad, says):
        with pytest.raises(GeometryError, match="^ConvGeometry: " + says):
            create(ndim, pad=pad)

    @pytest.mark.parametrize(("groups", "which"), [(3, "4 input"), (4, "6 output")])
    def test_groups_divide_the_channels(self, groups, which):
        with pytest.raises(GeometryError, match=f"groups={groups} does not divide the {which} channels"):
            create(groups=groups)

    def test_pad_mode(self):
        with pytest.raises(
            GeometryError, match="pad_mode='mirror' is none of 'zeros', 'reflect', 'replicate', 'circular', 'symmetric'"
        ):
            create(pad_mode="mirror")

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "symmetric"])
    def test_nothing_to_repeat(self, mode):
        with pytest.raises(GeometryError, match=rf"pad \(1, 1\) along h has nothing to {mode}: the input has size 0"):
            create(spatial=(0, 8), pad=1, pad_mode=mode)

    def test_kernel_over_the_padded_input(self):
        says = (
            r"the kernel spans 5 along w \(kernel 3, dilation 2\), but the padded input has only 4 "
            r"\(input 3, pad \(1, 0\)\)\. "
            r"Pad by 1 more, or use a smaller kernel or dilation"
        )
        with pytest.raises(GeometryError, match=says):
            create(kernel=(3, 3), dilation=2, spatial=(9, 3), pad=((0, 0), (1, 0)))

    @given(*map(st.integers, (1, 1, 1, 0, 0), (6, 6, 3, 3, 3)))
    @settings(max_examples=200)
    def test_there_is_an_error_exactly_when_no_window_fits(self, size, kernel, dilation, low, high):
        fits = oracle.out_shape((size,), (kernel,), (1,), (dilation,), ((low, high),)) != (0,)
        try:
            create(1, spatial=size, kernel=kernel, dilation=dilation, pad=(low, high))
        except GeometryError:
            assert not fits
        else:
            assert fits
