import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache, cache_key

ROWS = np.arange(50 * 6, dtype=np.float32).reshape(50, 2, 3)


class Builder:
    """Gives rows of ROWS, remembers which, and fails at a given row if told to."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, rows):
        if self.fail_at is not None and rows.stop > self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((rows.start, rows.stop))
        return ROWS[rows]


def test_an_array_is_built_once_and_read_only(tmp_path):
    cache, build = ArrayCache(tmp_path, "key", {"vae": "tiny"}), Builder()
    array = cache.get_or_build("latents", (50, 2, 3), np.float32, build, chunk=20)
    assert np.array_equal(array, ROWS) and build.calls == [(0, 20), (20, 40), (40, 50)]
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    again = Builder()
    assert np.array_equal(ArrayCache(tmp_path, "key").get_or_build("latents", (50, 2, 3), "float32", again), ROWS)
    assert again.calls == [] and cache.about() == {"vae": "tiny"}


def test_a_killed_build_goes_on_where_it_stopped(tmp_path):
    cache = ArrayCache(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build("latents", ROWS.shape, np.float32, Builder(fail_at=30), chunk=10)
    assert not cache.is_complete("latents") and cache.done("latents", ROWS.shape, np.float32) == 30
    with pytest.raises(LisaError, match="no complete array 'latents'"):
        cache.load("latents")
    build = Builder()
    assert np.array_equal(cache.get_or_build("latents", ROWS.shape, np.float32, build, chunk=10), ROWS)
    assert build.calls == [(30, 40), (40, 50)]
    assert cache.done("latents", ROWS.shape, np.float32) == 50


def test_a_row_cut_in_the_middle_is_made_again(tmp_path):
    cache = ArrayCache(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build("x", ROWS.shape, np.float32, Builder(fail_at=30), chunk=10)
    partial = next(cache.folder.glob("*.partial"))
    os.truncate(partial, partial.stat().st_size - 5)
    build = Builder()
    assert np.array_equal(cache.get_or_build("x", ROWS.shape, np.float32, build, chunk=10), ROWS)
    assert build.calls[0] == (29, 39)


def test_a_partial_array_of_another_shape_is_not_continued(tmp_path):
    cache = ArrayCache(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build("x", ROWS.shape, np.float32, Builder(fail_at=30), chunk=10)
    build = Builder()
    assert np.array_equal(cache.get_or_build("x", ROWS.shape, np.float64, build, chunk=50), ROWS)
    assert build.calls == [(0, 50)]


def test_arrays_that_are_computed_together(tmp_path):
    """One call per chunk gives rows of both; they go on from where the one that is further behind was left."""
    cache, calls = ArrayCache(tmp_path, "key"), []
    shapes = {"one": (ROWS.shape, np.float32), "two": ((50,), np.int64)}

    def build(rows, fail_at=None):
        if rows.stop == fail_at:
            raise KeyboardInterrupt
        calls.append((rows.start, rows.stop))
        return {"one": ROWS[rows], "two": np.arange(50)[rows]}

    assert cache.missing_bytes(shapes) == 50 * 24 + 50 * 8
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build_all(shapes, lambda rows: build(rows, fail_at=40), chunk=10)
    assert cache.missing_bytes(shapes) == 20 * 24 + 20 * 8
    partial = cache.folder / "two.npy.partial"
    os.truncate(partial, partial.stat().st_size - 7 * 8)
    calls.clear()
    both = cache.get_or_build_all(shapes, build, chunk=10)
    assert np.array_equal(both["one"], ROWS) and np.array_equal(both["two"], np.arange(50))
    assert calls[0] == (23, 33) and cache.missing_bytes(shapes) == 0
    (cache.folder / "two.npy").unlink()
    assert np.array_equal(cache.get_or_build_all(shapes, build)["two"], np.arange(50))


def test_types_shapes_and_empty_arrays(tmp_path):
    cache = ArrayCache(tmp_path, "key")
    half = cache.get_or_build("half", (5, 4), np.float16, lambda rows: np.ones((rows.stop - rows.start, 4)))
    assert half.dtype == np.float16 and half.shape == (5, 4)
    assert cache.get_or_build("flat", (5,), np.int64, lambda rows: np.arange(5)[rows]).tolist() == [0, 1, 2, 3, 4]
    assert cache.get_or_build("none", (0, 4), np.float32, Builder(0)).shape == (0, 4)
    with pytest.raises(LisaError, match=r"rows 0 to 5 of the cached array 'bad' came as \(5, 3\), expected \(5, 4\)"):
        cache.get_or_build("bad", (5, 4), np.float32, lambda rows: np.ones((5, 3)))
    with pytest.raises(LisaError, match="expected"):
        cache.get_or_build("half", (6, 4), np.float16, Builder())
    for name in ("", "a/b", ".hidden"):
        with pytest.raises(LisaError, match="cannot be a"):
            cache.load(name)
    with pytest.raises(LisaError, match="chunk is 0"):
        cache.get_or_build("x", (5, 4), np.float32, Builder(), chunk=0)


def test_a_damaged_array_is_named(tmp_path):
    cache = ArrayCache(tmp_path, "key")
    cache.get_or_build("x", ROWS.shape, np.float32, Builder())
    os.truncate(cache.folder / "x.npy", 200)
    with pytest.raises(LisaError, match=r"x.npy' cannot be read .*Delete"):
        cache.load("x")


def test_the_key_follows_what_it_is_made_from_and_nothing_else():
    key = cache_key(vae="a", size=(64, 64), images="f1")
    assert key == cache_key(images="f1", size=[64, 64], vae="a")
    assert (
        len({key, cache_key(vae="b", size=(64, 64), images="f1"), cache_key(vae="a", size=(64, 32), images="f1")}) == 3
    )


def test_a_full_disk_is_one_clear_message_and_the_build_can_go_on(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    script = f"""
import resource, signal, numpy as np
from lisa.common.errors import LisaError
from lisa.data.cache import ArrayCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    ArrayCache({str(tmp_path)!r}, "key").get_or_build("x", (100, 1024), "float32",
        lambda rows: np.repeat(np.arange(rows.start, rows.stop)[:, None], 1024, 1), chunk=8)
except LisaError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("no space left"), done.stderr
    starts = []

    def build(rows):
        starts.append(rows.start)
        return np.repeat(np.arange(rows.start, rows.stop)[:, None], 1024, 1)

    array = ArrayCache(tmp_path, "key").get_or_build("x", (100, 1024), "float32", build, chunk=8)
    assert np.array_equal(array[:, 5], np.arange(100)) and starts[0] >= 8


def test_who_comes_while_another_builds_waits_and_builds_nothing(tmp_path):
    """Two runs beside each other with one cache; two writers of one file would mix their rows."""
    began, go_on, second = threading.Event(), threading.Event(), Builder()

    def slowly(rows):
        began.set()
        assert go_on.wait(timeout=20)
        return ROWS[rows]

    def build(with_):
        return ArrayCache(tmp_path, "key").get_or_build("latents", ROWS.shape, np.float32, with_, chunk=10)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, slowly)
        assert began.wait(timeout=20)
        other = pool.submit(build, second)
        with pytest.raises(TimeoutError):
            other.result(timeout=0.3)
        go_on.set()
        assert np.array_equal(first.result(timeout=20), ROWS) and np.array_equal(other.result(timeout=20), ROWS)
    assert second.calls == []
