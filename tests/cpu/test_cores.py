"""How many threads a call may use: what the process was given, unless the settings say otherwise."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

import gpuconv
from gpuconv import cpu
from gpuconv.cpu import device, threads

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone has sets of cores")


@pytest.fixture(autouse=True)
def _counted_anew(monkeypatch):
    """Nothing is known from an earlier test, and no count of cores holds for longer than a moment."""
    monkeypatch.setattr(device, "FRESH", 0.0)
    monkeypatch.setattr(device, "_counted", (0.0, 1))
    kept = device._quota_files, threads._meant_by_openmp, threads._blas_counters
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(device, "cores_to_run_on", lambda: 8)
    monkeypatch.setattr(device, "_quota_files", lambda: ())
    monkeypatch.setattr(threads, "_left_by_blas", lambda: sys.maxsize)


def cores_in(program, **environment):
    """What a fresh process prints."""
    path = str(Path(gpuconv.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


class TestSettings:
    @pytest.mark.parametrize("count", [1, 3, 100])
    def test_the_settings_are_above_all(self, eight_cores, monkeypatch, count):
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        monkeypatch.setattr(gpuconv.settings, "threads", count)
        with threadpool_limits(1):
            assert cpu.workers() == count


class TestVariables:
    @pytest.mark.parametrize(
        ("text", "count"),
        [("3", 3), (" 5 ", 5), ("4,2", 4), ("64", 8), ("", 8), ("0", 8), ("-1", 8), ("many", 8), ("1e3", 8)],
    )
    def test_openmp_s(self, eight_cores, monkeypatch, text, count):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cpu.workers() == count
        assert cpu.cores() == 8

    @pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
    def test_in_a_process_of_its_own(self, name):
        assert cores_in("from gpuconv import cpu; print(cpu.workers())", **{name: "1"}) == ["1"]


@pytest.mark.skipif(not threads._blas().lib_controllers, reason="threadpoolctl does not know this BLAS")
class TestLimitsOfBlas:
    @pytest.fixture(autouse=True)
    def no_variables(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    @pytest.fixture
    def many(self, monkeypatch):
        """BLAS may have as many threads as there are cores, and there are at least two of both."""
        original = [library.num_threads for library in threads._blas().lib_controllers]
        with threadpool_limits(4, user_api="blas"):
            found = threads._blas().lib_controllers[0].num_threads
            if found == 1:
                pytest.skip("this BLAS has one thread")
            monkeypatch.setattr(device, "cores_to_run_on", lambda: found)
            monkeypatch.setattr(device, "_quota_files", lambda: ())
            threads._blas_counters()
            yield found
        assert [library.num_threads for library in threads._blas().lib_controllers] == original

    def test_a_limit_holds_while_it_is_there(self, many):
        assert cpu.workers() == many
        for _ in range(2):
            with threadpool_limits(1):
                assert cpu.workers() == 1
            assert cpu.workers() == many

    def test_a_limit_that_was_there_first(self, many):
        threads._blas_counters.cache_clear()
        with threadpool_limits(1):
            assert cpu.workers() == 1
        assert cpu.workers() == many

    def test_what_holds_blas_while_strips_run_is_no_limit(self, many):
        with threads._serial_blas:
            assert threads._blas().lib_controllers[0].num_threads == 1
            assert cpu.workers() == many
        with threadpool_limits(1), threads._serial_blas:
            assert cpu.workers() == 1

    def test_more_cores_than_blas_began_with(self, many, monkeypatch):
        monkeypatch.setattr(device, "cores_to_run_on", lambda: 4 * many)
        assert cpu.workers() == 4 * many

    def test_more_cores_than_blas_has_threads(self, many, monkeypatch):
        monkeypatch.setattr(threads, "MOST_OF_BLAS", many)
        monkeypatch.setattr(device, "cores_to_run_on", lambda: 4 * many)
        threads._blas_counters.cache_clear()
        assert cpu.workers() == 4 * many


class TestAffinity:
    @needs_affinity
    def test_cores_taken_away_and_given_back(self):
        before = os.sched_getaffinity(0)
        assert cpu.cores() <= len(before)
        try:
            os.sched_setaffinity(0, {min(before)})
            assert cpu.cores() == cpu.workers() == 1
        finally:
            os.sched_setaffinity(0, before)
        assert cpu.cores() == min(len(before), device._quota(device._quota_files()))

    @needs_affinity
    def test_cores_given_to_a_process_that_began_with_one(self):
        if len(os.sched_getaffinity(0)) < 2 or cpu.cores() < 2:
            pytest.skip("one core")
        program = (
            "import os, time; cores = os.sched_getaffinity(0); os.sched_setaffinity(0, {min(cores)})\n"
            "from gpuconv import cpu; from gpuconv.cpu import device\n"
            "print(cpu.workers()); os.sched_setaffinity(0, cores)\n"
            "time.sleep(2 * device.FRESH); print(cpu.workers() > 1)"
        )
        assert cores_in(program, OMP_NUM_THREADS="", OPENBLAS_NUM_THREADS="") == ["1", "True"]

    def test_a_count_holds_for_a_moment_and_costs_nothing_meanwhile(self, monkeypatch):
        now, counts = [100.0], []
        monkeypatch.setattr(device, "FRESH", 0.1)
        monkeypatch.setattr(device, "_counted", (0.0, 1))
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(device, "cores_to_run_on", lambda: counts.append(1) or len(counts))
        assert [cpu.cores() for _ in range(3)] == [1, 1, 1]
        now[0] += 0.11
        assert cpu.cores() == 2


class TestQuotas:
    @staticmethod
    def files(tmp_path, groups, **contents):
        """The files of control groups, with names that have / as __ and . as _."""
        for name, text in contents.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "groups").write_text(groups)
        return device._quota_files(tmp_path / "groups", tmp_path / "cgroup")

    @pytest.mark.parametrize(
        ("text", "count"),
        [
            ("200000 100000", 2),
            ("150000 100000", 2),
            ("100001 100000", 2),
            ("50000 100000", 1),
            ("1000 100000", 1),
            ("max 100000", sys.maxsize),
            ("", sys.maxsize),
            ("garbage", sys.maxsize),
            ("100000 0", sys.maxsize),
        ],
    )
    def test_version_2_rounds_up(self, tmp_path, text, count):
        files = self.files(tmp_path, "0::/\n", **{"cpu.max": text})
        assert device._quota(files) == count

    @pytest.mark.parametrize(("quota", "count"), [("250000", 3), ("-1", sys.maxsize), ("0", sys.maxsize)])
    @pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
    def test_version_1(self, tmp_path, quota, count, mount):
        contents = {f"{mount}/jobs/cpu.cfs_quota_us": quota, f"{mount}/jobs/cpu.cfs_period_us": "100000"}
        files = self.files(tmp_path, f"5:memory:/x\n4:{mount}:/jobs\n", **contents)
        assert device._quota(files) == count

    def test_the_tightest_of_the_groups_around_holds(self, tmp_path):
        contents = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "800000 100000"}
        assert device._quota(self.files(tmp_path, "0::/a/b/c\n", **contents)) == 3

    def test_in_a_container_the_path_may_be_the_host_s(self, tmp_path):
        contents = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
        assert device._quota(self.files(tmp_path, "4:cpu:/docker/0123\n", **contents)) == 1

    def test_a_quota_counts(self, tmp_path, monkeypatch):
        files = self.files(tmp_path, "0::/\n", **{"cpu.max": "250000 100000"})
        monkeypatch.setattr(device, "cores_to_run_on", lambda: 8)
        monkeypatch.setattr(threads, "_left_by_blas", lambda: sys.maxsize)
        monkeypatch.setattr(device, "_quota_files", lambda *_: files)
        assert cpu.cores() == cpu.workers() == 3
        files[0].write_text("max 100000")
        assert cpu.cores() == 8

    def test_a_file_that_goes_limits_nothing(self, tmp_path):
        (file,) = self.files(tmp_path, "0::/\n", **{"cpu.max": "100000 100000"})
        file.unlink()
        assert device._quota([file]) == sys.maxsize

    def test_no_control_groups(self, tmp_path):
        assert device._quota_files(tmp_path / "nothing", tmp_path) == ()
