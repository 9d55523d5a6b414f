"""Two processes with two virtual devices each, started for real: the numbers of one process."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import two_processes
from cases import refuse

SCRIPT = pathlib.Path(two_processes.__file__)
DEADLINE = 600  # seconds, of which an idle machine needs 15: a process that waits for the other must not hang the suite


def launch(*arguments):
    # Compiled as the suite compiles; but each has devices of its own.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    started = [
        launch("--address", address, "--processes", 2, "--process", i, "--out", file) for i, file in enumerate(files)
    ]
    try:
        outputs = [process.communicate(timeout=DEADLINE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)

    with jax.numpy_dtype_promotion("standard"):
        expected = jax.tree.map(np.asarray, jax.jit(two_processes.run)(*two_processes.draw()))
    for file in files:
        results = np.load(file)
        assert set(results) == set(expected)
        for name, array in expected.items():  # float32, sums of some dozens of terms in another order
            np.testing.assert_allclose(results[name], array, atol=2e-5, err_msg=name)
    assert (expected["sparsemax"] == 0).any() and np.isfinite(expected["loss"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((None, 2, 0), ["address", "None", "127.0.0.1:1234"]), (("127.0.0.1:1234", 2, 2), ["process", "2", "0 to 1"])],
)
def test_a_start_that_cannot_work_is_refused(arguments, words):
    refuse(lambda: two_processes.start(*arguments), *words, error=ValueError)
