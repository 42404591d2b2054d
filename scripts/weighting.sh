#!/usr/bin/env bash
# What weighting the transform's directions by their readers is worth in KL divergence, and coding heads together: the last
# table of docs/results/codes.md. Twenty minutes on one core.
#     scripts/weighting.sh MODEL.gguf TEXT.txt
# THREADS: all by default.
source "$(dirname "$0")/common.sh"

[[ $# -eq 2 ]] || die "usage: scripts/weighting.sh MODEL.gguf TEXT.txt"
model=$1 text=$2 threads="${THREADS:-$(nproc)}"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
artifacts=()
# make NAME ARGUMENTS...
make() {
    local name=$1
    shift
    # Dictionaries are not used here: rows of the text do.
    "$kvcodec" train -m "$model" -o "$work/$name" --atoms 64 --sweeps 0 --threads "$threads" "$@" >&2
    artifacts+=(-a "$work/$name")
}
make none --weighting none
make full --weighting full
make tempered
make tempered-together --joint-width 256
"$kvcodec" eval -m "$model" "${artifacts[@]}" --threads "$threads" --suite kld --text "$text" --ctx-size 512 --chunks 8 \
    --together 12 --cache "$(for budget in 20% 12.5% 8%; do printf 'kvcodec:codec=transform:budget=%s:sinks=4,' $budget; done | sed 's/,$//')"
