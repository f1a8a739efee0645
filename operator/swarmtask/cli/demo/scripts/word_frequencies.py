"""The words that a source tree is made of. Usage: word_frequencies.py SOURCE"""

import keyword
import re
import sys
from collections import Counter
from pathlib import Path

WORD = re.compile(r"[A-Z]?[a-z]{3,}")
DULL = set(keyword.kwlist) | {"the", "self", "that", "this", "with", "str", "are", "int", "its", "what", "which", "one"}

root = Path(sys.argv[1])
words: Counter[str] = Counter()
for path in sorted(root.rglob("*.py")):
    words.update(word.lower() for word in WORD.findall(path.read_text(encoding="utf-8")))
if not words:
    sys.exit(f"no word below {root}")
total = sum(words.values())
for word in DULL:
    words.pop(word, None)
print("most used: " + ", ".join(f"{word} {count}" for word, count in words.most_common(8)))
print(f"{total} words, {len(words)} different ones")
