#!/bin/sh
# llama.cpp on the same device, the same models, the same questions as tests/gpu.sh, where a build of it is given:
#   tests/gpu_rival.sh --rival DIR-OF-llama-bench [--build DIR-OF-gpu.sh] [--device cuda:0] [--models "FILE.gguf ..."]
#                      [--presets "ARCH:PRESET:TYPE ..."] [--tiny]
# Presets are written as files by hearth synth (disk for one at a time is enough). Prints for each question ours, theirs and the
# ratio. --tiny: small questions, to try this script without a device.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build-gpu rival='' device=cuda:0 models='' presets='llama:8b:Q8_0 llama:8b:Q4_K_M llama:70b:IQ3_M qwen3moe:30b-a3b:Q8_0' failed=0
prompts='512,4096' gen=64 depths='0,8192,32768' repeats=3

while [ $# -gt 0 ]; do
    case $1 in
    --rival) rival=$2; shift 2 ;;
    --build) build=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --models) models=$2 presets=''; shift 2 ;;
    --presets) presets=$2; shift 2 ;;
    --tiny) prompts=16 gen=2 depths=0,8 repeats=1; shift ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
bin=$build/bin
if [ ! -x "$rival/llama-bench" ]; then
    echo "no llama-bench in '$rival': --rival DIR" >&2
    exit 2
fi
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT

# The number behind a key of a line of JSON.
field() { sed -n "s/.*\"$1\": *\([0-9.]*\).*/\1/p"; }

# ratio WHAT OURS THEIRS
ratio() { awk -v what="$1" -v ours="$2" -v theirs="$3" 'BEGIN { printf "%s\t%s\t%s\t%.3f\n", what, ours, theirs, (theirs > 0 ? ours / theirs : 0) }'; }

# Every question of one file to both, one after the other, so that a warm device is warm for both.
compare() {
    file=$1 name=$2
    for prompt in $(echo "$prompts" | tr , ' '); do
        ours=$("$bin/hearth-bench" --direct "$file" --device "$device" -p "$prompt" -n 1 -r "$repeats" --json | field prefill_tps)
        theirs=$("$rival/llama-bench" -m "$file" -p "$prompt" -n 0 -ngl 99 -fa 1 -r "$repeats" -o jsonl | field avg_ts)
        ratio "$name	prompt $prompt" "${ours:-0}" "${theirs:-0}"
    done
    for depth in $(echo "$depths" | tr , ' '); do
        ours=$("$bin/hearth-bench" --direct "$file" --device "$device" -p 1 -d "$depth" -n "$gen" -r "$repeats" --json | field decode_tps)
        theirs=$("$rival/llama-bench" -m "$file" -p 0 -n "$gen" -d "$depth" -ngl 99 -fa 1 -r "$repeats" -o jsonl | field avg_ts)
        ratio "$name	decode at $depth" "${ours:-0}" "${theirs:-0}"
    done
}

printf 'model\twhat\thearth t/s\tllama.cpp t/s\tratio\n'
for model in $models; do
    compare "$model" "$(basename "$model")"
done
for preset in $presets; do
    arch=${preset%%:*} rest=${preset#*:}
    if "$bin/hearth-synth" --arch "$arch" --preset "${rest%%:*}" --type "${rest#*:}" -o "$work/model.gguf" 2>"$work/why"; then
        compare "$work/model.gguf" "$preset"
    else
        echo "FAIL $preset: $(tail -1 "$work/why")"
        failed=$((failed + 1))
    fi
    rm -f "$work/model.gguf"
done
exit "$failed"
