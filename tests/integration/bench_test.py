"""`kvcodec bench`: every cache gets its row, on every instruction set, and the last line sums up."""

import re
import unittest

import host
import tiny_model

SMALL = ("bench", "--depth", 1024, "--prompt", 8, "--layers", 1, "--repeat", 1, "--threads", 2)
SUMMARY = re.compile(
    r"scalar, 3 bits, head_dim \d+: slope / f16 -?\d+\.\d+, prompt / f16 \d+\.\d+, -?\d+ % of the roofline; .*"
    r"OMP / SPAMS (not measured|\d+\.\d+)"
)


def rows(text):
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| -")]


class Bench(unittest.TestCase):
    def bench(self, *arguments, **variables):
        result = host.kvcodec(*SMALL, *arguments, **variables)
        self.assertEqual(result.code, 0, result)
        self.assertRegex(result.out.splitlines()[-1], SUMMARY)
        return result.out

    def test_rows_of_two_shapes(self):
        out = self.bench()
        self.assertRegex(out.splitlines()[0], r"2 threads, kernels for \w+: \d+\.\d GB/s .* \d+ billion multiply-adds")
        for name in ("llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0", "scalar, 3 bits", "transform",
                     "dictionary, s=8", "latents, heads together"):  # fmt: skip
            found = [row for row in rows(out) if row[0] == f"| {name}"]
            self.assertEqual(len(found), 2, f"{name}\n{out}")
            for row in found:
                self.assertGreater(float(row[3]), 0, row)
        self.assertIn("| OMP, 1024 atoms, s=8 |", out)

    def test_shape_of_a_model(self):
        out = self.bench("-m", host.MODEL)
        self.assertIn("## head_dim 64, 3 KV heads, 3 query heads for each", out)
        self.assertNotIn("## head_dim 128", out)

    def test_heads_too_long_to_be_coded_together(self):
        path = host.WORK / "many-heads.gguf"
        tiny_model.write_projections(path, host.MODEL, n_embd=2048, n_head=16, n_head_kv=16, dim=128, n_layer=1)
        out = self.bench("-m", path)
        self.assertIn("| transform |", out)
        self.assertNotIn("| transform, heads together |", out)

    def test_older_instruction_sets(self):
        newest = re.search(r"kernels for (\w+)", self.bench("-m", host.MODEL)).group(1)
        for target in ("SSE4", "AVX2"):
            result = host.kvcodec(*SMALL, "-m", host.MODEL, KVCODEC_TARGET=target)
            if result.code != 0 and f"this machine has {newest}" in result.err:
                continue
            self.assertIn(f"kernels for {target}:", result.out)

    def test_mistakes(self):
        refused = host.kvcodec(*SMALL, KVCODEC_TARGET="AVX9")
        self.assertEqual(refused.code, 1, refused)
        self.assertIn("KVCODEC_TARGET=AVX9: this machine has ", refused.err)
        self.assertEqual(host.kvcodec("bench", "--depth", 3).code, 2)
        broken = host.kvcodec(*SMALL, "-m", host.MODEL, "--python", "/absent/python")
        self.assertEqual(broken.code, 0, broken)
        self.assertIn("OMP / SPAMS not measured (pip install spams-bin, or --python)", broken.out.splitlines()[-1])


if __name__ == "__main__":
    host.main()
