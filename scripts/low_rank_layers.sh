#!/usr/bin/env bash
# What low ranks cost in each layer alone: `kvcodec lowrank` at 60 % of the ranks, all other layers with an f16 cache. Prints
# a Markdown table and draws it. A quarter of an hour for a small model on one core.
#     scripts/low_rank_layers.sh MODEL.gguf TEXT.txt FIGURE.svg [CHUNKS=2]
# THREADS: all by default.
source "$(dirname "$0")/common.sh"

[[ $# -ge 3 ]] || die "usage: scripts/low_rank_layers.sh MODEL.gguf TEXT.txt FIGURE.svg [CHUNKS]"
model=$1 text=$2 figure=$3 chunks=${4:-2}
threads="${THREADS:-$(nproc)}"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
require "$model" "$text" "$kvcodec"
make_work_folder

# make NAME ARGUMENTS...: an artifact with the same ranks in all layers.
make() {
    local name=$1
    shift
    "$kvcodec" lowrank -m "$model" -o "$work/$name" --threads "$threads" --uniform "$@" > "$work/report" 2> "$work/log" ||
        die "kvcodec lowrank failed: $(tail -1 "$work/log")"
}
make weights --keep 60%
make keys --basis data --keep-k 60% --keep-v 100%
make values --basis data --keep-k 100% --keep-v 60%

layers="$(awk '/[|]/ && $1 ~ /^[0-9]+$/ {print $1}' "$work/report")"
[[ -n $layers ]] || die "kvcodec lowrank reported no layer: $(head -3 "$work/report")"
caches=''
for layer in $layers; do
    caches+="${caches:+,}kvcodec:codec=latent:bits=16:sinks=4:layers=$layer"
done
"$kvcodec" eval -m "$model" -a "$work/weights" -a "$work/keys" -a "$work/values" --suite kld --text "$text" \
    --ctx-size 512 --chunks "$chunks" --together 12 --threads "$threads" --cache "$caches" --json "$work/results" \
    --svg "$figure"
