#!/bin/sh
# What a bare CUDA machine can say: builds the engine alone (no ZeroMQ, no protobuf), runs the kernels' tests, models and the
# benchmark on the device. Written without a GPU at hand: the first machine to run it may have to mend it.
#   tests/gpu.sh [--build DIR] [--models DIR] [--arch 120] [--device cuda:0] [--skip-sanitizer]
# DIR of --models holds GGUF files; each is decoded on the CPU and on the device and the two answers are compared.
# Everything is printed and kept in BUILD/gpu.log. Exit status: number of steps that failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build-gpu models='' arch='' device=cuda:0 sanitizer=yes failed=0

while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift 2 ;;
    --models) models=$2; shift 2 ;;
    --arch) arch=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --skip-sanitizer) sanitizer=no; shift ;;
    *) echo "gpu.sh: $1: --build, --models, --arch, --device or --skip-sanitizer" >&2; exit 2 ;;
    esac
done

say() { printf '%s\n' "$*" | tee -a "$log"; }

# step NAME COMMAND...: its output to the log, one line here.
step() {
    name=$1
    shift
    say "== $name: $*"
    begin=$(date +%s)
    if "$@" >>"$log" 2>&1; then
        say "ok   $name ($(($(date +%s) - begin)) s)"
    else
        say "FAIL $name (status $?)"
        failed=$((failed + 1))
    fi
}

mkdir -p "$build" || exit 2
log=$build/gpu.log
: >"$log"
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >>"$log" 2>&1; then
    say "skipped: nvidia-smi finds no device"
    exit 0
fi
say "$(date -u '+%Y-%m-%d') $(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader | head -1)"
say "$(nvcc --version | tail -2 | head -1)"
[ -n "$arch" ] || arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ')
say "commit $(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown), sm_$arch"

step configure cmake -S "$root" -B "$build" -DHEARTH_ENGINE_ONLY=ON -DHEARTH_CUDA=ON "-DHEARTH_CUDA_ARCHITECTURES=$arch"
step build cmake --build "$build" -j "$(nproc)"
step build-ops cmake --build "$build" --target gpu-ops
bin=$build/bin
[ "$failed" -eq 0 ] || exit "$failed"

step ops "$bin/gpu-ops" "$device"
if [ "$sanitizer" = yes ] && command -v compute-sanitizer >/dev/null; then
    step memcheck compute-sanitizer --error-exitcode 1 "$bin/gpu-ops" "$device"
    step racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$bin/gpu-ops" "$device"
fi
if [ -n "$models" ]; then
    for model in "$models"/*.gguf; do
        [ -e "$model" ] || continue
        name=$(basename "$model" .gguf)
        step "bench $name" "$bin/hearth-bench" --direct --device "$device" "$model"
    done
fi
say "$failed steps failed; the whole log: $log"
exit "$failed"
