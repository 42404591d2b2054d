#!/usr/bin/env bash
# Serves REQUESTS mixed requests (1600, about half an hour on two cores) with kvcodec and a quarter of them with the f16
# cache, and compares: soak.sh [REQUESTS] [OPTIONS OF kvcodec run].
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

requests="${1:-1600}"
options="${*:2}"
options="${options:---budget 20%}"
KVCODEC_TOOL="$PWD/build/release/tools/kvcodec"
KVCODEC_PLUGIN="$PWD/build/release/ggml-kvcodec/libggml-kvcodec.so"
require "$KVCODEC_TOOL" "$KVCODEC_PLUGIN" "$model_file"
make_work_folder
export KVCODEC_TOOL KVCODEC_PLUGIN KVCODEC_LLAMA_SRC="$llama_src" KVCODEC_TEST_WORK="$work"
KVCODEC_LLAMA_BUILD="$(llama_build_dir)"
export KVCODEC_LLAMA_BUILD
python3 tests/integration/soak.py --requests "$requests" --options="$options"
