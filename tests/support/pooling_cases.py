"""What the tests of pooling ask of a case."""

import oracle
from cases import DTYPES

REAL_DTYPES = [name for name, dtype in DTYPES.items() if dtype.kind != "c"]


def max_keywords(case):
    return {"stride": case.stride, "pad": case.pads, "dilation": case.dilation}


def avg_keywords(case):
    return {"stride": case.stride, "pad": case.pads}


def pixels_per_window(case):
    inside = oracle.sources(case.spatial, case.pads) >= 0
    walk = oracle.windows(inside.shape, case.kernel, case.stride, case.dilation)
    return [int(inside[taps[1:]].sum()) for _, taps in walk]


def spans(case):
    return [(k - 1) * d + 1 for k, d in zip(case.kernel, case.dilation, strict=True)]
