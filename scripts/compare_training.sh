# Shared by the scripts that compare ways to train in KL divergence. Sourced after common.sh, with the arguments
# MODEL.gguf TEXT.txt; not run. THREADS: all by default.

[[ $# -eq 2 ]] || die "usage: $0 MODEL.gguf TEXT.txt"
model=$1 text=$2 threads="${THREADS:-$(nproc)}"
kvcodec="${KVCODEC_TOOL:-$(cd "$(dirname "$0")/.." && pwd)/build/release/tools/kvcodec}"
make_work_folder
artifacts=()

# make NAME ARGUMENTS...: an artifact of `kvcodec train`.
make() {
    local name=$1
    shift
    # Dictionaries are not used here: rows of the text do.
    "$kvcodec" train -m "$model" -o "$work/$name" --atoms 64 --sweeps 0 --threads "$threads" "$@" >&2
    artifacts+=(-a "$work/$name")
}

# compare CHUNKS: the transform with each artifact, at three budgets, as a Markdown table.
compare() {
    "$kvcodec" eval -m "$model" "${artifacts[@]}" --threads "$threads" --suite kld --text "$text" --ctx-size 512 \
        --chunks "$1" --together 12 \
        --cache "$(for budget in 20% 12.5% 8%; do printf 'kvcodec:codec=transform:budget=%s:sinks=4,' $budget; done | sed 's/,$//')"
}
