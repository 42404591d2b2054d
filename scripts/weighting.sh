#!/usr/bin/env bash
# What weighting the transform's directions by their readers is worth in KL divergence, and coding heads together: the last
# table of docs/results/codes.md. Twenty minutes on one core.
#     scripts/weighting.sh MODEL.gguf TEXT.txt
# THREADS: all by default.
source "$(dirname "$0")/common.sh"
source "$(dirname "$0")/compare_training.sh"

make none --weighting none
make full --weighting full
make tempered
make tempered-together --joint-width 256
compare 8
