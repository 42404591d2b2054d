"""Tiny models of many architectures: each is compressed, or passes through with a reason; nothing crashes."""

import os
import unittest

import host

ZOO = os.environ.get("KVCODEC_MODEL_ZOO", "")


class ModelZoo(unittest.TestCase):
    def test_every_model(self):
        result = host.execute([ZOO, host.PLUGIN, 100], host.clean_environment(OMP_WAIT_POLICY="passive"))
        print(result.out)
        self.assertEqual(result.code, 0, result)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.out.splitlines()[2:]]
        self.assertGreaterEqual(len(rows), 30)
        untouched = [row[0] for row in rows if row[4] == "0"]
        self.assertEqual(untouched, ["DeepSeek V2", "Mamba"])
        for row in rows:
            self.assertEqual(row[6], "equal", row)

    def test_reason_of_what_is_not_compressed(self):
        result = host.execute([ZOO, host.PLUGIN, 20, "DeepSeek V2"], host.clean_environment())
        self.assertIn("not stored separately", result.out)


if __name__ == "__main__":
    host.main()
