#!/bin/sh
# install.sh SOURCES TARGET: the package and exactly what requirements.lock names, without pip and without what only its tests need.
set -eu
sources=$1 target=$2 wheels=$1/worker-image/wheels
pip() { python3 -m pip --disable-pip-version-check --no-cache-dir "$@"; }
own=$wheels from="--no-index --find-links $wheels" # wheels for other kinds of machines may lie there, too: pip takes what fits
if [ ! -d "$wheels" ]; then
    own=/tmp/own from=
    pip wheel -q --no-deps --wheel-dir "$own" "$sources"
fi
# shellcheck disable=SC2086 # options, one word each
pip install -q $from --require-hashes --only-binary :all: --no-deps --target "$target" -r "$sources/requirements.lock"
pip install -q --no-index --no-deps --upgrade --target "$target" "$own"/swarmtask-*.whl
# The check runs twice a minute on laptops: Python's own start is all that it may cost.
printf '#!/bin/sh\nexec python3 -I -S %s/swarmtask/nodeagent/heartbeat.py "$@"\n' "$target" >"$target/bin/swarmtask-agent-health"
find "$target" -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +
python3 -m compileall -q "$target" >/dev/null || true # a file for another version of Python is no harm
test -x "$target/bin/swarmtask" && test -x "$target/bin/swarmtask-agent-health"
