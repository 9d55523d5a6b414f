"""Compiles the library for machines that are not there, and checks what the programs hold.

    python tests/accelerators v5e h100          # JAX with libtpu, and with the CUDA plugin; see .ci/accelerators

It runs in a process of its own: compilers of other machines come up only in an environment that is made for them.
A compiled program cannot be run here. What it computes is for the other tests, on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import targets  # first: it sets the environment  # isort: skip
import programs
from facts import Facts, read


def check(program: programs.Program, target: targets.Target) -> tuple[Facts | None, list[str]]:
    """The facts of the compiled program, and what is wrong with it."""
    mesh = target.mesh(program.chips)
    try:
        facts = read(*targets.compiled(program.function, program.arguments(mesh), mesh, target, program.may_spill))
    except Exception as error:  # of any kind: each compiler has its own
        reason = f"{type(error).__name__}: {error}"
        refused = not program.fits and "RESOURCE_EXHAUSTED" in reason
        return None, [] if refused else [f"does not compile. {reason}"]
    problems = list(program.law(facts))
    if facts.memory > target.memory:
        problems.append(f"takes {facts.memory:,} bytes, more than the {target.memory:,} of one chip: make it smaller")
    if not program.fits:
        problems = [] if problems else ["is too large for the chip, and the check did not see it"]
    return facts, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=targets.TARGETS, help="the machines to compile for")
    parser.add_argument("--kernels", nargs="+", choices=targets.TARGETS, default=[], help="for these kernels alone")
    parser.add_argument("--only", default="", help="programs with this in their name")
    arguments = parser.parse_args()

    gc.disable()  # traces are small objects without end, and few of them are in cycles
    passed = failed = 0
    asked = [(name, "") for name in arguments.targets] + [(name, "kernel: ") for name in arguments.kernels]
    for name, kind in asked:
        target = targets.TARGETS[name]
        for program in programs.everything(target):
            if not program.name.startswith(kind) or arguments.only not in program.name:
                continue
            start = time.process_time()
            facts, problems = check(program, target)
            held = (
                ""
                if facts is None
                else (
                    f"{facts.kernels} kernels, {facts.loops} loops, {facts.sorts} sorts, "
                    f"{facts.temporary / 2**20:.1f} MiB"
                )
            )
            print(f"{name}: {program.name}: {held or 'refused'} ({time.process_time() - start:.1f} CPU s)", flush=True)
            for problem in problems:
                print(f"  FAILED: it {problem}", flush=True)
            passed, failed = passed + (not problems), failed + bool(problems)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
