#!/bin/sh
# What a bare CUDA machine can say: builds the engine alone (no ZeroMQ, no protobuf), checks the kernels and whole models on
# the device against the CPU, then times them. Written without a GPU at hand (only its comparison of models was run, on
# the emulation): the first machine to run it may have to mend it.
#   tests/gpu.sh [--build DIR] [--models DIR] [--arch 120] [--device cuda:0] [--bench "SYNTH ..."] [--skip-sanitizer]
# --models: a conformance folder (cases.tsv beside one folder for each case); every case is computed on the CPU and on the
# device and the two answers are compared. Everything is printed and kept in BUILD/gpu.log.
# --programs DIR takes programs that are built already. Exit status: number of steps that failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build-gpu models='' arch='' device=cuda:0 sanitizer=yes programs='' failed=0
bench='synth:llama:1b:Q8_0 synth:llama:8b:Q8_0 synth:gemma3:27b:Q8_0 synth:qwen2:32b:Q8_0 synth:llama:70b:IQ3_M synth:qwen3moe:30b-a3b:Q8_0'

while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift 2 ;;
    --models) models=$2; shift 2 ;;
    --arch) arch=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --bench) bench=$2; shift 2 ;;
    --programs) programs=$2; shift 2 ;;
    --skip-sanitizer) sanitizer=no; shift ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done

say() { printf '%s\n' "$*" | tee -a "$log"; }

# step NAME COMMAND...: its output to the log, one line here.
step() {
    name=$1
    shift
    begin=$(date +%s)
    printf '== %s: %s\n' "$name" "$*" >>"$log"
    if "$@" >>"$log" 2>&1; then
        say "ok   $name ($(($(date +%s) - begin)) s)"
    else
        say "FAIL $name (status $?)"
        failed=$((failed + 1))
    fi
}

# The largest and the mean square difference of two files of floats, by tools that every machine has. The bounds are
# those of the conformance list for int8 activations.
compare() {
    od -An -v -tf4 -w4 "$1" >"$build/a.txt" && od -An -v -tf4 -w4 "$2" >"$build/b.txt" || return 1
    paste "$build/a.txt" "$build/b.txt" | awk -v what="$3" '
        { d = $1 - $2; if (d < 0) d = -d
          if ($1 ~ /nan|inf/ || $2 ~ /nan|inf/ || NF != 2) bad = 1
          if (d > max) max = d
          sum += d * d; n++ }
        END { rms = n ? sqrt(sum / n) : 0
              printf "%s: %d values, max %.2e, rms %.2e\n", what, n, max, rms
              exit bad || n == 0 || max > 0.6 || rms > 0.05 }'
}

# One line of cases.tsv on the CPU and on the device.
model_case() {
    for where in cpu "$device"; do
        set -- "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8"
        out=$build/out-${where%%:*}.f32
        args="--tokens $models/$1/$5 --lens $6 --start $7 --device $where"
        [ "$8" = 0 ] || args="$args --ctx $8"
        if [ "$3" = logits ]; then args="$args --logits $out"; else args="$args --embed $4 $out"; fi
        # shellcheck disable=SC2086  # the words of args hold no spaces of their own
        "$bin/hearth-eval" --direct "$models/$1/$2" $args || return 1
    done
    compare "$build/out-cpu.f32" "$build/out-${device%%:*}.f32" "$1"
}

mkdir -p "$build" || exit 2
log=$build/gpu.log
: >"$log"
if [ -z "$programs" ]; then
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
    [ "$failed" -eq 0 ] || exit "$failed"
    bin=$build/bin
    step ops "$bin/gpu-ops" "$device"
    if [ "$sanitizer" = yes ] && command -v compute-sanitizer >/dev/null; then
        step memcheck compute-sanitizer --error-exitcode 1 "$bin/gpu-ops" "$device" small
        step racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$bin/gpu-ops" "$device" small
    fi
else
    bin=$programs
fi
if [ -n "$models" ]; then
    tail -n +2 "$models/cases.tsv" >"$build/cases.txt"
    while IFS="$(printf '\t')" read -r name file kind pooling tokens lens pos0 ctx rest; do
        step "$name $kind" model_case "$name" "$file" "$kind" "$pooling" "$tokens" "$lens" "$pos0" "$ctx"
    done <"$build/cases.txt"
fi
if [ -z "$programs" ]; then
    for model in $bench; do
        for prompt in 512 4096; do
            step "bench $model, prompt $prompt" "$bin/hearth-bench" --direct "$model" --device "$device" -p "$prompt" -n 64
        done
        for depth in 8192 32768; do
            step "bench $model, depth $depth" "$bin/hearth-bench" --direct "$model" --device "$device" -p 1 -n 64 -d "$depth"
        done
        for n in 2 4 8 16; do
            step "bench $model, $n side by side" "$bin/hearth-bench" --direct "$model" --device "$device" -p 1 -n 64 --parallel "$n"
        done
    done
fi
say "$failed steps failed; the whole log: $log"
exit "$failed"
