#!/usr/bin/env bash
# What sharing out a budget by measured sensitivity is worth in KL divergence, beside LoRC's rule from the weights alone and
# none: a Markdown table. A quarter of an hour on one core.
#     scripts/sensitivity.sh MODEL.gguf TEXT.txt
# THREADS: all by default.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/compare_training.sh"

for sensitivity in none condition measured; do
    make $sensitivity --sensitivity $sensitivity --tokens 8192
done
compare 4
