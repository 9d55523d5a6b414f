"""One of several functions, by the platform for which a program is compiled in the end.

`lax.platform_dependent` traces all of them, and that takes most of the time where a kernel serves. Here the one for the
devices in use is traced at once, and another only when a program is lowered for its platform, as by `jax.export`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

# Those that kernels are made for; "default" stands for all others.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu", "default")


@dataclasses.dataclass(frozen=True, eq=False)
class _Choice:
    """Functions of flat arguments with flat results.

    Attributes:
      functions: what to call on each platform, or None where there is nothing to call.
      traced_for: the platforms whose function was traced.
      mesh: the one in use when the choice was made; by it functions know their devices.
      x64: whether there were numbers of 64 bits.
    """

    functions: dict[str, Callable[..., Any] | None]
    traced_for: tuple[str, ...]
    mesh: Any
    x64: bool

    def function(self, platform: str, traced: ClosedJaxpr) -> Callable[..., Any]:
        """The one of the platform."""
        if platform in self.traced_for:
            return jaxpr_as_fun(traced)
        function = self.functions[platform]
        if function is None:
            raise NotImplementedError(
                f"the named implementation cannot serve on the platform {platform!r}, for which the program is "
                "compiled. Use implementation='xla', which serves everything, or None, which takes the best that serves"
            )

        def in_place(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh), jax.enable_x64(self.x64):
                return function(*args)

        return in_place

    def batched(self, axes: tuple[Any, ...]) -> _Choice:
        """The same among functions of arguments with another axis."""
        functions = {platform: function and jax.vmap(function, axes) for platform, function in self.functions.items()}
        return dataclasses.replace(self, functions=functions)

    def __repr__(self) -> str:  # in a printed program
        return f"traced for {', '.join(self.traced_for)}"


def by_platform(functions: dict[str, Callable[..., Any]], here: tuple[str, ...], *args: Any) -> Any:
    """Calls the function of the platform for which the program is compiled.

    Args:
      functions: by the names of platforms; "default" is for those that are not named. All return the same structure,
        shapes and dtypes. They refer to no value of a trace but their arguments.
      here: the names of the platform of the devices in use. The function of the first that has one is traced.
      *args: pytrees of arrays.
    """
    flat, tree = jax.tree.flatten(args)
    forms = []  # of the results

    def flattened(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*flat: Any) -> Any:
            leaves, structure = jax.tree.flatten(function(*tree.unflatten(flat)))
            forms.append((structure, [f"{leaf.dtype}{leaf.shape}" for leaf in map(jnp.asarray, leaves)]))
            if forms[-1] != forms[0]:
                raise TypeError(f"functions of several platforms must return the same, got {forms[0]} and {forms[-1]}")
            return leaves

        return call

    own = {platform: functions.get(platform, functions.get("default")) for platform in PLATFORMS}
    local: Any = next((functions[platform] for platform in here if platform in functions), own["default"])
    traced = jax.make_jaxpr(flattened(local))(*flat)
    choice = _Choice(
        functions={platform: function and flattened(function) for platform, function in own.items()},
        traced_for=tuple(platform for platform, function in own.items() if function is local),
        mesh=jax.sharding.get_abstract_mesh(),
        x64=jax.dtypes.canonicalize_dtype(float).itemsize == 8,
    )
    return forms[0][0].unflatten(_choice_p.bind(*flat, traced=traced, choice=choice))


_choice_p = Primitive("by_platform")
_choice_p.multiple_results = True


@_choice_p.def_effectful_abstract_eval
def _(*_: Any, traced: ClosedJaxpr, choice: _Choice) -> Any:
    return traced.out_avals, traced.effects


@_choice_p.def_impl
def _(*args: Any, **params: Any) -> Any:
    with jax.disable_jit(False):  # a program is what has a platform
        return _at_once(*args, **params)


_at_once = jax.jit(_choice_p.bind, static_argnames=("traced", "choice"))


def _batched(args: Any, axes: Any, *, traced: ClosedJaxpr, choice: _Choice) -> Any:
    traced = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(traced), axes))(*args)
    results = _choice_p.bind(*args, traced=traced, choice=choice.batched(tuple(axes)))
    return results, [0] * len(results)


batching.primitive_batchers[_choice_p] = _batched


def _lowered_for(platform: str) -> Callable[..., Any]:
    def lower(context: Any, *args: Any, traced: ClosedJaxpr, choice: _Choice) -> Any:
        return mlir.lower_fun(choice.function(platform, traced))(context, *args)

    return lower


for _platform in PLATFORMS:
    mlir.register_lowering(_choice_p, _lowered_for(_platform), platform=None if _platform == "default" else _platform)
