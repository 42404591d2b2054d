#!/usr/bin/env bash
# Fuzzes the reader of artifacts and the decoders of codes, each for so many seconds on one thread.
#     scripts/fuzz.sh [SECONDS=600]
# Needs clang with libFuzzer (Debian 12: clang libclang-rt-14-dev). What it learns stays in build/fuzz/corpus; an input that
# breaks something is left in build/fuzz.
source "$(dirname "$0")/common.sh"

cd "$(dirname "$0")/.."
seconds="${1:-600}"
cmake --preset fuzz > /dev/null
cmake --build --preset fuzz
for target in artifact codes; do
    corpus="build/fuzz/corpus/$target"
    mkdir -p "$corpus"
    "build/fuzz/tests/fuzz/kvcodec_${target}_fuzz" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 \
        -max_len=32768 -artifact_prefix=build/fuzz/ -print_final_stats=1 "$corpus" "tests/fuzz/seeds/$target" \
        > "build/fuzz/$target.log" 2>&1 ||
        { tail -40 "build/fuzz/$target.log"; die "the fuzzer of $target found something: see build/fuzz"; }
    echo "$target: $(awk '/number_of_executed_units/ {print $2}' "build/fuzz/$target.log") inputs in $seconds s, none broke anything"
done
