# The commands of the README. Each is a few lines over CMake and the scripts in scripts/, which work on their own, too.

LLAMA_SRC ?=
LLAMA_BUILD ?=

.DEFAULT_GOAL := help
.PHONY: help deps demo test test-arm64 bench plugin clean

help:
	@echo "make demo      train on the default model, generate with it and print the comparison table"
	@echo "make test      build with warnings as errors; run unit, sanitizer and integration tests"
	@echo "make test-arm64  build for 64-bit ARM; run the unit tests under QEMU"
	@echo "make bench     build and run the micro-benchmarks"
	@echo "make plugin LLAMA_SRC=DIR [LLAMA_BUILD=DIR]"
	@echo "               build only the plug-in, for a llama.cpp of your own"
	@echo "make deps      install missing packages (the other targets do it themselves)"
	@echo "make clean     remove build/; the cache folder with llama.cpp and models stays"

deps:
	@scripts/deps.sh

demo: deps
	@scripts/build.sh
	@scripts/demo.sh

test: deps
	@scripts/test.sh

test-arm64:
	@scripts/test_arm64.sh

bench: deps
	@scripts/bench.sh

plugin:
	@scripts/plugin.sh "$(LLAMA_SRC)" "$(LLAMA_BUILD)"

clean:
	rm -rf build
