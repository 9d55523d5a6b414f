"""The networks: recurrent encoders, attention over the source with any mapping, two heads.

Shapes: B batch, S source length, T target length (1 for the query of a hypothesis), H hidden size,
V vocabulary size. Both networks map a batch to answers' logits (B, ..., classes) and to attention
weights (B, T, S).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

import smoothmax as sm

from .data import END, LABELS, PAD

# Every hyper-parameter with the range in which it can be learned, and the mappings with their defaults.
BOUNDS = {"gamma": (0.05, 5.0), "alpha": (1.0, 2.5), "p": (1.05, 2.0), "lam": (0.0, 2.0)}
MAPPINGS = {
    "softmax": {"gamma": 1.0},
    "sparsemax": {"gamma": 1.0},
    "entmax": {"alpha": 1.5, "gamma": 1.0},
    "pnormmax": {"p": 1.5, "gamma": 1.0},
    "fusedmax": {"lam": 0.1, "gamma": 1.0},
    "oscarmax": {"lam": 0.01, "gamma": 1.0},
}


WORDS = nn.initializers.normal(0.5)  # flax's default is much smaller, and learning starts later


@dataclasses.dataclass(frozen=True)
class Choice:
    """A mapping by name with its hyper-parameters; those named in `learn` are trained from these values."""

    name: str
    values: tuple[tuple[str, float], ...]
    learn: tuple[str, ...] = ()

    @classmethod
    def make(cls, name: str, given: dict[str, float | None], learn: list[str] | None = None) -> Choice:
        """`learn` is None for nothing, [] for the mapping's own hyper-parameter, or a list of names."""
        own = MAPPINGS[name]
        for key in [key for key, value in given.items() if value is not None] + list(learn or ()):
            if key not in own:
                raise ValueError(f"{name} has no {key}; it takes {' and '.join(own)}")
        values = own | {key: value for key, value in given.items() if value is not None}
        learned = () if learn is None else tuple(learn) or (next(iter(own)),)
        for key in learned:
            low, high = BOUNDS[key]
            if not low < values[key] < high:
                raise ValueError(f"--learn {key} needs a start between {low:g} and {high:g}, given {values[key]:g}")
        return cls(name, tuple(values.items()), learned)


class Mapping(nn.Module):
    """Scores to weights. A learned hyper-parameter stays between its bounds."""

    choice: Choice

    @nn.compact
    def __call__(self, scores, where):
        values: dict[str, float | jax.Array] = dict(self.choice.values)
        for key in self.choice.learn:
            start = sm.unbounded(jnp.float32(values[key]), *BOUNDS[key])
            raw = self.param(key, nn.initializers.constant(start), (), jnp.float32)
            values[key] = sm.bounded(raw, *BOUNDS[key])
        return getattr(sm, self.choice.name)(scores, axis=-1, where=where, **values)


def learned_values(params, choice: Choice) -> dict[str, float]:
    """What training made of the hyper-parameters in `choice.learn`."""
    found = {}
    for path, raw in jax.tree_util.tree_leaves_with_path(params):
        key = path[-1].key
        if key in choice.learn and any(getattr(part, "key", "") == "mapping" for part in path):
            found[key] = float(sm.bounded(raw, *BOUNDS[key]))
    return found


class Recurrent(nn.Module):
    """A gated recurrent unit over (B, T, features); padding leaves the state as it was.

    The projection of the inputs is one product for all positions; only the recurrent product is
    inside the scan.
    """

    size: int
    reverse: bool = False

    @nn.compact
    def __call__(self, inputs, mask, initial=None):
        gates = nn.Dense(3 * self.size, name="input")(inputs)
        kernel = self.param("recurrent", nn.initializers.orthogonal(), (self.size, 3 * self.size), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)
        if initial is None:
            initial = jnp.zeros((inputs.shape[0], self.size), jnp.float32)

        def cell(state, position):
            gates, present = position
            inner = state @ kernel
            reset, update = jnp.split(jax.nn.sigmoid(gates[:, : 2 * self.size] + inner[:, : 2 * self.size]), 2, axis=-1)
            fresh = jnp.tanh(gates[:, 2 * self.size :] + reset * (inner[:, 2 * self.size :] + bias[None]))
            state = jnp.where(present[:, None], fresh + update * (state - fresh), state)
            return state, state

        positions = jnp.swapaxes(gates, 0, 1), jnp.swapaxes(mask, 0, 1)
        final, states = jax.lax.scan(cell, initial, positions, reverse=self.reverse)
        return jnp.swapaxes(states, 0, 1), final


class Attention(nn.Module):
    """Luong's general score, <W query, memory>, then the mapping over the source positions."""

    choice: Choice

    @nn.compact
    def __call__(self, query, memory, mask):
        # Nearly equal scores at first: a sparse mapping teaches only what it attends to.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        keys = nn.Dense(memory.shape[-1], use_bias=False, kernel_init=small, name="score")(query)
        scores = jnp.einsum("bth,bsh->bts", keys, memory) / math.sqrt(memory.shape[-1])
        weights = Mapping(self.choice, name="mapping")(scores, where=mask[:, None, :])
        return jnp.einsum("bts,bsh->bth", weights, memory), weights


class Encoder(nn.Module):
    """Both directions over the embedded source: memory (B, S, H), mask (B, S), final state (B, H)."""

    hidden: int

    @nn.compact
    def __call__(self, embedded, mask):
        forward, last = Recurrent(self.hidden // 2, name="forward")(embedded, mask)
        backward, first = Recurrent(self.hidden // 2, reverse=True, name="backward")(embedded, mask)
        # The words themselves stay in the memory, so that attention to a word means that word.
        return embedded + jnp.concatenate([forward, backward], axis=-1), jnp.concatenate([last, first], axis=-1)


class Classifier(nn.Module):
    """Entailment: the last state of the hypothesis attends over the premise, once."""

    vocabulary: int
    hidden: int
    choice: Choice
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch, train: bool = False):
        drop = nn.Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)
        embed = nn.Embed(self.vocabulary, self.hidden, embedding_init=WORDS, name="embed")
        mask, asked = batch["source"] != PAD, batch["target"] != PAD
        memory, state = Encoder(self.hidden, name="premise")(drop(embed(batch["source"])), mask)
        start = jnp.tanh(nn.Dense(self.hidden, name="bridge")(state))
        _, query = Recurrent(self.hidden, name="hypothesis")(drop(embed(batch["target"])), asked, start)
        context, weights = Attention(self.choice, name="attention")(query[:, None], memory, mask)
        context = context[:, 0]
        features = jnp.concatenate([context, query, context * query, jnp.abs(context - query)], axis=-1)
        features = nn.relu(nn.Dense(self.hidden, name="compare")(features))
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return nn.Dense(len(LABELS), name="label")(features), weights

    @staticmethod
    def answers(batch):
        """What the logits should say, and with which weight."""
        return batch["label"], batch["weight"]

    @staticmethod
    def rows(batch):
        """Which rows of attention (B, T) count."""
        return batch["weight"][:, None] > 0


class Translator(nn.Module):
    """Translation and summarization: a decoder with global attention over the source."""

    source_vocabulary: int
    target_vocabulary: int
    hidden: int
    choice: Choice
    dropout: float = 0.0
    shared: bool = False  # one embedding for both sides

    def setup(self):
        self.embed_source = nn.Embed(self.source_vocabulary, self.hidden, embedding_init=WORDS)
        self.embed_target = (
            self.embed_source if self.shared else nn.Embed(self.target_vocabulary, self.hidden, embedding_init=WORDS)
        )
        self.encoder = Encoder(self.hidden)
        self.bridge = nn.Dense(self.hidden)
        self.decoder = Recurrent(self.hidden)
        self.attention = Attention(self.choice)
        self.combine = nn.Dense(self.hidden)
        self.output = nn.Dense(self.target_vocabulary)
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1,))

    def encode(self, source, train: bool = False):
        mask = source != PAD
        memory, state = self.encoder(self.drop(self.embed_source(source), deterministic=not train), mask)
        return memory, mask, jnp.tanh(self.bridge(state))

    def decode(self, words, state, memory, mask, train: bool = False):
        """Logits (B, T, V) after each of `words` (B, T), weights (B, T, S) and the last state (B, H)."""
        embedded = self.drop(self.embed_target(words), deterministic=not train)
        states, last = self.decoder(embedded, words != PAD, state)
        context, weights = self.attention(states, memory, mask)
        output = jnp.tanh(self.combine(jnp.concatenate([context, states], axis=-1)))
        return self.output(self.drop(output, deterministic=not train)), weights, last

    def __call__(self, batch, train: bool = False):
        memory, mask, state = self.encode(batch["source"], train)
        logits, weights, _ = self.decode(batch["target"][:, :-1], state, memory, mask, train)
        return logits, weights

    @staticmethod
    def answers(batch):
        answers = batch["target"][:, 1:]
        return answers, jnp.where(answers == PAD, 0.0, batch["weight"][:, None])

    @staticmethod
    def rows(batch):
        answers = batch["target"][:, 1:]
        return (answers != PAD) & (answers != END) & (batch["weight"][:, None] > 0)
