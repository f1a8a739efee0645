"""The longest functions of a source tree, by syntax tree. Usage: longest_functions.py SOURCE"""

import ast
import sys
from pathlib import Path

root = Path(sys.argv[1])
found = []
for path in sorted(root.rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(
                ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(root)}:{node.lineno} {node.name}")
            )
if not found:
    sys.exit(f"no function below {root}")
for length, place in sorted(found, reverse=True)[:4]:
    print(f"{length:4} lines  {place}")
lengths = sorted(length for length, _ in found)
print(f"{len(found)} functions, median {lengths[len(lengths) // 2]} lines")
