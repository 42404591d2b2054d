#!/usr/bin/env bash
# Trains an artifact for the default model on text that the model writes itself, generates text with an unmodified
# llama.cpp program and compares caches in one table. Needs what scripts/build.sh builds.
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

kvcodec=build/release/tools/kvcodec
programs="$(llama_build_dir)/bin"
work=build/demo
artifact="$work/SmolLM2-135M-Instruct.kvc.gguf"
for file in "$kvcodec" "$programs/llama-completion" "$model_file"; do
    [[ -f $file ]] || die "$file is missing; run \`make demo\`"
done
mkdir -p "$work"

# run COMMAND...: shows the command, then runs it.
run() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}

tokens=12288
echo "== 1. Train: the model writes $tokens tokens, each layer learns a dictionary of their keys and values" >&2
run "$kvcodec" train -m "$model_file" -o "$artifact" --tokens "$tokens" > "$work/train.log"
tail -2 "$work/train.log" >&2

echo >&2
echo "== 2. Generate: llama-completion as it comes, its cache compressed" >&2
run "$kvcodec" run --artifact "$artifact" --budget 20% -- "$programs/llama-completion" -m "$model_file" -no-cnv \
    -n 160 --temp 0.7 --seed 1 -p "The main reason why the sea is salty is" 2> "$work/generate.log"
grep -a "kvcodec: .*\(layers compressed\|cells coded\)" "$work/generate.log" | sed 's/.*kvcodec: /  /' >&2

echo >&2
echo "== 3. Compare, over text that neither the model nor the training has seen here: llama.cpp's documents" >&2
text="$work/documents.txt"
find "$llama_src/docs" -name '*.md' -print0 | sort --zero-terminated | xargs --null cat > "$text"
rm -f "$work/results.json"  # of an earlier artifact
caches="q8_0,q4_0,kvcodec:20%:sinks=4:artifact=none"
for budget in 26 20 13.5; do caches+=",kvcodec:$budget%:sinks=4"; done
run "$kvcodec" eval -m "$model_file" -a "$artifact" --cache "$caches" --suite kld,speed --text "$text" \
    --ctx-size 2048 --chunks 2 --together 6 --depths 4096 --sequences 0 --json "$work/results.json" \
    --html "$work/results.html" > "$work/tables.md"
sed '/^\*\*kld/,$d' "$work/tables.md"  # the overview; the rest is in the page
cat << TEXT

More tables and charts: $work/results.html
Use it:     $kvcodec run --artifact $artifact --budget 20% -- $programs/llama-server -m $model_file
Look at it: $kvcodec inspect $artifact
TEXT
