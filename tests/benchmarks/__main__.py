"""The benchmarks.

    python -m tests.benchmarks [B1 B2 ...] [--quick] [--pairs 5] [--seeds 5] [--json FOLDER]

Prints a table with the goal beside each figure, and writes one JSON file per benchmark into FOLDER. Exits with 0 whatever the
figures are. `--quick` tries the benchmarks themselves with a hundredth of the size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks import api, footprint, growth, kernel, packing, urgency
from tests.benchmarks.measuring import Effort, Figure, machine, table

BENCHMARKS: Mapping[str, Callable[[Effort], list[Figure]]] = {
    "B1": kernel.placement,
    "B2": kernel.flatness,
    "B3": packing.makespan,
    "B7": urgency.start_delay,
    "B8": api.durable_creates,
    "B9": api.ready_again,
    "B10": footprint.footprint,
    "B11": growth.simulated,
}


def run(names: list[str], effort: Effort, folder: Path | None) -> list[Figure]:
    """Measure, and write JSON as soon as each benchmark has ended."""
    figures: list[Figure] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        found = BENCHMARKS[name](effort)
        figures += found
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(report(name, effort, found, time.perf_counter() - began), indent=2)
            (folder / f"{name}.json").write_text(text + "\n")
    return figures


def report(name: str, effort: Effort, figures: list[Figure], took_s: float) -> dict[str, Any]:
    """What the JSON file of one benchmark holds."""
    return {
        "benchmark": name,
        "sizes_divided_by": effort.part,
        "took_s": round(took_s, 1),
        "machine": machine(),
        "figures": [figure.as_json() for figure in figures],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure, and compare with the goals.")
    parser.add_argument("names", nargs="*", metavar="B1", help=f"which ones ({', '.join(BENCHMARKS)}; default all)")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, to try the benchmarks themselves")
    parser.add_argument("--pairs", type=int, help="interleaved measurements of each comparison (default 5)")
    parser.add_argument("--seeds", type=int, help="simulated runs of each kind (default 5)")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the figures into files of this folder")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    effort = Effort.quick() if options.quick else Effort()
    if options.pairs:
        effort = replace(effort, pairs=options.pairs)
    if options.seeds:
        effort = replace(effort, seeds=options.seeds)
    print(table(run(options.names or list(BENCHMARKS), effort, options.json)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
