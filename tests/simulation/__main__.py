"""`python -m tests.simulation`: replay one seed, or run many.

python -m tests.simulation --seed 17 --workload steady [--trace] [--scope whole] [--without node,clock]
python -m tests.simulation --seeds 10000 [--from 0] [--workload steady] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from tests.simulation.batch import chosen, many, report
from tests.simulation.story import simulate
from tests.simulation.workload import Scope, names


def main() -> int:
    """Exit status 1 when a run was not clean."""
    options = _options()
    without = tuple(filter(None, options.without.split(",")))
    if options.seed is not None:
        found = [
            simulate(options.seed, name, without=without, scope=options.scope, trace=print if options.trace else None)
            for name in chosen(options.workload)
        ]
        for result in found:
            report(result)
            print(f"{result.workload} seed {result.seed}: fingerprint {result.fingerprint}, {result.virtual_s:.0f} virtual s")
        return int(any(result.failures for result in found))
    return many(range(options.first, options.first + options.seeds), options.workload, without, options.jobs, options.scope)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Runs of the real operator on virtual time.")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--seeds", type=int, default=100, help="run so many")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of them")
    parser.add_argument("--workload", default="", help=f"one of: {', '.join(names())}; all in turn when not given")
    parser.add_argument("--without", default="", help="kinds of faults to leave out, separated by commas, for example node,clock")
    parser.add_argument(
        "--scope", choices=get_args(Scope), help="a small part, all of it, or all without faults; else the seed says"
    )
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
