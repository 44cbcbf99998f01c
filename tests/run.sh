#!/usr/bin/env bash
# Installs what is needed, builds, and passes the tests: tests/run.sh [CTEST OPTIONS]. Ten minutes on two cores at most.
#   HEARTH_CONFORMANCE=DIR   runs the conformance suites there too
#   HEARTH_LONG=1            the long form of campaigns (kills, malformed files, fuzzing)
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
build=${HEARTH_BUILD:-$top/build-test}
jobs=$(nproc)

echo "== packages"
"$top/deploy/packages.sh"
echo "== building in $build"
cmake -S "$top" -B "$build" -G Ninja >"$build.log" 2>&1 || { cat "$build.log"; exit 1; }
ninja -C "$build" >>"$build.log" 2>&1 || { grep -E -A12 'FAILED|error' "$build.log" | tail -n 60; exit 1; }
rm -f "$build.log"
echo "== testing${HEARTH_CONFORMANCE:+ with the conformance suites of $HEARTH_CONFORMANCE}"
# A test of whole processes that fails on a busy machine is run again, twice at most; a third failure counts.
exec ctest --test-dir "$build" --output-on-failure --repeat until-pass:3 -j "$jobs" "$@"
