"""Settings of every test run: nothing leaves the machine, nothing is left in the user's cache folder."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# `ci` takes minutes, `deep` hours: HYPOTHESIS_PROFILE=deep, or pytest --hypothesis-profile=deep
settings.register_profile("ci", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.register_profile("deep", settings.get_profile("ci"), derandomize=False, max_examples=10_000)
# `first`: that an example fails is enough, whichever it is (trust/mutants.py)
settings.register_profile("first", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder():
    """Latencies measured by one run must not be another's, nor what one test planned another test's."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        patch.delenv("RECONV_CACHE", raising=False)
        patch.setattr("reconv.planning.remembered.ENABLED", False)
        yield


@pytest.fixture(scope="session", autouse=True)
def builtins_stay():
    """torch.jit knows its operators by id() and holds none: where one is gone, any value may have its id by chance."""
    from torch.jit import _builtins

    held, register = [], _builtins._register_builtin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_builtins, "_register_builtin", lambda fn, op: held.append(fn) or register(fn, op))
        yield


@pytest.fixture
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_alone(monkeypatch):
    """As on a processor where nothing was measured: PyTorch computes, but for the direct kernel."""
    from reconv.ops import convolve, results, ways

    def forget():
        ways.forget()
        for cache in (results._rows, convolve._first, convolve._pair):
            cache.cache_clear()

    monkeypatch.setattr(results, "table", lambda isa: {})
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with net.py and some configurations."""
    from commanded import SOURCE

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras in float64, which leaves nothing in the user's home. On PyTorch, since on JAX each small step compiles."""
    from importlib import import_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = import_module("keras")
        module.config.set_floatx("float64")
        return module


@pytest.fixture
def known_machine(monkeypatch):
    """Limits that need no measuring: 1 GMAC/s and 1 GB/s."""
    from reconv.benching import roofline

    limits = {dtype: 1e9 for dtype in ("float32", "float64", "bfloat16")}
    known = roofline.Machine(1, limits, (1e9,) * len(roofline.SIZES))
    monkeypatch.setattr(roofline, "measured", lambda threads: known)
    monkeypatch.setattr("reconv.benching.report.measured", lambda threads: known)
