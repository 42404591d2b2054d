"""`kvcodec lowrank`: models with K and V projections of low rank, run by llama.cpp itself, and caches of latents."""

import re
import resource
import sys
import time
import unittest

import host
import tiny_model

N_CTX = 256


class LowRank(unittest.TestCase):
    def lowrank(self, *arguments):
        result = host.kvcodec("lowrank", "--threads", 2, *arguments)
        self.assertEqual(result.code, 0, result)
        return result.out

    def emit(self, name, *arguments):
        path = host.WORK / f"{name}.gguf"
        self.lowrank("-m", host.MODEL, "--emit-model", path, *arguments)
        return path

    def perplexity(self, model, *arguments, options=None):
        command = [
            "llama-perplexity", "-m", model, "-f", host.document_file(40_000), "-c", N_CTX, "--chunks", 2, "-t", 2,
            "--kl-divergence-base", host.WORK / "lowrank-base", *arguments,
        ]
        result = (
            host.plain(*command) if options is None else host.with_plugin(command[0], options, *command[1:])
        )
        self.assertEqual(result.code, 0, result)
        return result

    def divergence(self, model, options=None):
        result = self.perplexity(model, "--kl-divergence", options=options)
        if options is not None:
            self.assertIn("latents", host.LoadLine(result).codecs)
            self.assertGreater(host.EndLine(result).pairs_percent, 99)
        found = re.search(r"Mean +KLD: +(-?[0-9.]+)", result.out + result.err)
        self.assertIsNotNone(found, result)
        return float(found.group(1))

    def check_latents(self, base, *arguments):
        """Latents in f16 read as the model with truncated projections reads, which is not as the model itself does."""
        truncated = host.WORK / "truncated.gguf"
        artifact = host.WORK / "latents.gguf"
        self.lowrank("-m", base, "--emit-model", truncated, "-o", artifact, *arguments)
        self.perplexity(truncated)
        self.assertGreater(self.divergence(base), 0.02)
        self.assertLess(self.divergence(base, f"artifact={artifact},bits=16,mode=strict"), 1e-4)

    def test_whitened_ranks_lose_less_and_full_ranks_nothing(self):
        self.perplexity(host.MODEL)
        full = self.divergence(self.emit("full-rank", "--keep", "100%"))
        self.assertLess(full, 0.01)  # F32 weights where the model has 4 bits
        weights = self.divergence(self.emit("low-rank", "--keep", "60%"))
        whitened = self.divergence(
            self.emit("low-rank-whitened", "--keep", "60%", "--basis", "whitened", "--tokens", 1024)
        )
        self.assertGreater(weights, 2.0)
        self.assertLess(whitened, 1.0)

    def test_latents_are_the_truncated_model(self):
        base = self.emit("full-rank", "--keep", "100%", "--emit-f32")
        self.check_latents(base, "--keep", "60%", "--basis", "whitened", "--tokens", 1024)

    def test_latents_of_all_kinds_of_heads_and_rope(self):
        for architecture, n_head, n_head_kv, more in [
            ("llama", 4, 4, {}),  # MHA, RoPE of neighbours
            ("llama", 2, 1, {}),  # MQA
            ("qwen2", 4, 2, {"bias": True}),  # GQA, RoPE of halves
            ("stablelm", 4, 2, {"rotated": 8}),  # partial RoPE
            ("mpt", 4, 4, {}),  # no RoPE: keys are read in latent space, too
        ]:
            with self.subTest(architecture=architecture, n_head_kv=n_head_kv):
                base = host.WORK / "tiny.gguf"
                tiny_model.write(base, host.MODEL, architecture, n_head, n_head_kv, **more)
                self.check_latents(base, "--keep", "60%")
        with self.subTest("by head"):  # heads of 16 have no smaller rank
            tiny_model.write(base, host.MODEL, "qwen2", 2, 2, bias=True)
            self.check_latents(base, "--keep", "50%", "--per-head")

    def test_budgets_choose_the_bits_of_latents(self):
        artifact = host.WORK / "latents.gguf"
        self.lowrank("-m", host.MODEL, "-o", artifact, "--keep", "60%", "--uniform")

        def codecs(options):
            result = host.with_plugin(
                "llama-completion", f"artifact={artifact},{options}", *host.completion_arguments("Once", 1)
            )
            self.assertEqual(result.code, 0, result)
            return result

        for options, rate in [("bits=16", 58.3), ("budget=30%", 29.4), ("", 14.8), ("budget=12%", 11.2),
                              ("bits_k=8,budget=25%", 22.1)]:
            with self.subTest(options=options):
                self.assertAlmostEqual(host.LoadLine(codecs(options)).rate_percent, rate, delta=0.1)
        for options, words in [("budget=5%", ["budget of 5 %", "--keep"]), ("codec=transform", ["kvcodec train"]),
                               ("s=8", ["kvcodec train"])]:
            with self.subTest(options=options):
                result = codecs(options)
                self.assertTrue(any(all(word in line for word in words) for line in result.messages()), result)

    def test_what_was_written_has_the_rank(self):
        path = self.emit("uniform", "--keep", "51%", "--uniform")
        kept = self.lowrank("-m", path, "--keep", "51%", "--uniform").splitlines()
        rows = [line for line in kept if " of " in line and "|" in line]
        self.assertEqual(len(rows), 30)
        for row in rows:
            self.assertEqual(re.findall(r"96 of 192 +([0-9.]+) +([0-9.]+)", row), [("0.000", "0.000")] * 2, row)
        less = self.lowrank("-m", path, "--keep", "40%", "--uniform")
        self.assertNotRegex(less, r"\| +80 of 192 +0.000")

    def test_ranks_of_keys_and_values_apart_and_by_head(self):
        out = self.lowrank("-m", host.MODEL, "--uniform", "--keep-k", "0.25", "--keep-v", "75%", "--per-head")
        self.assertEqual(len(re.findall(r"\| +16 of 64 .*\| +48 of 64 ", out)), 30)
        self.assertIn("50.0 %", out)

    def test_shapes_of_large_models(self):
        # Layers of an 8B and a 70B model: ten minutes for all 32 of the former would be 18 s each.
        for name, n_embd, n_head, n_layer in (("8B", 4096, 32, 2), ("70B", 8192, 64, 1)):
            with self.subTest(name):
                path, artifact = host.WORK / "projections.gguf", host.WORK / "projections.lorc.gguf"
                tiny_model.write_projections(path, host.MODEL, n_embd, n_head, 8, 128, n_layer)
                start = time.monotonic()
                self.lowrank("-m", path, "-o", artifact, "--keep", "60%")
                seconds = (time.monotonic() - start) / n_layer
                largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
                print(f"{name}: {seconds:.1f} s a layer, largest program so far {largest >> 10} MiB", file=sys.stderr)
                self.assertLess(seconds, 18)
                self.assertTrue(artifact.exists())

    def test_mistakes(self):
        def refused(code, words, *arguments):
            result = host.kvcodec("lowrank", *arguments)
            self.assertEqual(result.code, code, result)
            for word in words:
                self.assertIn(word, result.err)

        refused(2, ["'0%'"], "-m", host.MODEL, "--keep", "0%")
        refused(2, ["'much'"], "-m", host.MODEL, "--keep", "much")
        refused(1, ["written over"], "-m", host.MODEL, "--keep", "50%", "--emit-model", host.MODEL)
        refused(1, ["written over"], "-m", host.MODEL, "--keep", "50%", "-o", host.MODEL)
        refused(1, ["/proc/a.gguf"], "-m", host.MODEL, "--keep", "50%", "-o", "/proc/a.gguf")
        refused(2, ["--basis whitened"], "-m", host.MODEL, "--basis", "data", "--emit-model", host.WORK / "no.gguf")
        refused(1, ["two files"], "-m", host.MODEL, "--emit-model", host.WORK / "x", "-o", f"{host.WORK}/./x")
        refused(2, ["--measured"], "-m", host.MODEL, "--measured")
        refused(2, ["--measured"], "-m", host.MODEL, "--measured", "--basis", "data", "--keep-k", "50%")
        refused(1, ["/absent/model.gguf"], "-m", host.MODEL, "--keep", "50%", "--emit-model", "/absent/model.gguf")
        refused(1, ["too few"], "-m", host.MODEL, "--basis", "whitened", "--tokens", 100)
        refused(2, ["--text"], "-m", host.MODEL, "--text", host.document_file(40_000))
        refused(1, ["GGUF"], "-m", host.document_file(40_000))


if __name__ == "__main__":
    host.main()
