#!/usr/bin/env bash
# Prints what a token of the window is worth as a Markdown table: the same bytes at 4096 tokens spent on codes or on the
# window (live mode). Windows are those that make totals equal, each with the rate that its budget comes to.
#     scripts/window.sh MODEL.gguf TEXT.txt ARTIFACT [CHUNKS=2]
# THREADS: all by default.
source "$(dirname "$0")/common.sh"

[[ $# -ge 3 ]] || die "usage: scripts/window.sh MODEL.gguf TEXT.txt ARTIFACT [CHUNKS]"
model=$1 text=$2 artifact=$3 chunks=${4:-2}
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
require "$model" "$text" "$artifact" "$kvcodec"
caches=
for codec in dictionary:20%:64 dictionary:15%:317 dictionary:12.5%:386 transform:20%:64 transform:15%:301; do
    IFS=: read -r name budget window <<< "$codec"
    caches+="${caches:+,}kvcodec:codec=$name:budget=$budget:window=$window"
done
"$kvcodec" eval -m "$model" -a "$artifact" --suite kld --mode live --text "$text" --ctx-size 4096 --chunks "$chunks" \
    --together 8 --threads "${THREADS:-$(nproc)}" --cache "$caches"
