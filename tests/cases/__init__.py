"""The one list: what there is to test. Each law in the other files runs over it.

| file | what it holds |
|---|---|
| `_parts` | bases, penalties, domains and hyper-parameters, one entry each: **add here** |
| `_list` | the cases that follow from them, and the choices for dear laws |
| `_run` | one compiled program a family, through which every law goes; scores and masks |
| `_errors` | what every error says |
| `_attention` | comparing attention's kernels with plain JAX, and programs for chips that are not there |
| `tolerances` | how far two numbers may lie apart, and why: imported from there |

A *case* is a problem of `oracles`, hyper-parameters included, together with the ways to reach it in smoothmax: the
named function where there is one, and `conjugate(omega, over=domain)`. Cases that differ only in the values of their
hyper-parameters are one *family*: values are operands, so a family compiles once for a shape and dtype.
"""

from ._attention import assert_close, per_head, program_for, pulled
from ._errors import refuse
from ._list import (
    BY_ID,
    CASES,
    DISTRIBUTIONS,
    FAMILIES,
    NAMED,
    PIECES,
    REPRESENTATIVES,
    Case,
    Family,
    Named,
    asked,
    each,
    each_named,
)
from ._parts import BASES, DOMAINS, HYPER, PENALTIES, coupled, cubic, cubic_rise, edges, one_of, owl
from ._run import (
    OPTIMISED,
    ROWS,
    WIDE,
    B,
    D,
    Result,
    everything,
    forward,
    holes,
    in_float32,
    jacobians,
    next_to_the_border,
    normal,
    reference,
    run,
    scores,
    sent,
    solved_by,
    spread_params,
)

__all__ = [
    "BASES",
    "BY_ID",
    "CASES",
    "DISTRIBUTIONS",
    "DOMAINS",
    "FAMILIES",
    "HYPER",
    "NAMED",
    "OPTIMISED",
    "PENALTIES",
    "PIECES",
    "REPRESENTATIVES",
    "ROWS",
    "WIDE",
    "B",
    "Case",
    "D",
    "Family",
    "Named",
    "Result",
    "asked",
    "assert_close",
    "coupled",
    "cubic",
    "cubic_rise",
    "each",
    "each_named",
    "edges",
    "everything",
    "forward",
    "holes",
    "in_float32",
    "jacobians",
    "next_to_the_border",
    "normal",
    "one_of",
    "owl",
    "per_head",
    "program_for",
    "pulled",
    "reference",
    "refuse",
    "run",
    "scores",
    "sent",
    "solved_by",
    "spread_params",
]
