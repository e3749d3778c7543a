"""Small kernels of the emulator's own tests, and the ways to run them."""

import numpy as np
import pytest
from emulator import Module

# fast, and with every instrument
WAYS = pytest.mark.parametrize("way", [{}, {"check": True}, {"ubsan": True}, {"check": True, "ubsan": True}], ids=str)
ORDERS = pytest.mark.parametrize("order", ["up", "down", "random"])


def kernel(body, parameters, before="", bounds=""):
    return f'{before}\nextern "C" __global__ void {bounds} k({parameters}) {{\n{body}\n}}\n'


def launch(text, grid, block, *args, shared_bytes=0, options=(), **how):
    Module(text, options, **how).launch("k", grid, block, args, shared_bytes)


def int32(n):
    return np.int32(n)
