"""`kvcodec lowrank`: models with K and V projections of low rank, run by llama.cpp itself."""

import re
import unittest

import host

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

    def perplexity(self, model, *arguments):
        result = host.plain(
            "llama-perplexity", "-m", model, "-f", host.document_file(40_000), "-c", N_CTX, "--chunks", 2, "-t", 2,
            "--kl-divergence-base", host.WORK / "lowrank-base", *arguments,
        )
        self.assertEqual(result.code, 0, result)
        return result.out + result.err

    def divergence(self, model):
        found = re.search(r"Mean +KLD: +([0-9.]+)", self.perplexity(model, "--kl-divergence"))
        self.assertIsNotNone(found)
        return float(found.group(1))

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

    def test_mistakes(self):
        def refused(code, words, *arguments):
            result = host.kvcodec("lowrank", *arguments)
            self.assertEqual(result.code, code, result)
            for word in words:
                self.assertIn(word, result.err)

        refused(2, ["'0%'"], "-m", host.MODEL, "--keep", "0%")
        refused(2, ["'much'"], "-m", host.MODEL, "--keep", "much")
        refused(1, ["over itself"], "-m", host.MODEL, "--keep", "50%", "--emit-model", host.MODEL)
        refused(1, ["/absent/model.gguf"], "-m", host.MODEL, "--keep", "50%", "--emit-model", "/absent/model.gguf")
        refused(1, ["too few"], "-m", host.MODEL, "--basis", "whitened", "--tokens", 100)
        refused(2, ["--text"], "-m", host.MODEL, "--text", host.document_file(40_000))
        refused(1, ["GGUF"], "-m", host.document_file(40_000))


if __name__ == "__main__":
    host.main()
