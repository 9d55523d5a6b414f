"""Flash attention for sparse mappings, interpreted on a CPU: the same numbers as attention in plain JAX, and gradients.

That is for both kinds of machines. Blocks are small here, so that there are several; `machines.py` has the sizes.
"""

import pytest
from cases import pulled
from machines import ATTENTION, each, interpret_attention


@pytest.mark.usefixtures("no_x64")
@pytest.mark.parametrize(("machine", "case"), each({machine: a.cases for machine, a in ATTENTION.items()}))
def test_output_and_gradients_are_those_of_the_plain_form(machine, case, monkeypatch):
    interpret_attention(machine, monkeypatch)
    attention = ATTENTION[machine]
    by_kernels, args = attention.of(case, "pallas")
    bar = attention.bar()
    # 2e-5 for numbers of size 1; sums over queries are larger, and so is their rounding.
    attention.assert_close(pulled(by_kernels, bar)(*args), pulled(attention.plain(case), bar)(*args), 2e-5)
