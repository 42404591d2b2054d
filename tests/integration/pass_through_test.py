"""codec=none, and layers that kvcodec cannot serve: the host's own cache, bit for bit."""

import re
import unittest

import host


class PassThrough(unittest.TestCase):
    def test_same_greedy_text(self):
        arguments = host.completion_arguments("Once upon a time", 200, "-c", 1024)
        expected = host.plain("llama-completion", *arguments)
        actual = host.with_plugin("llama-completion", "codec=none", *arguments)
        self.assertEqual(expected.code, 0, expected)
        self.assertEqual(actual.code, 0, actual)
        self.assertGreater(len(expected.out), 400, expected)
        self.assertEqual(actual.out, expected.out)

    def test_same_greedy_text_of_layers_that_cannot_be_compressed(self):
        arguments = host.completion_arguments("Once upon a time", 100, "-c", 1024)
        arguments += ["-fa", "off"]  # values are stored transposed then
        expected = host.plain("llama-completion", *arguments)
        actual = host.with_plugin("llama-completion", "codec=scalar", *arguments)
        self.assertEqual(actual.code, 0, actual)
        self.assertIn("is not compressed: flash attention is off", actual.err)
        self.assertGreater(len(expected.out), 200, expected)
        self.assertEqual(actual.out, expected.out)

    def test_same_logits(self):
        text = host.document_file(20000)
        expected, actual = host.WORK / "f16.logits", host.WORK / "pass-through.logits"
        arguments = ["-m", host.MODEL, "-f", text, "-c", 512, "--chunks", 2, "-t", 2, "--kl-divergence-base"]
        try:
            base = host.plain("llama-perplexity", *arguments, expected)
            self.assertEqual(base.code, 0, base)
            saved = host.with_plugin("llama-perplexity", "codec=none", *arguments, actual)
            self.assertEqual(saved.code, 0, saved)
            self.assertGreater(expected.stat().st_size, 10_000_000)
            self.assertTrue(expected.read_bytes() == actual.read_bytes(), "the logits differ")

            result = host.with_plugin("llama-perplexity", "codec=none", *arguments, expected, "--kl-divergence")
            self.assertEqual(result.code, 0, result)
            mean = re.search(r"Mean\s+KLD:\s*(-?[\d.]+)", result.out + result.err)
            self.assertIsNotNone(mean, result)
            self.assertLessEqual(abs(float(mean[1])), 1e-7)
        finally:
            expected.unlink(missing_ok=True)
            actual.unlink(missing_ok=True)


if __name__ == "__main__":
    host.main()
