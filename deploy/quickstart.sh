#!/usr/bin/env bash
# From a fresh clone to an answer: installs packages, builds, starts hearth with the bundled model, asks it a question, and
# prints the answer as it comes. deploy/quickstart.sh ["question"]. The service is stopped again at the end.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
question=${1:-"What is hearth?"}
build="$top/build"

say() { printf '\n== %s\n' "$*" >&2; }

say "1/4 packages"
"$top/deploy/packages.sh" >&2

say "2/4 building in $build"
cmake -S "$top" -B "$build" -G Ninja -DBUILD_TESTING=OFF >"$build.log" 2>&1 || { cat "$build.log" >&2; exit 1; }
ninja -C "$build" >>"$build.log" 2>&1 || { tail -n 40 "$build.log" >&2; exit 1; }
rm -f "$build.log"

say "3/4 starting hearth with the bundled model"
run=$(mktemp -d "${TMPDIR:-/tmp}/hearth-quickstart-XXXXXX")
export HEARTH_RUNTIME_DIR="$run"
"$build/bin/hearth" serve --models "$top/tests/fixtures" 2>"$run/log" &
service=$!
stop() {
    kill "$service" 2>/dev/null && wait "$service" 2>/dev/null || true
    rm -rf "$run"
}
trap stop EXIT
if ! "$build/bin/hearth" status --wait 60; then
    cat "$run/log" >&2
    exit 1
fi

say "4/4 asking: $question"
"$build/bin/hearth" ask -m hearth-tiny --temp 0 "$question"
echo
cat >&2 <<NEXT

== That was hearth. To go on:
   $build/bin/hearth serve --models DIRECTORY_WITH_GGUF_FILES
   $build/bin/hearth ask "another question"        # in another terminal
   $build/bin/hearth --help
NEXT
