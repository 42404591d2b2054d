#!/usr/bin/env bash
# What dictionaries and principal directions learned from one kind of text are worth on another: the tables of
# docs/results/dictionaries.md and their pictures. About an hour on two cores.
#     scripts/universality.sh MODEL.gguf DATA
# TABLES: a pattern of the titles of tables, all by default.
# DATA is a folder with wiki-train.txt, wikitext2-valid.txt, moby-dick.txt, pud-french.txt, pud-hindi.txt,
# pud-chinese.txt and gsm8k-test.jsonl. Code is llama.cpp's own.
source "$(dirname "$0")/common.sh"

[[ $# -eq 2 ]] || die "usage: scripts/universality.sh MODEL.gguf DATA"
model=$1 data=$2
cd "$(dirname "$0")/.."
kvcodec="${KVCODEC:-build/release/tools/kvcodec}"
work=build/universality
for file in "$kvcodec" "$model" "$data/wiki-train.txt"; do
    [[ -f $file ]] || die "$file is missing"
done
mkdir -p "$work"
cat "$llama_src"/src/llama-*.cpp > "$work/code.txt"
cat "$llama_src"/ggml/src/ggml-cpu/*.cpp > "$work/other-code.txt"
python3 -c 'import json, sys
for line in open(sys.argv[1]):
    problem = json.loads(line)
    print(problem["question"], problem["answer"], sep="\n", end="\n\n")' "$data/gsm8k-test.jsonl" > "$work/maths.txt"

cmake --build build/release --target kvcodec_dictionary_study >&2
build/release/tools/kvcodec_dictionary_study "$model" 6144 docs/results "${TABLES:-.}" own= wikipedia="$data/wiki-train.txt" \
    code="$work/code.txt" maths="$work/maths.txt" fiction="$data/moby-dick.txt" french="$data/pud-french.txt" \
    hindi="$data/pud-hindi.txt" chinese="$data/pud-chinese.txt"

# KL divergence: own text, English Wikipedia, code.
[[ -f $work/own.kvc.gguf ]] || "$kvcodec" train -m "$model" -o "$work/own.kvc.gguf" --sensitivity none >&2
[[ -f $work/wikipedia.kvc.gguf ]] || "$kvcodec" train -m "$model" -o "$work/wikipedia.kvc.gguf" \
    --sensitivity none --text "$data/wiki-train.txt" >&2
[[ -f $work/code.kvc.gguf ]] || "$kvcodec" train -m "$model" -o "$work/code.kvc.gguf" --sensitivity none \
    --text "$work/code.txt" >&2
"$kvcodec" eval -m "$model" -a "$work/own.kvc.gguf" -a "$work/wikipedia.kvc.gguf" -a "$work/code.kvc.gguf" --suite kld \
    --threads "${THREADS:-$(nproc)}" --ctx-size 512 --chunks 4 --together 6 --json "$work/kld.json" \
    --text "$data/wikitext2-valid.txt" --text "$data/pud-french.txt" --text "$work/other-code.txt" \
    --cache kvcodec:codec=transform:budget=12.5%:sinks=4,kvcodec:codec=dictionary:budget=20%:sinks=4
