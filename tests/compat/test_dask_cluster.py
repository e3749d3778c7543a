"""`gpuconv.dask` on a cluster of two processes: an image in a Zarr store that is 20 times as large as their limit.

The processes are real, and so is what is measured: the most memory that each of them holds.
"""

import sys

import numpy as np
import pytest
from peaks import most_of_process, watch_process

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
pytest.importorskip("zarr")

import gpuconv  # noqa: E402
import gpuconv.dask as ours  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")

CHUNKS, SIZES = (320, 2), (256, 512)
"""The number of chunks down and across, and the size of one: 512 KiB in float32."""

LIMIT = 2**24
"""Bytes that a process may hold beside what Dask notes of each chunk. Some rows of chunks, with the copies that Zarr
and a convolution need of a few, took 9.5 to 12.2 million for 280 rows, and 20 million where margins kept their chunks
alive (2 busy cores of a Xeon, 2026-12-01, Dask 2026.8.0)."""


def image_of(sizes):
    """An image in whole numbers of 0 to 8, in chunks of these sizes."""
    down, across = (da.arange(count * size, chunks=size) for count, size in zip(CHUNKS, sizes, strict=True))
    return ((down % 5)[None, :, None, None] * (across % 3)[None, None, :, None]).astype("float32")


def test_an_image_20_times_the_limit_goes_through_a_cluster(tmp_path):
    w = np.arange(9, dtype="float32").reshape(3, 3, 1, 1)
    keywords = {"pad": "same", "pad_mode": "reflect", "algorithm": "direct"}
    processes = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}

    image = image_of(SIZES)
    assert image.nbytes == 20 * LIMIT
    image.to_zarr(tmp_path / "large")
    image_of((4, 4)).to_zarr(tmp_path / "small")

    def convolve(name):
        """Convolve an image from one Zarr store to another; the bytes that each process held meanwhile, at most."""
        before = client.run(watch_process)
        ours.conv2d(da.from_zarr(tmp_path / name), w, **keywords).to_zarr(tmp_path / f"convolved {name}")
        return [most - before[worker] for worker, most in client.run(most_of_process).items()]

    with distributed.LocalCluster(**processes) as cluster, distributed.Client(cluster) as client:
        convolve("small")  # imports, compiles, and makes room for what Dask notes of each chunk
        held = convolve("large")
    assert len(held) == 2
    assert all(0 < most < LIMIT for most in held), f"{held} bytes, of {LIMIT}"

    end = image[:, -300:].compute(scheduler="synchronous")
    found = da.from_zarr(tmp_path / "convolved large")[:, -299:].compute(scheduler="synchronous")
    np.testing.assert_array_equal(found, gpuconv.conv2d(end, w, **keywords)[:, 1:])
