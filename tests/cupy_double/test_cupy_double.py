"""The double of CuPy is honest: no name more than the real one has, and it refuses what the real one refuses."""

import importlib.util
import inspect
import json
import subprocess
import sys

import cupy_double
import ml_dtypes
import numpy as np
import pytest
from cupy_double import Hazard, Transfer, list_names, names

UNSUPPORTED = r"Unsupported type <class 'numpy\.ndarray'>"


@pytest.fixture
def cupy(double):
    return double


@pytest.fixture
def x(cupy):
    return cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


def modules():
    return {owner: module for owner, module in cupy_double._modules.items() if owner in names.NAMES}


class TestNames:
    @pytest.mark.parametrize("owner", modules())
    def test_nothing_is_offered_that_cupy_lacks(self, owner):
        offered = {name for name in vars(modules()[owner]) if not name.startswith("_")}
        assert offered <= names.NAMES[owner].keys()

    @pytest.mark.parametrize("owner", modules())
    def test_no_function_takes_what_its_original_does_not(self, owner):
        for name, thing in vars(modules()[owner]).items():
            real = names.NAMES[owner].get(name, {}).get("takes")
            if real is None or not inspect.isfunction(thing):
                continue
            allowed = {parameter.lstrip("*") for parameter in real}
            ours = inspect.signature(thing).parameters
            assert ours.keys() <= allowed, name

    @pytest.mark.parametrize(
        ("owner", "held"),
        [
            ("cupy.ndarray", lambda cupy: cupy.ndarray),
            ("cupy.ufunc", lambda cupy: cupy.ufunc),
            ("cupy.RawModule", lambda cupy: cupy.RawModule),
            ("cupy.RawKernel", lambda cupy: cupy.RawKernel),
            ("cupy.cuda.Device", lambda cupy: cupy.cuda.Device),
            ("cupy.cuda.Event", lambda cupy: cupy.cuda.Event),
            ("cupy.cuda.Memory", lambda cupy: cupy.cuda.Memory),
            ("cupy.cuda.MemoryPointer", lambda cupy: cupy.cuda.MemoryPointer),
            ("cupy.cuda.MemoryPool", lambda cupy: cupy.cuda.MemoryPool),
            ("cupy.cuda.MemoryHook", lambda cupy: cupy.cuda.MemoryHook),
        ],
    )
    def test_classes_offer_no_more_either(self, cupy, owner, held):
        ours = {name: thing for name, thing in vars(held(cupy)).items() if not name.startswith("_")}
        real = names.NAMES[owner]
        assert ours.keys() <= real.keys()
        for name, thing in ours.items():
            if "takes" in real[name] and inspect.isfunction(thing):
                allowed = {parameter.lstrip("*") for parameter in real[name]["takes"]}
                given = {p.name for p in inspect.signature(thing).parameters.values() if p.kind not in {2, 4}}
                assert given <= allowed, name

    def test_a_name_that_cupy_lacks(self, cupy):
        with pytest.raises(AttributeError, match=r"'cupy' has no attribute 'hypothesis' in CuPy 14\.2\.0 and 13\.6\.0"):
            _ = cupy.hypothesis
        with pytest.raises(AttributeError, match="CUDA_R_16BF"):  # CuPy 14 has it, 13 does not
            _ = cupy.cuda.runtime.CUDA_R_16BF

    def test_a_name_that_nobody_has_written(self, cupy):
        with pytest.raises(NotImplementedError, match=r"cupy\.kaiser is there in CuPy"):
            cupy.kaiser(3)

    def test_a_keyword_that_cupy_lacks(self, cupy, x):
        with pytest.raises(TypeError, match="initial"):
            cupy.sum(x, initial=1)
        with pytest.raises(TypeError, match="out"):
            cupy.einsum("ij->i", x, out=cupy.empty(2))
        with pytest.raises(TypeError, match="where"):
            cupy.add(x, x, where=x > 0)
        with pytest.raises(TypeError, match="mode"):
            cupy.take(x, 0, mode="wrap")

    def test_the_list_is_that_of_the_installed_cupy(self):
        """Where CuPy is installed: whatever the list has, it has too. A driver is not needed."""
        if importlib.util.find_spec("cupy") is None:
            pytest.skip("CuPy is not installed")
        command = [sys.executable, list_names.__file__, "dump"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"CuPy cannot be listed here: {done.stderr.strip().splitlines()[-1]}")
        real = json.loads(done.stdout)["names"]
        for owner, listed in names.NAMES.items():
            assert listed.keys() <= real[owner].keys(), owner

    def test_what_two_versions_have_in_common(self):
        one = {"cupy": "2", "names": {"m": {"f": {"takes": ["a", "b", "*", "c"]}, "g": {}, "N": {"value": 1}}}}
        two = {"cupy": "1", "names": {"m": {"f": {"takes": ["a", "*", "c"]}, "N": {"value": 2}}}}
        assert list_names.merge([one, two])["names"] == {"m": {"f": {"takes": ["a", "*", "c"]}, "N": {}}}
        two["names"]["m"]["f"]["takes"] = ["a", "**kwargs"]
        assert list_names.merge([one, two])["names"]["m"]["f"] == {"takes": ["a", "b", "*", "c"]}

    def test_it_is_there_only_while_installed(self):
        before = sys.modules.get("cupy")
        with cupy_double.installed() as cupy:
            import cupy as imported

            assert imported is cupy
            assert importlib.util.find_spec("cupy") is not None
            with pytest.raises(ModuleNotFoundError):
                import cupy.testing
        assert sys.modules.get("cupy") is before


class TestNumPyIsKeptOut:
    @pytest.mark.parametrize(
        "mix",
        [
            lambda x, a: x + a,
            lambda x, a: a + x,
            lambda x, a: x < a,
            lambda x, a: x @ a.T,
            lambda x, a: a.__iadd__(x),
            lambda x, a: x.__imul__(a),
            np.add,
            lambda x, a: np.add(x, x, out=a),
            lambda x, a: np.concatenate([x, a]),
            lambda x, a: np.copyto(a, x),
            lambda x, a: np.where(a > 0, x, x),
        ],
    )
    def test_two_libraries_do_not_mix(self, x, mix):
        with pytest.raises(TypeError, match=UNSUPPORTED):
            mix(x, np.ones((2, 3), np.float32))

    @pytest.mark.parametrize("mix", [lambda cupy, x, a: cupy.maximum(x, a), lambda cupy, x, a: cupy.add(x, x, out=a)])
    def test_nor_in_functions(self, cupy, x, mix):
        with pytest.raises(TypeError, match=UNSUPPORTED):
            mix(cupy, x, np.ones((2, 3), np.float32))

    @pytest.mark.parametrize("convert", [np.asarray, lambda x: np.ones((2, 3)).__setitem__(..., x)])
    def test_no_conversion_unasked(self, x, convert):
        with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed\. Please use `.get"):
            convert(x)

    def test_no_assignment_from_the_host(self, x):
        with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
            x[...] = np.ones((2, 3), np.float32)

    def test_numbers_are_welcome(self, x):
        assert ((x + 1) * np.float32(2) - 1.5).dtype == np.float32
        assert (x + np.float64(1)).dtype == np.float64
        x[0] = np.int64(7)
        assert x.get()[0].tolist() == [7, 7, 7]

    def test_numpys_functions_come_back_with_device_arrays(self, cupy, x):
        for made in (np.sum(x), np.exp(x), np.concatenate([x, x]), np.add.reduce(x), np.moveaxis(x, 0, 1)):
            assert type(made) is cupy.ndarray
        with pytest.raises(TypeError, match="no implementation found"):
            np.trapezoid(x)
        with pytest.raises(NotImplementedError, match="convolve"):
            np.convolve(x[0], x[0])

    def test_cupys_functions_take_no_numpy_array(self, cupy):
        for function in (cupy.sum, cupy.ascontiguousarray, cupy.transpose):
            with pytest.raises(TypeError, match=UNSUPPORTED):
                function(np.ones((2, 3)))


class TestArrays:
    def test_a_sum_is_an_array(self, cupy, x):
        assert type(x.sum()) is cupy.ndarray
        assert x.sum().shape == x[0, 0].shape == ()

    def test_views_share_memory_and_know_their_base(self, cupy, x):
        y = x.reshape(3, 2).T[1]
        y[...] = -1
        assert x.get().tolist() == [[0, -1, 2], [-1, 4, -1]]
        assert y.base is x
        assert cupy.may_share_memory(x, y)
        assert not cupy.may_share_memory(x, x.copy())
        assert x.flags.owndata
        assert not y.flags.owndata

    def test_of_memory_that_is_lent_cupy_sees_no_overlap(self, cupy, x):
        """Each array from elsewhere has a memory of its own, and CuPy compares where those begin."""

        class Tensor:
            __cuda_array_interface__ = x[1:].__cuda_array_interface__

        for part in (cupy.from_dlpack(x[1:]), cupy.asarray(Tensor())):
            assert not cupy.may_share_memory(x, part)
            assert not cupy.shares_memory(part, x)
            assert cupy.may_share_memory(part, part.T)
            assert cupy.may_share_memory(x, cupy.from_dlpack(x))
            part += 1
            assert part.data.ptr == x[1:].data.ptr
        assert x.get().tolist() == [[0, 1, 2], [5, 6, 7]]
        assert cupy.from_dlpack(x.T).strides == x.T.strides
        assert cupy.from_dlpack(x[:0]).shape == (0, 3)

    def test_flags_have_no_writeable(self, x):
        assert x.flags.c_contiguous
        assert x.T.flags.f_contiguous
        with pytest.raises(AttributeError, match="writeable"):
            _ = x.flags.writeable

    def test_there_is_no_index_and_no_hash(self, x):
        with pytest.raises(TypeError, match="interpreted as an integer"):
            range(x.sum())
        with pytest.raises(TypeError, match="unhashable"):
            hash(x)
        with pytest.raises(ValueError, match="ambiguous"):
            bool(x)

    def test_bytes_are_swapped_on_the_way_and_odd_dtypes_refused(self, cupy):
        assert cupy.asarray(np.ones(2, ">f4")).dtype == np.dtype("<f4")
        with pytest.raises(ValueError, match="Unsupported dtype"):
            cupy.asarray(np.ones(2, np.longdouble))
        with pytest.raises(ValueError, match="Unsupported dtype"):
            cupy.asarray(np.array(["a"]))

    def test_bfloat16(self, cupy):
        a = cupy.asarray(np.arange(4).astype(ml_dtypes.bfloat16).reshape(2, 2))
        assert (a + a).dtype == (a @ a).dtype == ml_dtypes.bfloat16
        with pytest.raises(TypeError, match="no stacks of bfloat16"):
            cupy.matmul(a[None], a[None])

    def test_casts_are_not_silent(self, cupy, x):
        with pytest.raises(TypeError, match="casting is not supported"):
            x.astype(np.float64, casting="safe")
        with pytest.raises(TypeError, match="same_kind"):
            cupy.copyto(cupy.zeros((2, 3), np.int32), x)
        with pytest.raises(TypeError, match="same_kind"):
            cupy.add(x, x, out=cupy.zeros((2, 3), np.int32))

    def test_indices_come_around(self, cupy, x):
        assert x[:, cupy.asarray([4, -1])].get().tolist() == [[1, 2], [4, 5]]
        assert cupy.take(x, cupy.asarray([3]), axis=0).get().tolist() == [[3, 4, 5]]
        with pytest.raises(IndexError):
            x[2]

    def test_a_repeated_index_may_not_be_assigned(self, cupy, x):
        with pytest.raises(Hazard, match="occurs twice"):
            x[0, cupy.asarray([1, 1])] = cupy.asarray(np.ones(2, np.float32))
        x[0, cupy.asarray([1, 1])] = 5

    def test_add_at_takes_the_dtypes_that_are_added_atomically(self, cupy):
        with pytest.raises(TypeError, match=r"cupy\.add\.at only supports .*not complex64"):
            cupy.add.at(cupy.zeros(3, np.complex64), cupy.asarray([0]), 1)
        a = cupy.zeros(3, np.float32)
        cupy.add.at(a, cupy.asarray([0, 0, 2]), cupy.ones(3, np.float32))
        assert a.get().tolist() == [2, 0, 1]

    def test_strides_reach_only_their_allocation(self, cupy, x):
        assert cupy.lib.stride_tricks.as_strided(x[1, 2:], (2, 2), (-12, -4)).get().tolist() == [[5, 4], [2, 1]]
        with pytest.raises((ValueError, TypeError)):
            cupy.lib.stride_tricks.as_strided(x, (7,), (4,))

    def test_new_memory_holds_no_zeros(self, cupy):
        for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.complex128):
            assert np.isnan(cupy.empty((2, 3), dtype).get()).all()
        assert (cupy.empty(3, np.int32).get() == -1).all()

    def test_out_of_place_order(self, cupy, x):
        assert cupy.empty_like(x.T).flags.f_contiguous
        assert (x.T + 1).flags.f_contiguous
        assert cupy.ascontiguousarray(x.T).flags.c_contiguous


class TestTransfers:
    def test_each_is_counted(self, cupy, x):
        before = dict(cupy_double.counts)
        float(x.sum())
        cupy.asarray(np.ones(3))
        cupy.asarray(1.0)  # a single number travels with the kernel
        found = {kind: count - before.get(kind, 0) for kind, count in cupy_double.counts.items()}
        assert found == {"to host": 1, "synchronisations": 1, "to device": 1, **dict.fromkeys(set(found) - {
            "to host", "synchronisations", "to device"}, 0)}  # fmt: skip

    @pytest.mark.parametrize(
        "cross",
        [
            lambda cupy, x: x.get(),
            lambda cupy, x: bool(x[0, 0]),
            lambda cupy, x: x[x > 1],
            lambda cupy, x: cupy.nonzero(x),
            lambda cupy, x: x[[0, 1]],
            lambda cupy, x: x[np.arange(2)],
            lambda cupy, x: cupy.asarray(np.ones(3)),
            lambda cupy, x: cupy.array([1, 2]),
            lambda cupy, x: repr(x),
            lambda cupy, x: cupy.cuda.Device().synchronize(),
            lambda cupy, x: cupy.cuda.get_current_stream().synchronize(),
        ],
    )
    def test_none_where_none_may_be(self, cupy, x, cross):
        with cupy_double.no_transfers(), pytest.raises(Transfer, match="a part of a test that forbids it"):
            cross(cupy, x)

    def test_what_stays_on_the_device_is_free(self, cupy, x):
        with cupy_double.no_transfers():
            y = cupy.zeros((2, 3), np.float32)
            y[...] = x[::-1]
            cupy.copyto(y, (x @ x.T).sum(axis=0).max() + cupy.arange(3, dtype=np.float32))
