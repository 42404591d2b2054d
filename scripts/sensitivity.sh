#!/usr/bin/env bash
# What sharing out a budget by measured sensitivity is worth in KL divergence, beside LoRC's rule from the weights alone and
# none: a Markdown table. A quarter of an hour on one core.
#     scripts/sensitivity.sh MODEL.gguf TEXT.txt
# THREADS: all by default.
source "$(dirname "$0")/common.sh"

[[ $# -eq 2 ]] || die "usage: scripts/sensitivity.sh MODEL.gguf TEXT.txt"
model=$1 text=$2 threads="${THREADS:-$(nproc)}"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
artifacts=()
for sensitivity in none condition measured; do
    # Dictionaries are not used here: rows of the text do.
    "$kvcodec" train -m "$model" -o "$work/$sensitivity" --sensitivity $sensitivity --atoms 64 --sweeps 0 --tokens 8192 \
        --threads "$threads" >&2
    artifacts+=(-a "$work/$sensitivity")
done
"$kvcodec" eval -m "$model" "${artifacts[@]}" --threads "$threads" --suite kld --text "$text" --ctx-size 512 --chunks 4 \
    --together 9 --cache "$(for budget in 20% 12.5% 8%; do printf 'kvcodec:codec=transform:budget=%s:sinks=4,' $budget; done | sed 's/,$//')"
