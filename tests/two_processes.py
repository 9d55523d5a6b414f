"""Mappings, attention and a step of training, split over the devices of several processes. `docs/distribution.md`.

    python two_processes.py --address 127.0.0.1:1234 --processes 2 --process 0 --out first.npz &
    python two_processes.py --address 127.0.0.1:1234 --processes 2 --process 1 --out second.npz

Every process runs the same program. Each gives its share of the batch and gets the same results, those of one process.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import smoothmax as sm

B, T, N, H, V = 8, 6, 4, 8, 16  # batch, length, heads, head size, words


def start(address: str | None, processes: int, process: int) -> None:
    """Joins the processes, each with two virtual devices; call it before anything that touches a device."""
    if not 0 <= process < processes:
        raise ValueError(f"process must be from 0 to {processes - 1}, got {process}: give each process a number")
    if processes > 1 and address is None:
        raise ValueError(
            f"address must be the host and port of process 0, got None for {processes} processes: give every process "
            "the same one, for example 127.0.0.1:1234"
        )
    jax.config.update("jax_num_cpu_devices", 2)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # how CPUs talk; GPUs and TPUs have their own
        jax.distributed.initialize(address, num_processes=processes, process_id=process)


def draw() -> tuple[dict[str, jax.Array], np.ndarray, np.ndarray]:
    """Parameters, features (B, T, N * H) and labels (B, T): the same in every process, as all have one seed."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    params = {
        "in": normal(N * H, 3, N, H) / 4,
        "out": normal(N, H, V) / 4,
        "alpha": np.linspace(-1, 1, N, dtype=np.float32),
    }
    return jax.tree.map(jnp.asarray, params), normal(B, T, N * H), rng.integers(0, V, size=(B, T))


def attend(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    query, key, value = jnp.moveaxis(jnp.einsum("btd,dcnh->btcnh", x, params["in"]), 2, 0)
    alpha = sm.bounded(params["alpha"], 1.0, 2.0)[:, None, None]
    return sm.dot_product_attention(query, key, value, mapping=sm.conjugate(sm.Tsallis(alpha)), is_causal=True)


def step(params: dict[str, jax.Array], x: jax.Array, labels: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """One step of gradient descent on a sparse loss: the new parameters and the loss."""

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        logits = jnp.einsum("btnh,nhv->btv", attend(params, x), params["out"])
        return jnp.mean(sm.fenchel_young_loss_with_integer_labels(logits, labels, sm.SquaredL2()))

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value


def run(params: dict[str, jax.Array], x: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    new, loss = step(params, x, labels)
    return {
        "sparsemax": sm.sparsemax(x),
        "fusedmax": sm.fusedmax(x, lam=0.2),
        "attention": attend(params, x),
        "loss": loss,
        **{f"new_{name}": array for name, array in new.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", help="host and port of process 0, the same for all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0, help="which one this is, from 0")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    try:
        start(options.address, options.processes, options.process)
    except ValueError as error:
        parser.error(str(error))

    # Batch over the processes, heads over the devices of each.
    mesh = jax.make_mesh((options.processes, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda *names: NamedSharding(mesh, PartitionSpec(*names))
    params, x, labels = draw()
    by_heads = {"in": place(None, None, "model"), "out": place("model"), "alpha": place("model")}
    params = jax.tree.map(jax.device_put, params, by_heads)
    mine = slice(options.process * B // options.processes, (options.process + 1) * B // options.processes)
    x, labels = (jax.make_array_from_process_local_data(place("data"), array[mine]) for array in (x, labels))
    assert len(x.sharding.device_set) == 2 * options.processes

    results = jax.jit(run, out_shardings=place())(params, x, labels)  # to every process, so that each can write them
    np.savez(options.out, **jax.tree.map(np.asarray, results))


if __name__ == "__main__":
    main()
