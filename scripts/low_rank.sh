#!/usr/bin/env bash
# Prints what low ranks of the K and V projections cost (LoRC) as Markdown tables: artifacts of `kvcodec lowrank`, read in
# strict mode, beside the model's f16 cache. Takes an hour for a model of a billion parameters on two cores.
#     scripts/low_rank.sh MODEL.gguf TEXT.txt [CONTEXT=512] [CHUNKS=4] [full|brief]
# brief: fewer rows. THREADS: all by default. SVG: file for the curve of all rows.
source "$(dirname "$0")/common.sh"

command -v time > /dev/null || die "GNU time is missing: apt install time"
[[ $# -ge 2 ]] || die "usage: scripts/low_rank.sh MODEL.gguf TEXT.txt [CONTEXT] [CHUNKS] [full|brief]"
model=$1 text=$2 context=${3:-512} chunks=${4:-4} plan=${5:-full}
threads="${THREADS:-$(nproc)}"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
require "$model" "$text" "$kvcodec"
make_work_folder
artifacts=()

# make NAME ARGUMENTS...: an artifact, and a line with the time and memory that it took.
make() {
    local name=$1 start seconds
    shift
    start=$SECONDS
    command time -f '%M' -o "$work/memory" "$kvcodec" lowrank -m "$model" -o "$work/$name" --threads "$threads" "$@" \
        > "$work/report" 2> "$work/log" || die "kvcodec lowrank failed: $(tail -1 "$work/log")"
    seconds=$((SECONDS - start))
    printf '| %s | `%s` | %s %% | %s s | %s MiB |\n' "$name" "$*" "$(grep -oP 'kept, \K[0-9.]+' "$work/report")" "$seconds" \
        "$(($(cat "$work/memory") / 1024))"
    artifacts+=(-a "$work/$name")
}

# evaluate BITS...: all artifacts with latents of so many bits; prints these and those before them.
evaluate() {
    local caches='' bits
    for bits in "$@"; do
        caches+="${caches:+,}kvcodec:codec=latent:bits=$bits:sinks=4"
    done
    "$kvcodec" eval -m "$model" "${artifacts[@]}" --suite kld --text "$text" --ctx-size "$context" --chunks "$chunks" \
        --together 8 --threads "$threads" --cache "$caches" --json "$work/results" ${SVG:+--svg "$SVG"} 2> "$work/log" || die "kvcodec eval failed: $(tail -1 "$work/log")"
}

echo '| artifact | `kvcodec lowrank` | kept | time | peak memory |'
echo '| --- | --- | --- | --- | --- |'
make measured-60 --keep 60% --basis data --measured
make measured-80 --keep 80% --basis data --measured
quantised=("${artifacts[@]}")
make progressive-60 --keep 60% --basis data
make uniform-60 --keep 60% --basis data --uniform
make measured-whitened-60 --keep 60% --basis whitened --measured
make weights-progressive-60 --keep 60%
make weights-uniform-60 --keep 60% --uniform
if [[ $plan == full ]]; then
    make full-rank --keep 100% --basis data
    make measured-heads-60 --keep 60% --basis data --measured --per-head
    make progressive-whitened-60 --keep 60% --basis whitened
    make uniform-whitened-60 --keep 60% --basis whitened --uniform
    make uniform-keys-40-values-80 --keep-k 40% --keep-v 80% --basis data --uniform
    make uniform-keys-80-values-40 --keep-k 80% --keep-v 40% --basis data --uniform
    make uniform-keys-60-values-full --keep-k 60% --keep-v 100% --basis data --uniform
    make uniform-keys-full-values-60 --keep-k 100% --keep-v 60% --basis data --uniform
    make weights-progressive-80 --keep 80%
    make weights-uniform-80 --keep 80% --uniform
fi
echo
evaluate 16 > /dev/null
artifacts=("${quantised[@]}")
evaluate 8 4 3
