"""Resident memory of a long prompt: what was computed, and a fraction of f16."""

import unittest

import host

RATE_PERCENT = 20.0


def read_prompt(n_tokens, options, n_generated=8):
    result = host.with_plugin(
        "llama-batched-bench", f"codec=scalar,budget={RATE_PERCENT:.0f}%,{options}",
        "-m", host.MODEL, "-t", 2, "-c", n_tokens, "-b", 512, "-ub", 512,
        "-npp", n_tokens - n_generated, "-ntg", n_generated, "-npl", 1,
    )  # fmt: skip
    if result.code != 0:
        raise AssertionError(result)
    return host.LoadLine(result), host.EndLine(result)


def problems(load, end):
    """Everything that the promise about memory does not allow."""
    found = []
    if end.resident_mib > 1.15 * load.total_mib:
        found.append(f"{end.resident_mib} MiB are resident, {load.total_mib} MiB were computed")
    if end.resident_percent > 30.0:
        found.append(f"resident memory is {end.resident_percent} % of f16")
    return found


class Memory(unittest.TestCase):
    def assert_kept(self, n_tokens, load, end):
        self.assertEqual(load.compressed, 30)
        self.assertLessEqual(load.rate_percent, RATE_PERCENT)
        self.assertGreaterEqual(end.coded + end.dense, n_tokens - 16)
        self.assertEqual(problems(load, end), [])

    def test_prompt_coded_while_it_is_read(self):
        self.assert_kept(16384, *read_prompt(16384, "release=on"))
        self.assertNotEqual(problems(*read_prompt(16384, "release=off")), [], "kept pages went unnoticed")

    def test_prompt_dense_until_its_end(self):
        # The prompt is coded 64 cells a step.
        self.assert_kept(4096, *read_prompt(4096, "prefill=exact,release=on", 96))
        self.assertEqual(len(problems(*read_prompt(4096, "prefill=exact,release=off", 96))), 2)


if __name__ == "__main__":
    host.main()
