"""One run: python -m examples.recall --mapping entmax --learn-alpha --length-scaled."""

from __future__ import annotations

import sys

import tyro

from .options import Options
from .train import run


def main(arguments: list[str] | None = None) -> None:
    try:
        options = tyro.cli(Options, prog="python -m examples.recall", args=arguments)
        result = run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # a second Ctrl-C
        sys.exit("stopped at once: the same command goes on from what was saved")
    print(f"{result['task']}, {result['name']}, seed {result['seed']}, after {result['steps']} steps")
    for test in result["tests"]:
        print(f"{test['length']:6d} tokens  exact match {test['exact']:6.1%}  right answers {test['answers']:6.1%}")
    print(f"metrics, attention maps and checkpoint in {options.folder}")


if __name__ == "__main__":
    main()
