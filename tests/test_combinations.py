"""Every base with every combination of penalties over simplex, capped simplex and box: weights and values.

The other laws run over the list's thinner choice. Here strengths are operands and may be zero, so one program for each
base and domain serves all combinations, one a slice.
"""

import itertools

import cases
import jax
import numpy as np
import pytest
from cases import BASES, DOMAINS, PENALTIES, D, Family

CHAINS = (  # "edges" with equal edges is "tv"
    {"tv": 0.0, "edges": np.ones(D - 1)},
    {"tv": 0.2, "edges": np.ones(D - 1)},
    {"tv": 0.8, "edges": cases.edges(D)},
)
RANKED = tuple({"oscar": oscar, "owl": owl} for oscar, owl in itertools.product((0.0, 0.05), (0.0, 0.7)))
COMBINATIONS = [chain | ranked | {"weights": cases.owl(D)} for chain, ranked in itertools.product(CHAINS, RANKED)]
assert set.union(*map(set, COMBINATIONS)) == set().union(*(part.values for part in PENALTIES.values()))

SERVED = [
    (base, domain)
    for base, part in BASES.items()
    for domain in part.domains
    if part.penalties and DOMAINS[domain].penalties
]


@pytest.mark.parametrize(("base", "domain"), SERVED)
def test_weights_and_values(base, domain):
    static = next(iter(BASES[base].values.values())) | BASES[base].structured
    static |= {k: v(D) if callable(v) else v for k, v in next(iter(DOMAINS[domain].values.values())).items()}
    rows = [static | combination for combination in COMBINATIONS]
    params = {k: np.stack([np.atleast_1d(np.asarray(row[k], float)) for row in rows]) for k in rows[0]}
    family = Family(base, ("edges", "oscar", "owl"), domain, tuple(rows[0]))
    compiled = jax.jit(lambda params, x: (family.weights(x, params), family.value(x, params)))
    case = cases.Case(f"{base}/{domain}", family, static)
    sparse = 0
    for scale in (0.2, 2.0):
        x = np.random.default_rng(0).normal(size=(len(rows), D)) * scale
        y, value = compiled(params, x)
        for i, row in enumerate(rows):
            expected, best = case.expected(x[i : i + 1], params=row)
            np.testing.assert_allclose(y[i], expected[0], rtol=0, atol=case.tol, err_msg=str(row))
            # weights times scores of up to 6
            np.testing.assert_allclose(value[i], best[0], rtol=0, atol=10 * case.tol, err_msg=str(row))
            sparse += (expected == 0).any()
    assert not BASES[base].sparse or sparse > 0, "no sparse support was tested"
