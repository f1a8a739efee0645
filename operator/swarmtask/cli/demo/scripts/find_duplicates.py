"""Passages that occur more than once in a source tree, and open notes. Usage: find_duplicates.py SOURCE"""

import hashlib
import re
import sys
from collections import defaultdict
from pathlib import Path

WINDOW = 6
NOTE = re.compile("#.*\\b(TO" + "DO|FIX" + "ME|X" + "XX)\\b")

root = Path(sys.argv[1])
places: dict[bytes, list[str]] = defaultdict(list)
notes = windows = 0
for path in sorted(root.rglob("*.py")):
    lines = [(number, text.strip()) for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)]
    notes += sum(bool(NOTE.search(text)) for _, text in lines)
    kept = [(number, text) for number, text in lines if len(text) > 3 and not text.startswith(("#", "import ", "from "))]
    for index in range(len(kept) - WINDOW + 1):
        part = kept[index : index + WINDOW]
        digest = hashlib.sha256("\n".join(text for _, text in part).encode()).digest()
        places[digest].append(f"{path.relative_to(root)}:{part[0][0]}")
        windows += 1
repeated = [where for where in places.values() if len(where) > 1]
for where in sorted(repeated, key=len, reverse=True)[:3]:
    print(f"{len(where)} times  {', '.join(where[:3])}")
print(f"{len(repeated)} of {windows} passages of {WINDOW} lines occur again; {notes} open notes")
