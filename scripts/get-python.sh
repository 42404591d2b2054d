#!/usr/bin/env bash
# Installs the Python packages of the integration tests into the cache folder, with llama-cpp-python's own Python files,
# and prints that folder. Their llama.cpp is the one of get-llama-cpp.sh.
source "$(dirname "$0")/common.sh"

requirements="$(cd "$(dirname "$0")/.." && pwd)/tests/integration/requirements.txt"
folder="$kvcodec_cache/python"

mkdir -p "$kvcodec_cache"
exec 9> "$kvcodec_cache/python.lock"
flock 9

if ! cmp --silent "$requirements" "$folder/requirements.txt"; then
    download "$llama_package" "$llama_archive" "$llama_sha256"
    rm -rf "$folder"
    mkdir -p "$folder"
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action ignore \
        --target "$folder" --requirement "$requirements" >&2 ||
        die "pip could not install $requirements; check the network and run the command again"
    tar -xzf "$kvcodec_cache/downloads/$llama_archive" -C "$folder" --strip-components=1 --wildcards '*/llama_cpp/*'
    cp "$requirements" "$folder/requirements.txt"
fi
echo "$folder"
