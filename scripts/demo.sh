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
echo "== 3. Compare" >&2
python3 scripts/demo_table.py --programs "$programs" --documents "$llama_src" --model "$model_file" \
    --plugin build/release/ggml-kvcodec/libggml-kvcodec.so --artifact "$artifact" --work "$work"
cat << TEXT

Use it:     $kvcodec run --artifact $artifact --budget 20% -- $programs/llama-server -m $model_file
Look at it: $kvcodec inspect $artifact
TEXT
