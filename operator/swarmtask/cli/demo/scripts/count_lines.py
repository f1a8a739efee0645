"""Lines of code, comment and blank per package of a source tree. Usage: count_lines.py SOURCE"""

import sys
import tokenize
from collections import Counter
from pathlib import Path

root = Path(sys.argv[1])
code: Counter[str] = Counter()
files: Counter[str] = Counter()
comments: Counter[str] = Counter()
for path in sorted(root.rglob("*.py")):
    package = str(path.parent.relative_to(root)) or "."
    files[package] += 1
    with tokenize.open(path) as file:
        for line in file:
            text = line.strip()
            if text.startswith("#"):
                comments[package] += 1
            elif text:
                code[package] += 1
if not files:
    sys.exit(f"no Python file below {root}")
for package, count in code.most_common(4):
    print(f"{count:6} lines in {files[package]:3} files  {package}")
print(f"{sum(code.values()):6} lines in {sum(files.values()):3} files altogether, {sum(comments.values())} comment lines")
