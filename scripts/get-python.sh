#!/usr/bin/env bash
# Installs the Python packages of the integration tests into the cache folder, with llama-cpp-python's own Python files,
# and prints that folder. Their llama.cpp is the one of get-llama-cpp.sh.
source "$(dirname "$0")/common.sh"

requirements="$(cd "$(dirname "$0")/.." && pwd)/tests/integration/requirements.txt"
folder="$kvcodec_cache/python"

mkdir -p "$kvcodec_cache"
exec 9> "$kvcodec_cache/python.lock"
flock 9

stamp="$(python3 --version) $llama_sha256 $(sha256sum < "$requirements")"
if [[ ! -f "$folder/.installed" || "$(< "$folder/.installed")" != "$stamp" ]]; then
    "$(dirname "$0")/get-llama-cpp.sh" --source > /dev/null
    rm -rf "$folder"
    mkdir -p "$folder"
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action ignore \
        --target "$folder" --requirement "$requirements" >&2 ||
        die "pip could not install $requirements; check the network and run the command again"
    tar -xzf "$kvcodec_cache/downloads/$llama_archive" -C "$folder" --strip-components=1 --wildcards '*/llama_cpp/*'
    echo "$stamp" > "$folder/.installed"
fi
echo "$folder"
