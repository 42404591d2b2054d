"""Runs llama.cpp's programs for the integration tests, with the plug-in and without."""

import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

SKIPPED = 77  # what ctest takes for "skipped"
TIMEOUT_S = 1200


def _environment_path(name):
    value = os.environ.get(name, "")
    return Path(value) if value else None


TOOL = _environment_path("KVCODEC_TOOL")
PLUGIN = _environment_path("KVCODEC_PLUGIN")
LLAMA_SRC = _environment_path("KVCODEC_LLAMA_SRC")
PROGRAMS = Path(os.environ.get("KVCODEC_LLAMA_BUILD", "")) / "bin"
WORK = _environment_path("KVCODEC_TEST_WORK")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvcodec"
MODEL = _environment_path("KVCODEC_TEST_MODEL") or CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def program(name):
    return str(PROGRAMS / name)


def missing():
    """What these tests need and cannot find, or None."""
    for what, path in [
        ("the kvcodec command", TOOL),
        ("the plug-in", PLUGIN),
        ("llama.cpp's programs (scripts/get-llama-cpp.sh)", PROGRAMS / "llama-server"),
        ("the test model (scripts/get-model.sh)", MODEL),
    ]:
        if path is None or not path.exists():
            return f"{what} not found: {path}"
    return None


def clean_environment(**variables):
    """The environment without the user's own settings of llama.cpp and kvcodec."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("LLAMA_", "GGML_", "KVCODEC"))
    }
    environment.update(variables)
    return environment


class Result:
    def __init__(self, completed):
        self.code = completed.returncode
        self.out = completed.stdout.decode(errors="replace")
        self.err = completed.stderr.decode(errors="replace")

    def messages(self):
        """What the plug-in and the command said, without the host's time stamps."""
        return [line[line.index("kvcodec: "):] for line in self.err.splitlines() if "kvcodec: " in line]

    def __str__(self):
        return f"exit code {self.code}\n--- stdout\n{self.out[-4000:]}\n--- stderr\n{self.err[-4000:]}"


def execute(command, environment):
    return Result(
        subprocess.run(
            [str(word) for word in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    )


def plain(name, *arguments):
    """The program as it is."""
    return execute([program(name), *arguments], clean_environment())


def with_plugin(name, options, *arguments, **variables):
    """The program with the plug-in loaded by hand; `options` is the text of KVCODEC, `variables` more of the
    environment."""
    return execute(
        [program(name), *arguments],
        clean_environment(GGML_BACKEND_PATH=str(PLUGIN), LLAMA_ARG_DEVICE="KVCODEC", KVCODEC=options, **variables),
    )


def kvcodec(*arguments, **variables):
    return execute([TOOL, *arguments], clean_environment(**variables))


def completion_arguments(prompt, n_predict, *more):
    """Greedy completion on two threads; standard output is prompt and text."""
    return ["-m", MODEL, "-no-cnv", "--temp", "0", "-t", "2", "-n", n_predict, "-p", prompt, *more]


def document(n_bytes):
    """English text that is on this disk anyway: the documents of llama.cpp."""
    text = ""
    for path in sorted((LLAMA_SRC / "docs").glob("**/*.md")):
        text += path.read_text(errors="replace")
        if len(text) >= n_bytes:
            break
    return text[:n_bytes]


def document_file(n_bytes):
    path = WORK / f"document-{n_bytes}.txt"
    path.write_text(document(n_bytes))
    return path


def small_artifact():
    """An artifact of the test model, quickly trained; kept until the command changes."""
    path = WORK / "small.kvc.gguf"
    if not path.exists() or path.stat().st_mtime < TOOL.stat().st_mtime:
        result = kvcodec(
            "train", "-m", MODEL, "-o", path, "--tokens", 2048, "--atoms", 256, "--sweeps", 2, "--threads", 2
        )
        if result.code != 0:
            raise AssertionError(f"kvcodec train failed: {result}")
    return path


class LoadLine:
    """The plug-in's line when all layers are known."""

    def __init__(self, result):
        match = re.search(
            r"(\d+) of (\d+) layers compressed \((.*)\); rate ([\d.]+) % of f16; "
            r"at (\d+) tokens ([\d.]+) MiB in all, ([\d.]+) % of f16",
            result.err,
        )
        if match is None:
            raise AssertionError(f"the plug-in printed no summary of what it compresses: {result}")
        self.compressed, self.layers = int(match[1]), int(match[2])
        self.codecs = match[3]
        self.rate_percent = float(match[4])
        self.tokens = int(match[5])
        self.total_mib = float(match[6])
        self.total_percent = float(match[7])


class EndLine:
    """The plug-in's line at the end."""

    def __init__(self, result):
        match = re.search(
            r"(\d+) cells coded, (\d+) dense; resident ([\d.]+) MiB, ([\d.]+) % of the ([\d.]+) MiB of f16; "
            r"([\d.]+) % of pairs read through codes; .*\((\d+) calls in code space, (\d+) by blocks, "
            r"(\d+) rows rebuilt\)",
            result.err,
        )
        if match is None:
            raise AssertionError(f"the plug-in printed no summary at its end: {result}")
        self.coded, self.dense = int(match[1]), int(match[2])
        self.resident_mib = float(match[3])
        self.resident_percent = float(match[4])
        self.f16_mib = float(match[5])
        self.pairs_percent = float(match[6])
        self.code_space_calls, self.block_calls = int(match[7]), int(match[8])
        self.rows_rebuilt = int(match[9])


def main():
    """Runs the tests of the calling module."""
    reason = missing()
    if reason is not None:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
    WORK.mkdir(parents=True, exist_ok=True)
    unittest.main(verbosity=2)
