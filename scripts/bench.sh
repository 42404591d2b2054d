#!/usr/bin/env bash
# Builds the micro-benchmarks and runs them one after the other. Arguments go to Google Benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset bench
cmake --build --preset bench
for benchmark in build/bench/bench/*_bench; do
    "$benchmark" "$@"
done
