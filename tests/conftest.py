"""A strict session: 64-bit, no silent promotion of dtypes or ranks. Its tests come in two halves:

    pytest -m "not as_users"    8 virtual CPU devices; XLA does not optimise, for compilation is nearly all of the cost
    pytest -m as_users          laws that compilers could break, compiled as users compile, on one device as most have

`pytest` alone compiles all of them in the first way. What XLA_FLAGS says already is left as it is; warnings are errors
through `filterwarnings` in pyproject.toml.
"""

import atexit
import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
import quick

if "PYTEST_XDIST_WORKER" in os.environ:  # at its end a worker has told all, and programs are slow to take apart
    atexit.register(os._exit, 0)

# Traces are many small objects, few of them in cycles: searched at each 700 of them, they cost a twentieth of the time.
gc.set_threshold(200_000, 20, 50)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# "short": the same few examples on each machine and in each run. "long" draws afresh, and prints how to repeat what it
# finds: `pytest --hypothesis-profile=long tests/test_fuzz.py`. Compilation makes first examples slow, so no deadline.
_common = hypothesis.settings(deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("short", _common, derandomize=True, max_examples=4)
hypothesis.settings.register_profile("long", _common, derandomize=False, max_examples=200, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# Laws that compilers could break, by file or by name: what they reorder, contract and vectorise is different as users
# compile. Losses and forward mode are made of the same products, and would compile for as long again.
AS_USERS = {
    "test_accuracy",
    "test_gradients",
    "test_jacobian",
    "test_masking",
    "test_nonfinite",
    "test_second_order::test_grad_of_grad",
    "test_second_order::test_gradients_of_the_value_move_as_the_weights_do",
    "test_ties",
}


def _as_users(config):
    return config.option.markexpr == "as_users"


def pytest_configure(config):
    """Before JAX starts, which reads XLA_FLAGS then."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not _as_users(config) and "xla_backend_optimization_level" not in flags:
        flags += f" {quick.FLAGS}"
    if "xla_force_host_platform_device_count" not in flags:
        flags += f" --xla_force_host_platform_device_count={1 if _as_users(config) else 8}"
    os.environ["XLA_FLAGS"] = flags.strip()


def pytest_ignore_collect(collection_path, config):
    """The second half is in a few files, and to import the others takes a while."""
    files = {law.partition("::")[0] for law in AS_USERS}
    if _as_users(config) and collection_path.name.startswith("test_") and collection_path.stem not in files:
        return True


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """With `--dist loadgroup`, all tests of a family run in one worker, and so do all of one function, or what a file
    puts together: what they share is compiled once. `as_users` marks the laws of AS_USERS at the representatives."""
    from cases import REPRESENTATIVES

    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        family = getattr(case, "family", None)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(family or item.nodeid.partition("[")[0])))
        names = {item.module.__name__, f"{item.module.__name__}::{item.originalname}"}
        if names & AS_USERS and family and case in REPRESENTATIVES:
            item.add_marker("as_users")


def pytest_sessionfinish():
    """What a session leaves is large, and pytest would search it five times more before it ends."""
    gc.freeze()


_MAPS = "/proc/self/maps"


def pytest_runtest_teardown(item):
    """Every compiled program maps memory, of which Linux allows a process 65,530 pieces: XLA crashes beyond."""
    pytest_runtest_teardown.count = getattr(pytest_runtest_teardown, "count", 0) + 1
    if pytest_runtest_teardown.count % 25 == 0 and os.path.exists(_MAPS):
        with open(_MAPS) as maps:
            if sum(1 for _ in maps) > 45_000:  # the largest test takes 800
                jax.clear_caches()


@pytest.fixture
def no_x64():
    """JAX as most users run it: without 64-bit types and with the standard promotion rules."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def of_this_test():
    """Objects from before, of which there can be millions, are left out when garbage or leaks are looked for."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def mesh():
    """The 8 virtual devices on one axis."""
    assert jax.device_count() == 8
    return jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
