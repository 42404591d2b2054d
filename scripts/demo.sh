#!/usr/bin/env bash
# The demo: trains an artifact for the default model, generates text through the unmodified program, and prints one
# table of llama.cpp's caches and kvcodec's: bytes, fidelity, speed. About 8 minutes on two cores once all is built.
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

programs="$(llama_build_dir)/bin"
plugin="$PWD/build/release/ggml-kvcodec/libggml-kvcodec.so"
kvcodec="$PWD/build/release/tools/kvcodec"
work="$PWD/build/demo"
threads="$(nproc)"
depth=4096
mkdir -p "$work"

step() { echo "== $*" >&2; }

step "training an artifact on text sampled from the model"
artifact="$work/SmolLM2-135M-Instruct.kvc.gguf"
"$kvcodec" train -m "$model_file" -o "$artifact" --threads "$threads" >&2

step "generating through the unmodified llama-completion with a cache at 20 %"
"$kvcodec" run --artifact "$artifact" --budget 20% -- "$programs/llama-completion" -m "$model_file" -no-cnv -n 120 \
    --temp 0 -t "$threads" -p "The three most important things about the ocean are" 2> "$work/generate.log" >&2 ||
    die "generation failed: $(tail -1 "$work/generate.log")"

# Scored on the documents of llama.cpp, which are on this disk; the artifact was trained on other text.
find "$llama_src/docs" -name '*.md' | LC_ALL=C sort | xargs cat | head -c 200000 > "$work/text"
# The micro-batch and the window stay f16 (live mode); at this context more than 70 % of pairs are read through codes.
score=("$programs/llama-perplexity" -m "$model_file" -f "$work/text" -c "$depth" -b 512 -ub 512 --chunks 1 -t "$threads"
       --kl-divergence-base "$work/logits")
speed=("$programs/llama-batched-bench" -m "$model_file" -npp "$depth" -ntg 64 -npl 1 -c $((depth + 256)) -b 512 -ub 512
       -t "$threads" -fa on)
with_plugin() {
    local options=$1
    shift
    GGML_BACKEND_PATH="$plugin" LLAMA_ARG_DEVICE=KVCODEC KVCODEC="$options" "$@"
}

step "reference logits from the f16 cache"
"${score[@]}" > "$work/log" 2>&1 || die "llama-perplexity failed: $(tail -1 "$work/log")"

# What the plug-in says of a context of N tokens: field FIELD_PATTERN of its line at load.
at_load() {
    with_plugin "$1" "$programs/llama-completion" -m "$model_file" -no-cnv -n 1 -c "$2" -t "$threads" -p Hello \
        < /dev/null 2>&1 > /dev/null | grep -aoP "$3" | head -1
}
f16_mib="$(at_load codec=scalar,bits=8 4096 'at 4096 tokens .*' |
    awk '{ printf "%.3f", $4 / $8 * 100 }')"

field() { grep -aoP -- "$1" "$2" | tail -1; }
rows=""
# row NAME RATE TOTAL_4K TOTAL_32K RESIDENT PAIRS SCORE_LOG SPEED_LOG
row() {
    local kld same tokens
    kld="$(field 'Mean    KLD: +\K[-0-9.]+' "$7")"
    same="$(field 'Same top p: +\K[0-9.]+' "$7")"
    tokens="$(grep -a '^|' "$8" | tail -1 | awk -F'|' '{ gsub(/ /, "", $9); print $9 }')"
    rows+="| $1 | $2 % | $3 | $4 | $5 | ${kld:-0} | ${same:-100} % | $6 | $tokens |"$'\n'
}
host() {
    local name=$1 rate=$2
    step "llama.cpp $name"
    if [[ $name == f16 ]]; then
        : > "$work/score"
    else
        "${score[@]}" --kl-divergence -ctk "$name" -ctv "$name" > "$work/score" 2>&1
    fi
    "${speed[@]}" -ctk "$name" -ctv "$name" > "$work/speed" 2>&1
    local total
    total="$(awk -v m="$f16_mib" -v r="$rate" 'BEGIN { printf "%.1f", m * r / 100 }')"
    row "llama.cpp $name" "$rate" "$total" "$(awk -v t="$total" 'BEGIN { printf "%.1f", t * 8 }')" "$total" "–" \
        "$work/score" "$work/speed"
}
ours() {
    local name=$1 options=$2 pairs
    step "$name"
    with_plugin "$options" "${score[@]}" --kl-divergence > "$work/score" 2>&1
    with_plugin "$options" "${speed[@]}" > "$work/speed" 2>&1
    pairs="$(field '[0-9.]+(?= % of pairs)' "$work/score")"
    awk -v p="$pairs" 'BEGIN { exit !(p >= 70) }' || die "only $pairs % of pairs were read through codes; not a result"
    row "$name" "$(field 'rate \K[0-9.]+' "$work/score")" "$(at_load "$options" 4096 'tokens \K[0-9.]+')" \
        "$(at_load "$options" 32768 'tokens \K[0-9.]+')" "$(field 'resident \K[0-9.]+' "$work/score")" "$pairs %" \
        "$work/score" "$work/speed"
}

host f16 100
host q8_0 53.1
host q4_0 28.1
ours "kvcodec, no artifact, 20 %" "budget=20%"
for budget in 26 20 13.5; do
    ours "kvcodec, $budget %" "budget=$budget%,artifact=$artifact"
done
rm -f "$work/logits"

cat << END

SmolLM2-135M-Instruct, $(date +%F), $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $threads threads.
Sizes in MiB. KLD: mean KL divergence to the f16 cache over 2,047 tokens at context $depth, live mode
(window 128, sinks 4, micro-batch 512). Speed: tokens per second generated at depth $depth.

| cache | rate | total at 4k | total at 32k | resident at 4k | mean KLD | same top token | pairs read through codes | tok/s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
$rows
END
