"""Traffic: sectors and bank conflicts of access patterns whose cost is known."""

import numpy as np
import pytest
from emulator import Module
from ptx_calls import module, needs_ptx

pytestmark = needs_ptx


def traffic(body, *args, before="", parameters="const float* x, float* y", block=32, grid=1, **how):
    head = f'{before}extern "C" __global__ void k({parameters})'
    text = f'#line 1 "k.cu"\n{head} {{\nconst int t = threadIdx.x;\n{body}\n}}\n'
    made = module(text, count_traffic=True, **how)
    made.launch("k", grid, block, args or (np.zeros(8192, np.float32), np.zeros(8192, np.float32)))
    return made.traffic


@pytest.mark.parametrize(
    ("index", "sectors", "ideal"),
    [
        ("t", 4, 4),
        ("31 - t", 4, 4),
        ("t ^ 5", 4, 4),
        ("2 * t", 8, 4),
        ("8 * t", 32, 4),
        ("0", 1, 1),
        ("t / 4", 1, 1),
        ("t + 1", 5, 4),
        ("t + 8", 4, 4),
        ("t % 4 * 100", 4, 1),
    ],
)
def test_sectors_of_a_warp(index, sectors, ideal):
    # 256 elements in, the array of the device is at a multiple of 32 bytes
    (row,) = traffic(f"y[t] = x[256 + {index}];").only("global", "read")
    assert (row.requests, row.sectors, row.ideal_sectors) == (1, sectors, ideal)
    assert (row.file, row.line, row.kind, row.bytes) == ("k.cu", 3, "global read", 128)


def test_wide_loads_ask_for_more_sectors_at_once():
    rows = traffic("((float4*)y)[t] = ((const float4*)x)[t];")
    assert [(row.kind, row.sectors, row.ideal_sectors) for row in rows] == [
        ("global read", 16, 16),
        ("global write", 16, 16),
    ]
    assert rows.ratio() == 1
    assert (rows.sectors, rows.ideal_sectors) == (32, 32)


def test_atomics_and_stores_have_rows_of_their_own():
    rows = traffic("atomicAdd(y + 2 * t, x[t]);\ny[4096 + t * 4] = 1;")
    assert [(row.line, row.kind, row.sectors) for row in rows] == [
        (3, "global atomic", 8), (3, "global read", 4), (4, "global write", 16)
    ]  # fmt: skip
    assert rows.ratio("global", "write") == 4
    assert rows.ratio("global", "read") == 1


@pytest.mark.parametrize(
    ("type_", "index", "wavefronts", "ideal"),
    [
        ("float", "t", 1, 1),
        ("float", "2 * t", 2, 1),
        ("float", "8 * t", 8, 1),
        ("float", "32 * t", 32, 1),
        ("float", "33 * t", 1, 1),
        ("float", "0", 1, 1),
        ("float", "t / 2", 1, 1),
        ("unsigned short", "t", 1, 1),
        ("double", "t", 2, 2),
        ("double", "t * 2", 4, 2),
        ("float4", "t", 4, 4),
        ("float4", "t * 2", 8, 4),
    ],
)
def test_bank_conflicts(type_, index, wavefronts, ideal):
    body = f"""
    extern __shared__ __align__(16) char raw[];
    const {type_} zero = {{}};
    {type_}* const s = ({type_}*)raw;
    s[{index}] = zero;
    """
    text = f'extern "C" __global__ void k() {{ const int t = threadIdx.x; {body} }}'
    made = module(text, count_traffic=True)
    made.launch("k", 1, 32, (), 32 * 32 * 17)
    (row,) = made.traffic
    assert (row.kind, row.cost, row.ideal, row.bank_conflicts) == (
        "shared write",
        wavefronts,
        ideal,
        wavefronts - ideal,
    )
    assert made.traffic.bank_conflicts == wavefronts - ideal


def test_lanes_that_skip_passes_of_a_loop_still_make_one_request():
    body = """
    for (int i = 0; i < 16; i++) {
      if ((i + t) % 3 == 0) continue;
      for (int j = 0; j < (t & 3); j++) y[4096 + i * 128 + j * 32 + t] = 1;
      y[i * 32 + t] = x[i * 32 + t];
    }
    """
    rows = traffic(body)
    for line, passes in ((6, 16 * 3), (7, 16)):
        (row,) = [row for row in rows.only("global", "write") if row.line == line]
        assert row.requests == passes
        assert row.sectors <= 4 * passes
    assert rows.only("global", "read").rows[0].requests == 16


def test_warps_blocks_and_unrolled_copies_add_up():
    body = "for (int i = 0; i < 4; i++) y[(blockIdx.x * 4 + i) * 64 + t] = x[(blockIdx.x * 4 + i) * 64 + t];"
    rows = traffic(body, block=64, grid=3)
    assert [(row.requests, row.sectors) for row in rows] == [(3 * 2 * 4, 3 * 2 * 4 * 4)] * 2


def test_ldmatrix_and_cp_async_are_counted_under_the_line_of_the_caller():
    before = """#line 1 "ptx.cuh"
__device__ __forceinline__ void copy(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory"); }
__device__ __forceinline__ unsigned matrix(unsigned at) { unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(at) : "memory"); return r; }
#line 10 "k.cu"
"""
    body = """
    __shared__ __align__(16) float s[128 * 4];
    const unsigned at = (unsigned)__cvta_generic_to_shared(s);
    copy(at + t * 16, x + t * 4);
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    y[t] = matrix(at + t % 8 * 16);
    y[t + 32] = matrix(at + t % 4 * 128);
    """
    rows = traffic(body, before=before)
    found = [(row.line, row.kind, row.cost, row.ideal) for row in rows if row.kind != "global write"]
    assert found == [
        (15, "global read", 16, 16),
        (15, "shared write", 4, 4),
        (18, "shared read", 1, 1),
        (19, "shared read", 4, 1),
    ]
    assert {row.file for row in rows} == {"k.cu"}


def test_copies_one_after_another_stay_apart():
    body = """
    __shared__ __align__(16) float s[4][128];
    const unsigned at = (unsigned)__cvta_generic_to_shared(s) + t * 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\\n" "cp.async.cg.shared.global [%0+512], [%1+512], 16;\\n"
                 "cp.async.cg.shared.global [%0+1024], [%1+1024], 16;\\n" "cp.async.wait_all;"
                 :: "r"(at), "l"(x + t * 4));
    """
    rows = traffic(body)
    assert [(row.kind, row.requests, row.cost, row.ideal) for row in rows] == [
        ("global read", 3, 48, 48), ("shared write", 3, 12, 12)
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["up", "random"])
def test_a_loop_entered_in_two_places_is_one_loop(order):
    body = """
    asm volatile("{ .reg .pred p; .reg .b64 a; .reg .b32 i; mov.u32 i, 0; setp.lt.s32 p, %1, 16; mov.u64 a, %0;\\n"
                 "@p bra MIDDLE;\\n TOP: add.u32 i, i, 1;\\n MIDDLE: st.global.u32 [a], i;\\n"
                 "add.u64 a, a, 128; setp.lt.u32 p, i, 5; @p bra TOP; }" :: "l"(y + t), "r"(t) : "memory");
    """
    (row,) = traffic(body, order=order)
    assert row.bytes == 4 * 16 * (6 + 5)
    assert row.cost <= 24


def test_traffic_prints_and_is_refused_where_it_is_not_known():
    rows = traffic("y[2 * t] = x[t];")
    assert str(rows).splitlines()[0].startswith("k.cu:3")
    assert "x 2.00" in str(rows)
    text = 'extern "C" __global__ void k() {}'
    with pytest.raises(ValueError, match="ptx"):
        Module(text, count_traffic=True)
    with pytest.raises(ValueError, match="after a launch"):
        Module(text, tier="ptx").traffic  # noqa: B018
