"""A strict session: 8 virtual CPU devices, 64-bit, no silent promotion of dtypes or ranks.

Warnings are errors through `filterwarnings` in pyproject.toml. XLA_FLAGS must be set before JAX starts. Compilation is
nearly all of the suite's cost, so XLA's back end does not optimise here, and takes its quicker code generator where it
still has two, unless XLA_FLAGS says otherwise: `XLA_FLAGS=--xla_backend_optimization_level=3 pytest` compiles as users
do. CI runs the accuracy tests that way too.
"""

import os

import jaxlib

_flags = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in _flags:
    _flags += " --xla_backend_optimization_level=0"
    if tuple(map(int, jaxlib.__version__.split(".")[:2])) <= (0, 10):  # an unknown flag ends the process
        _flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on each machine and in each run; compilation makes first examples slow, so no deadline.
hypothesis.settings.register_profile(
    "smoothmax",
    derandomize=True,
    deadline=None,
    max_examples=25,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("smoothmax")


def pytest_collection_modifyitems(items):
    """With `--dist loadgroup`, all tests of a family run in one worker: each family compiles once."""
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        if hasattr(case, "family"):
            item.add_marker(pytest.mark.xdist_group(f"{case.family}"))


_MAPS = "/proc/self/maps"


def pytest_runtest_teardown(item):
    """Every compiled program maps memory, of which Linux allows a process 65,530 pieces: XLA crashes beyond."""
    pytest_runtest_teardown.count = getattr(pytest_runtest_teardown, "count", 0) + 1
    if pytest_runtest_teardown.count % 10 == 0 and os.path.exists(_MAPS):
        with open(_MAPS) as maps:
            if sum(1 for _ in maps) > 35_000:
                jax.clear_caches()


@pytest.fixture
def no_x64():
    """JAX as most users run it: without 64-bit types and with the standard promotion rules."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="session")
def mesh():
    """The 8 virtual devices on one axis."""
    assert jax.device_count() == 8
    return jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
