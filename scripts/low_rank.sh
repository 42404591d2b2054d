#!/usr/bin/env bash
# Prints what low ranks of the K and V projections cost (LoRC) as a Markdown table: KL divergence to the model as it is, both
# with an f16 cache, by llama-perplexity. Each row writes the model once, with its projections in F32.
#     scripts/low_rank.sh MODEL.gguf TEXT.txt [CONTEXT=512] [CHUNKS=4]
# THREADS: all by default.
source "$(dirname "$0")/common.sh"

[[ $# -ge 2 ]] || die "usage: scripts/low_rank.sh MODEL.gguf TEXT.txt [CONTEXT] [CHUNKS]"
model=$1 text=$2 context=${3:-512} chunks=${4:-4}
threads="${THREADS:-$(nproc)}"
perplexity="$(llama_build_dir)/bin/llama-perplexity"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
for file in "$model" "$text" "$kvcodec" "$perplexity"; do
    [[ -f $file ]] || die "$file is missing; run \`make demo\` once, or name another file"
done
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
arguments=(-f "$text" -c "$context" -b 512 -ub 512 --chunks "$chunks" -t "$threads" --kl-divergence-base "$work/base")
"$perplexity" -m "$model" "${arguments[@]}" > "$work/log" 2>&1 || die "llama-perplexity failed: $(tail -1 "$work/log")"

# row NAME ARGUMENTS...
row() {
    local name=$1 number='-?[0-9.]+'
    shift
    "$kvcodec" lowrank -m "$model" --emit-model "$work/model.gguf" --threads "$threads" "$@" > "$work/report" 2> "$work/log" ||
        die "kvcodec lowrank failed: $(tail -1 "$work/log")"
    "$perplexity" -m "$work/model.gguf" "${arguments[@]}" --kl-divergence > "$work/log" 2>&1 ||
        die "llama-perplexity failed: $(tail -1 "$work/log")"
    local kld same
    kld="$(grep -aoP -- "Mean    KLD: +\K$number ± +$number" "$work/log" | tr -s ' ')" || die "$name: no divergence"
    same="$(grep -aoP "Same top p: +\K$number" "$work/log")" || die "$name: no share of top tokens"
    printf '| %s | %s %% | %s | %s %% |\n' "$name" "$(grep -oP "kept, \K$number" "$work/report")" "$kld" "$same"
}

echo "$(date +%F), $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $threads threads, $(basename "$model")," \
    "sha256 $(sha256sum "$model" | cut -c1-16), $(basename "$text"), context $context, $chunks chunks"
echo
echo '| basis and ranks | kept | mean KLD | same top token |'
echo '| --- | --- | --- | --- |'
row "full rank, in F32" --keep 100%
for keep in 80% 60%; do
    for basis in weights whitened; do
        row "$basis, progressive" --keep $keep --basis $basis
        row "$basis, uniform" --keep $keep --basis $basis --uniform
    done
done
row "whitened, uniform, by head" --keep 60% --basis whitened --uniform --per-head
row "whitened, uniform, K 80 %, V 40 %" --keep-k 80% --keep-v 40% --basis whitened --uniform
row "whitened, uniform, K 40 %, V 80 %" --keep-k 40% --keep-v 80% --basis whitened --uniform
row "whitened, uniform, K alone" --keep-k 60% --keep-v 100% --basis whitened --uniform
row "whitened, uniform, V alone" --keep-k 100% --keep-v 60% --basis whitened --uniform
