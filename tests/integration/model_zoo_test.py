"""Tiny models of many architectures: each is compressed, or passes through with a reason; nothing crashes."""

import os
import unittest

import host

ZOO = os.environ.get("KVCODEC_MODEL_ZOO", "")
# Layers, where not all have keys and values of their own.
COMPRESSED = {"Gemma 3n": 20, "Jamba": 2, "Qwen 3.5": 1, "DeepSeek V2": 0, "Mamba": 0}


class ModelZoo(unittest.TestCase):
    def test_every_model(self):
        result = host.execute([ZOO, host.PLUGIN, 200], host.clean_environment(OMP_WAIT_POLICY="passive"))
        print(result.out)
        self.assertEqual(result.code, 0, result)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.out.splitlines()[2:]]
        self.assertGreaterEqual(len(rows), 30)
        for name, _, _, layers, compressed, _, equal, *_ in rows:
            self.assertEqual(int(compressed), COMPRESSED.get(name, int(layers)), name)
            self.assertEqual(equal, "equal", name)

    def test_reason_of_what_is_not_compressed(self):
        result = host.execute([ZOO, host.PLUGIN, 20, "DeepSeek V2"], host.clean_environment())
        self.assertIn("not stored separately", result.out)


if __name__ == "__main__":
    host.main()
