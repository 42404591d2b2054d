"""Token generation with the dictionary codec never rebuilds a coded row."""

import unittest

import host

DEPTH = 4096


def generate(n_tokens):
    result = host.with_plugin(
        "llama-batched-bench", f"codec=dictionary,artifact={host.small_artifact()},budget=20%",
        "-m", host.MODEL, "-t", 2, "-c", DEPTH + 256, "-b", 512, "-ub", 512,
        "-npp", DEPTH, "-ntg", n_tokens, "-npl", 1,
    )  # fmt: skip
    if result.code != 0 or host.LoadLine(result).compressed != 30:
        raise AssertionError(result)
    return host.EndLine(result)


class CodeSpace(unittest.TestCase):
    def test_no_row_is_rebuilt(self):
        short, long = generate(2), generate(66)
        self.assertGreater(short.coded, DEPTH - 256)
        self.assertEqual(long.rows_rebuilt - short.rows_rebuilt, 0)
        self.assertEqual(long.block_calls, short.block_calls)
        self.assertEqual(long.code_space_calls - short.code_space_calls, 64 * 30)


if __name__ == "__main__":
    host.main()
