#!/bin/sh
# need.sh PROGRAM=PACKAGE...: install, by apt, the packages of programs that are not here yet. Asks no mirror when all are.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=
for pair; do
    command -v "${pair%%=*}" >/dev/null 2>&1 || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0
apt-get update -qq
# shellcheck disable=SC2086 # one word per package
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
rm -rf /var/lib/apt/lists/*
