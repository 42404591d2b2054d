"""Measures llama.cpp's own caches and kvcodec's on one model and prints them as one Markdown table."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

CONTEXT = 2048  # of the texts that are scored
CHUNKS = 2
DEPTH = 4096  # at which decoding is timed
GENERATED = 32
SHORT, LONG = 4096, 32768  # tokens at which totals are given
MIN_PAIRS_PERCENT = 70.0


class Cache:
    """One row of the table."""

    def __init__(self, name, host_type=None, bits=None, options=None):
        self.name = name
        self.host_type = host_type  # of llama.cpp's own cache
        self.bits = bits  # an element takes there
        self.options = options  # of kvcodec


def caches(artifact):
    return [
        Cache("f16", "f16", 16),
        Cache("q8_0", "q8_0", 8.5),
        Cache("q4_0", "q4_0", 4.5),
        Cache("kvcodec 20 %, no artifact", options="budget=20%"),
        Cache("kvcodec 26 %", options=f"budget=26%,artifact={artifact}"),
        Cache("kvcodec 20 %", options=f"budget=20%,artifact={artifact}"),
        Cache("kvcodec 13.5 %", options=f"budget=13.5%,artifact={artifact}"),
    ]


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.programs = Path(arguments.programs)
        self.work = Path(arguments.work).resolve()
        self.threads = str(len(os.sched_getaffinity(0)))
        self.started = time.monotonic()

    def say(self, text):
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", file=sys.stderr, flush=True)

    def run(self, program, cache, *arguments, options=""):
        """Output of the program with this cache; errors included."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("LLAMA_", "GGML_", "KVCODEC"))
        }
        command = [str(self.programs / program), "-m", self.arguments.model, "-t", self.threads, "-fa", "on"]
        if cache.host_type is not None:
            command += ["-ctk", cache.host_type, "-ctv", cache.host_type]
        else:
            environment["GGML_BACKEND_PATH"] = str(Path(self.arguments.plugin).resolve())
            environment["LLAMA_ARG_DEVICE"] = "KVCODEC"
            environment["KVCODEC"] = cache.options + options
        done = subprocess.run(
            command + [str(word) for word in arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{output[-3000:]}")
        if cache.host_type is None and not re.search(r"[1-9]\d* of \d+ layers compressed", output):
            sys.exit(f"{cache.name}: no layer was compressed:\n{output[-3000:]}")
        return output

    def text(self):
        """What is scored: the documents of llama.cpp, which neither model nor training has seen here."""
        path = self.work / "documents.txt"
        files = sorted(Path(self.arguments.documents).glob("docs/**/*.md"))
        path.write_text("\n".join(file.read_text(errors="replace") for file in files))
        return path

    def fidelity(self, cache, text):
        """(mean KLD, same top token %, pairs read through codes %), all None for the reference itself."""
        arguments = ["-f", text, "-c", CONTEXT, "-b", 512, "-ub", 512, "--chunks", CHUNKS]
        arguments += ["--kl-divergence-base", self.work / "f16.logits"]
        if cache.host_type == "f16":
            self.run("llama-perplexity", cache, *arguments)
            return None, None, None
        output = self.run("llama-perplexity", cache, *arguments, "--kl-divergence", options=",mode=strict,sinks=4")
        pairs = 100.0
        if cache.host_type is None:
            pairs = number(r"([\d.]+) % of pairs", output)
            if pairs < MIN_PAIRS_PERCENT:
                sys.exit(f"{cache.name}: only {pairs} % of (query, key) pairs were read through codes; not a result")
        return number(r"Mean\s+KLD:\s+(-?[\d.]+)", output), number(r"Same top p:\s+([\d.]+)", output), pairs

    def totals(self, cache, f16_bytes):
        """(rate, total at SHORT, total at LONG), each a share of f16."""
        if cache.host_type is not None:
            return (cache.bits / 16,) * 3
        shares = []
        for tokens in (SHORT, LONG):
            output = self.run("llama-completion", cache, "-no-cnv", "-c", tokens, "-n", 1, "-p", "x", "--no-warmup")
            total = number(r"tokens ([\d.]+) MiB in all", output)
            shares.append(total * 2**20 / (f16_bytes * tokens))
        return number(r"rate ([\d.]+) %", output) / 100, *shares

    def decode(self, cache):
        """(tokens/s at DEPTH, resident MiB there or None)."""
        output = self.run(
            "llama-batched-bench", cache, "-c", DEPTH + 256, "-b", 512, "-ub", 512,
            "-npp", DEPTH, "-ntg", GENERATED, "-npl", 1, "--output-format", "jsonl",
        )  # fmt: skip
        speed = next(json.loads(line)["speed_tg"] for line in output.splitlines() if line.startswith("{"))
        return speed, None if cache.host_type else number(r"resident ([\d.]+) MiB", output)


def number(pattern, text):
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"nothing like {pattern} in:\n{text[-3000:]}")
    return float(match[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("programs", "documents", "model", "plugin", "artifact", "work"):
        parser.add_argument(f"--{name}", required=True)
    bench = Bench(parser.parse_args())
    f16_bytes = None
    rows = []
    text = bench.text()
    for cache in caches(Path(bench.arguments.artifact).resolve()):
        bench.say(f"{cache.name}: fidelity")
        kld, same_top, pairs = bench.fidelity(cache, text)
        if f16_bytes is None:  # of one token, as the host counts
            output = bench.run("llama-completion", cache, "-no-cnv", "-c", 1024, "-n", 1, "-p", "x", "--no-warmup", "-v")
            f16_bytes = number(r"llama_kv_cache: size =\s*([\d.]+) MiB", output) * 2**20 / 1024
        rate, short, long = bench.totals(cache, f16_bytes)
        bench.say(f"{cache.name}: decoding at depth {DEPTH}")
        speed, resident = bench.decode(cache)
        if resident is None:  # llama.cpp clears its whole cache at the start
            resident = f16_bytes * (DEPTH + GENERATED) * rate / 2**20
        mib = 2**20 / f16_bytes
        rows.append(
            f"| {cache.name} | {rate:.1%} | {short:.1%} ({short * SHORT / mib:.0f} MiB) | {long:.1%} "
            f"({long * LONG / mib:.0f} MiB) | {resident:.1f} MiB | {'reference' if kld is None else f'{kld:.4f}'} | "
            f"{'' if same_top is None else f'{same_top:.1f} %'} | {'' if pairs is None else f'{pairs:.1f} %'} | "
            f"{speed:.1f} |"
        )
    (bench.work / "f16.logits").unlink()
    table = [
        f"| cache | rate | total at {SHORT // 1024}k tokens | total at {LONG // 1024}k tokens | "
        f"resident at {DEPTH + GENERATED} tokens | mean KLD | same top token | pairs read through codes | "
        f"decoding at {DEPTH}, tokens/s |",
        "| --- | " + "--- | " * 7 + "--- |",
        *rows,
        "",
        f"{Path(bench.arguments.model).name}, {bench.threads} threads. Shares are of the f16 cache. Rate: bytes of a "
        "coded token. Total: rate, recent window, first tokens and everything that kvcodec keeps beside, computed. "
        "Resident: measured; llama.cpp's own caches are resident as a whole. Fidelity is against the f16 cache, over "
        f"{CHUNKS} x {CONTEXT} tokens of llama.cpp's documents, in strict mode: every key is read through its code, "
        "its own included; only the first 4 tokens stay dense. Decoding and totals are in the default, live mode.",
    ]
    print("\n" + "\n".join(table))
    (bench.work / "table.md").write_text("\n".join(table) + "\n")
    bench.say(f"this table is in {os.path.relpath(bench.work / 'table.md')}")


if __name__ == "__main__":
    main()
