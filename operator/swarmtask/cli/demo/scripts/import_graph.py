"""Who imports whom inside a source tree, and whether there are cycles. Usage: import_graph.py SOURCE"""

import ast
import graphlib
import sys
from collections import Counter
from pathlib import Path

root = Path(sys.argv[1])
modules = {}
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path


def own_name(name: str) -> str | None:
    """The module of this tree that a dotted name means: the tree may begin below the top package."""
    parts = name.split(".")
    for start in range(len(parts)):
        for end in range(len(parts), start, -1):
            candidate = ".".join(parts[start:end])
            if candidate in modules:
                return candidate
    return None


graph: dict[str, set[str]] = {}
for module, path in modules.items():
    targets = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets |= {own_name(f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {own_name(alias.name) for alias in node.names}
    graph[module] = {target for target in targets if target and target != module}
importers = Counter(target for targets in graph.values() for target in targets)
for module, count in importers.most_common(4):
    print(f"imported by {count:3} modules  {module or '(top)'}")
edges = sum(map(len, graph.values()))
try:
    depth: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(graph).static_order():
        depth[module] = 1 + max((depth[target] for target in graph[module]), default=0)
    print(f"{len(graph)} modules, {edges} imports, {max(depth.values(), default=0)} layers deep, no cycle")
except graphlib.CycleError as error:
    print(f"{len(graph)} modules, {edges} imports, a cycle: {' > '.join(error.args[1])}")
