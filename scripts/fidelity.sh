#!/usr/bin/env bash
# Prints fidelity against rate as a Markdown table: KL divergence to the f16 cache by llama-perplexity, every key read
# through its code (strict mode, the first 4 tokens dense), beside llama.cpp's own caches.
#     scripts/fidelity.sh MODEL.gguf TEXT.txt [ARTIFACT.kvc.gguf] [CONTEXT=512] [CHUNKS=8]
# THREADS: of llama-perplexity, all by default.
source "$(dirname "$0")/common.sh"

[[ $# -ge 2 ]] || die "usage: scripts/fidelity.sh MODEL.gguf TEXT.txt [ARTIFACT.kvc.gguf] [CONTEXT] [CHUNKS]"
model=$1 text=$2 artifact=${3:-} context=${4:-512} chunks=${5:-8}
programs="$(llama_build_dir)/bin"
plugin="${KVCODEC_PLUGIN:-$(cd "$(dirname "$0")/.." && pwd)/build/release/ggml-kvcodec/libggml-kvcodec.so}"
require "$model" "$text" "$plugin" "$programs/llama-perplexity"
make_work_folder
arguments=(-m "$model" -f "$text" -c "$context" -b 512 -ub 512 --chunks "$chunks" -t "${THREADS:-$(nproc)}"
           --kl-divergence-base "$work/base")

"$programs/llama-perplexity" "${arguments[@]}" > "$work/log" 2>&1 || die "llama-perplexity failed: $(tail -1 "$work/log")"

# row NAME RATE: from the log of a --kl-divergence run.
row() {
    local number='-?[0-9.]+'
    printf '| %s | %s | %s | %s | %s | %s |\n' "$1" "$2" \
        "$(grep -aoP -- "Mean    KLD: +\K$number ± +$number" "$work/log" | tr -s ' ')" \
        "$(grep -aoP "99.9%   KLD: +\K$number" "$work/log")" \
        "$(grep -aoP "Same top p: +\K$number" "$work/log") %" \
        "$(grep -aoP -- "${number}(?= % of pairs)" "$work/log" || echo 100)"
}

host() {
    "$programs/llama-perplexity" "${arguments[@]}" --kl-divergence -ctk "$1" -ctv "$2" > "$work/log" 2>&1
    row "llama.cpp $1 / $2" "$3 %"
}

ours() {
    local name=$1 options=$2
    GGML_BACKEND_PATH="$plugin" LLAMA_ARG_DEVICE=KVCODEC KVCODEC="mode=strict,sinks=4,$options" \
        "$programs/llama-perplexity" "${arguments[@]}" --kl-divergence > "$work/log" 2>&1 || true
    row "$name" "$(grep -aoP 'rate \K[0-9.]+' "$work/log") %"
}

echo "$(date +%F), $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), ${THREADS:-$(nproc)} threads, $(basename "$model")," \
    "sha256 $(sha256sum "$model" | cut -c1-16), $(basename "$text"), context $context, $chunks chunks"
echo
echo '| cache (K / V) | rate | mean KLD | 99.9 % KLD | same top token | pairs read through codes, % |'
echo '| --- | --- | --- | --- | --- | --- |'
host q8_0 q8_0 53.1
host q8_0 q4_0 40.6
host q5_1 q5_1 37.5
host q4_0 q4_0 28.1
for bits in 8 4 3; do
    ours "scalar $bits bits, no artifact" "codec=scalar,bits=$bits"
done
for bits in 2 3; do
    ours "TurboQuant $bits bits" "codec=turboquant,bits=$bits"
done
ours "KIVI 2 bits" "codec=kivi,bits=2"
ours "per token, 2 bits" "codec=token,bits=2"
if [[ -n $artifact ]]; then
    for bits in 4 3; do
        ours "scalar $bits bits, with artifact" "codec=scalar,bits=$bits,artifact=$artifact"
    done
    for codec in transform dictionary; do
        for budget in 25 20 15 12.5 10 8 6; do
            ours "$codec at $budget %" "codec=$codec,budget=$budget%,artifact=$artifact"
        done
    done
    ours "dictionary s=8, published layout" "codec=dictionary,s=8,layout=published,artifact=$artifact"
fi
