#!/bin/sh
# What a bare CUDA machine can say (nvcc, cmake, a C compiler; no ZeroMQ, no protobuf): builds the engine alone, checks the
# kernels and whole models on the device, then times them, each figure as a share of what the device reaches at best.
#   tests/gpu.sh [--build DIR] [--models DIR] [--arch 120] [--device cuda:0] [--bench "SYNTH ..."] [--vram-budget SIZE]
#                [--kv TYPE] [--libraries DIR] [--skip-sanitizer] [--skip-bench] [--skip-system] [--emulated BUILD]
# --models: a conformance folder (cases.tsv beside one folder for each case); every case is computed on the CPU and on the
# device and the two answers are compared. --vram-budget 31GiB: as a 32 GB card. --emulated: every line of this script without
# a device, on the programs of an ordinary BUILD, with tiny sizes (its figures mean nothing). Where the libraries of the whole system
# are to be had it is built too, and serves on the device under kills: those of the machine, or of --libraries, a folder made
# by `deploy/packages.sh --unpack DIR` on a Debian or Ubuntu and carried here. Everything is printed and kept in
# DIR/gpu.log, the table in DIR/gpu.tsv. Exit status: number of steps that failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build-gpu models='' arch='' device=cuda:0 sanitizer=yes timing=yes emulated='' budget='' kv=f16 libraries='' system=yes least=1024 failed=0
bench='synth:llama:1b:Q8_0 synth:llama:8b:Q8_0 synth:gemma3:27b:Q8_0 synth:qwen2:32b:Q8_0 synth:llama:70b:IQ3_M synth:qwen3moe:30b-a3b:Q8_0'

while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift 2 ;;
    --models) models=$2; shift 2 ;;
    --arch) arch=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --bench) bench=$2; shift 2 ;;
    --vram-budget) budget=$2; shift 2 ;;
    --kv) kv=$2; shift 2 ;;
    --emulated) emulated=$2; shift 2 ;;
    --libraries) libraries=$(cd "$2" && pwd) || exit 2; shift 2 ;;
    --skip-system) system=no; shift ;;
    --skip-sanitizer) sanitizer=no; shift ;;
    --skip-bench) timing=no; shift ;;
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
    "$@" >>"$log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        say "ok   $name ($(($(date +%s) - begin)) s)"
    else
        say "FAIL $name (status $status)"
        failed=$((failed + 1))
    fi
    return $status
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

# One line of cases.tsv: case file kind pooling tokens lens pos0 ctx; where, and into which file; rows of a step at most.
evaluate() {
    out=${10} rows=${11:-}
    set -- "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$9"
    args="--tokens $models/$1/$5 --lens $6 --start $7 --device $9"
    [ "$8" = 0 ] || args="$args --ctx $8"
    [ -z "$rows" ] || args="$args --chunk $rows"
    if [ "$3" = logits ]; then args="$args --logits $out"; else args="$args --embed $4 $out"; fi
    # shellcheck disable=SC2086  # the words of args hold no spaces of their own
    "$bin/hearth-eval" --direct "$models/$1/$2" $args
}

# On the CPU and on the device, within the bounds; on the device again, the same bits; in steps of 1 to 16 rows, which are other
# kernels, the same bits.
model_case() {
    evaluate "$@" cpu "$build/out-cpu.f32" && evaluate "$@" "$device" "$build/out-device.f32" &&
        evaluate "$@" "$device" "$build/out-again.f32" &&
        compare "$build/out-cpu.f32" "$build/out-device.f32" "$1" &&
        cmp "$build/out-device.f32" "$build/out-again.f32" || return 1
    [ "$3" = logits ] || return 0
    for rows in 1 2 4 8 16; do
        evaluate "$@" "$device" "$build/out-rows.f32" "$rows" && cmp "$build/out-device.f32" "$build/out-rows.f32" || return 1
    done
}

# One model, loaded once: prefill of 512 and 4096, decode after nothing, 8k and 32k, batches of 2 to 16. Where there is no room for
# all of it each case is loaded apart, with the weights streamed that it lacks room for. Without the deepest where that is
# too much; a model that the plan refuses is skipped with the plan's words.
bench_model() {
    with=${budget:+--vram-budget $budget}
    # shellcheck disable=SC2086
    if ! "$bin/hearth-plan" "$1" --device "$device" $with --seqs 1 --ctx "$least" --kv "$kv" --state-budget 1T >"$build/plan.txt" 2>&1; then
        say "skip $1: $(tail -1 "$build/plan.txt")"
        return 0
    fi
    cat "$build/plan.txt"
    for cases in "$deep $shallow" "$shallow"; do
        # shellcheck disable=SC2086
        if "$bin/hearth-bench" --direct "$1" --device "$device" $with --kv "$kv" -r "$repeats" --json $first $cases >"$build/bench.jsonl"; then
            cat "$build/bench.jsonl"
            sed "s|^{|{\"model\":\"$1\",|" "$build/bench.jsonl" >>"$build/bench-all.jsonl"
            return 0
        fi
    done
    return 1
}

# The most device memory with which some of a model's weights are streamed, for the emulated device.
streams_below() {
    room=$("$bin/hearth-plan" "$1" --device "$device" --seqs 1 --ctx "$least" --kv "$kv" --json | sed 's/.*"total_bytes"://; s/,.*//')
    tries=0
    while [ $((tries += 1)) -lt 300 ]; do
        "$bin/hearth-plan" "$1" --device "$device" --seqs 1 --ctx "$least" --kv "$kv" --vram-budget "$room" --json 2>/dev/null |
            grep -q '"streamed_bytes":[1-9]' && break
        room=$((room - 100000))
    done
    printf '%s' "$room"
}

# The same cases of a model that does not fit: none may be skipped.
bench_streamed() {
    budget=$(streams_below "$1")
    bench_model "$1"
    rc=$?
    budget=''
    [ $rc -eq 0 ] && grep -q '"streamed_bytes":[1-9]' "$build/bench.jsonl"
}

# The measured lines beside the ceilings, as a table.
table() {
    awk -F'\t' -v OFS='\t' '
        function field(name,   at, rest) {
            at = index($0, "\"" name "\":")
            if (!at) return 0
            rest = substr($0, at + length(name) + 3)
            sub(/[,}].*/, "", rest); gsub(/"/, "", rest)
            return rest
        }
        function share(value, of) { return of > 0 ? sprintf("%.3f", value / of) : "-" }
        NR == FNR { ceiling[$1] = $2; next }
        FNR == 1 { print "model", "prompt", "depth", "batch", "prefill t/s", "of GEMM", "decode t/s", "GB/s", "of copy", "of read", "upload GB/s", "register GB/s", "swap GB/s", "of up", "streamed GB" }
        { gemm = ceiling["bf16"] ? ceiling["bf16"] : ceiling["int8"]
          model = $0; sub(/^{"model":"/, "", model); sub(/".*/, "", model)
          print model, field("n_prompt"), field("depth"), field("parallel"),
              field("prefill_tps"), share(field("prefill_tps") * field("flops_per_token") / 1e12, gemm),
              field("decode_tps"), field("bandwidth_gbs"), share(field("bandwidth_gbs"), ceiling["copy"]), share(field("bandwidth_gbs"), ceiling["read"]),
              field("upload_gbs"), field("register_gbs"), field("swap_gbs"), share(field("swap_gbs"), ceiling["up"]), field("streamed_bytes") / 1e9 }' "$build/ceilings.tsv" "$build/bench-all.jsonl"
}

# ---- the whole system ----

# The words that exist, as a list with colons.
existing() {
    list=''
    for path in "$@"; do
        [ ! -d "$path" ] || list=$list${list:+:}$path
    done
    printf '%s' "$list"
}

# Libraries unpacked in a folder: pkg-config looks there alone, the programs of that folder run with its libraries, and what is built
# finds them at run time (an rpath of the old kind, which holds for the libraries' own needs too).
use_libraries() {
    places=$(existing "$libraries"/usr/lib/*-linux-gnu "$libraries"/lib/*-linux-gnu "$libraries"/usr/lib64 "$libraries"/usr/lib)
    PKG_CONFIG_LIBDIR=$(existing "$libraries"/usr/lib/*-linux-gnu/pkgconfig "$libraries"/usr/lib64/pkgconfig "$libraries"/usr/lib/pkgconfig)
    PKG_CONFIG_SYSROOT_DIR=$libraries
    export PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
    mkdir -p "$build/programs"
    for program in protoc-c pkg-config; do
        [ -x "$libraries/usr/bin/$program" ] || continue
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/usr/bin/%s "$@"\n' "$places" "$libraries" "$program" >"$build/programs/$program"
        chmod +x "$build/programs/$program"
    done
    PATH=$build/programs:$PATH
    link="-Wl,--disable-new-dtags,-rpath,$places"
}

# Names of what is not to be had, as CMakeLists.txt asks for it; the tests are Python.
lacking() {
    sed -n 's/^ *pkg_check_modules([A-Z_]* REQUIRED IMPORTED_TARGET \([^)]*\)).*/\1/p' "$root/CMakeLists.txt" | while read -r name; do
        pkg-config --exists "$name" 2>/dev/null || printf ' %s' "$name"
    done
    for name in pkg-config protoc-c python3; do
        command -v "$name" >/dev/null || printf ' %s' "$name"
    done
}

# Keeper, broker, loader, worker and clients: every answer the same while processes are killed and models swapped.
whole_system() {
    whole=$build/system link=''
    [ -z "$libraries" ] || use_libraries
    lacks=$(lacking)
    if [ -n "$lacks" ]; then
        say "skipped: the whole system, for want of$lacks (--libraries)"
        return
    fi
    # shellcheck disable=SC2086  # no target: no argument
    step "configure the system" cmake -S "$root" -B "$whole" -DBUILD_TESTING=OFF -DHEARTH_CUDA="$cuda" \
        "-DHEARTH_CUDA_ARCHITECTURES=$arch" "-DCMAKE_EXE_LINKER_FLAGS=$link" &&
        step "build the system" cmake --build "$whole" -j "$(nproc)" $target || return
    [ -n "$emulated" ] || service=$whole/bin
    step "service under kills" env HEARTH_BIN="$service" HEARTH_DEVICE="$device" python3 "$root/tests/cuda/service.py" $kills
    for campaign in $campaigns; do
        # shellcheck disable=SC2046  # the test and its numbers
        step "system $campaign" env HEARTH_BIN="$service" HEARTH_TEST_OPTIONS="--device $device" \
            python3 "$root/tests/system/"$(echo "$campaign" | tr : ' ')
    done
}

mkdir -p "$build" || exit 2
export PYTHONDONTWRITEBYTECODE=1
log=$build/gpu.log
: >"$log"
: >"$build/bench-all.jsonl"
if [ -n "$emulated" ]; then
    bin=$emulated/tests/emulated ops=$emulated/tests/test_cuda_gpu_ops size=small repeats=1 least=64
    first='-p 20 -n 2' shallow='--also 8,0,2,2' deep='--also 1,40,2,1'
    [ "${bench#*1b}" = "$bench" ] || bench='synth:llama:tiny:Q8_0'
    cuda=OFF arch=none target='--target proto_wire' service=$build/service kills=2 campaigns=10_start.py:10
    # A program looks for the others beside itself; the later ones win.
    mkdir -p "$service" && ln -f "$emulated"/bin/hearth* "$service" && ln -f "$emulated"/tests/emulated/hearth* "$service"
    say "emulated: no figure below means anything"
else
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
    step build-checks cmake --build "$build" -j "$(nproc)" --target gpu-ops gpu-ceilings gpu-prefill
    [ "$failed" -eq 0 ] || exit "$failed"
    bin=$build/bin ops=$build/bin/gpu-ops size='' repeats=3
    first='-p 512 -n 64' shallow='--also 4096,0,64,1 --also 1,8192,64,1 --also 1,0,64,2 --also 1,0,64,4 --also 1,0,64,8 --also 1,0,64,16'
    deep='--also 1,32768,64,1'
    cuda=ON target='' kills=100 campaigns='10_start.py 20_one_prompt.py 50_kills.py:50:1 75_swap.py:60:1'
fi
# shellcheck disable=SC2086  # no size: no argument
step ops "$ops" "$device" $size
if [ -z "$emulated" ] && [ "$sanitizer" = yes ] && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
        step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$ops" "$device" small
    done
fi
if [ -n "$models" ]; then
    tail -n +2 "$models/cases.tsv" >"$build/cases.txt"
    while IFS="$(printf '\t')" read -r name file kind pooling tokens lens pos0 ctx rest; do
        step "$name $kind" model_case "$name" "$file" "$kind" "$pooling" "$tokens" "$lens" "$pos0" "$ctx"
    done <"$build/cases.txt"
fi
[ "$system" = no ] || whole_system
if [ "$timing" = yes ]; then
    # shellcheck disable=SC2086
    step ceilings sh -c "\"\$1\" \$2 $size >\"\$3\" && cat \"\$3\"" - "$bin/gpu-ceilings" "$device" "$build/ceilings.tsv"
    # shellcheck disable=SC2086
    step "prefill beside cuBLAS" sh -c "\"\$1\" \$2 $size >\"\$3\"; rc=\$?; cat \"\$3\"; exit \$rc" - "$bin/gpu-prefill" "$device" "$build/prefill.tsv"
    for model in $bench; do
        step "bench $model" bench_model "$model"
        [ -z "$emulated" ] || [ -n "$budget" ] || step "bench $model, streamed" bench_streamed "$model"
    done
    table >"$build/gpu.tsv"
    cat "$build/ceilings.tsv" "$build/prefill.tsv" "$build/gpu.tsv" | tee -a "$log"
fi
say "$failed steps failed; the whole log: $log"
exit "$failed"
