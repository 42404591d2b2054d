"""`kvcodec run` in front of an unmodified program."""

import unittest

import host

PROMPT = "The capital of France is"


class Run(unittest.TestCase):
    def test_scalar_codec(self):
        result = host.kvcodec(
            "run", "--codec", "scalar", "--budget", "20%", "--", host.program("llama-completion"),
            *host.completion_arguments(PROMPT, 60, "-c", 1024),
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("Paris", result.out)
        load = host.LoadLine(result)
        self.assertEqual((load.compressed, load.layers), (30, 30))
        self.assertIn("scalar", load.codecs)
        self.assertLessEqual(load.rate_percent, 20.0)

    def run_with_artifact(self, artifact, codec):
        """A completion with every layer coded; returns the line at load."""
        result = host.kvcodec(
            "run", "--artifact", artifact, "--codec", codec, "--budget", "20%", "--window", "16", "--",
            host.program("llama-completion"), *host.completion_arguments(PROMPT, 60, "-c", 1024),
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("Paris", result.out)
        load = host.LoadLine(result)
        self.assertEqual((load.compressed, load.layers), (30, 30))
        self.assertIn(codec, load.codecs)
        self.assertLessEqual(load.rate_percent, 20.0)
        self.assertGreater(host.EndLine(result).coded, 0)
        return load

    def test_trained_artifact(self):
        self.run_with_artifact(host.small_artifact(), "dictionary")

    def test_heads_coded_together(self):
        artifact = host.WORK / "together.kvc.gguf"
        result = host.kvcodec(
            "train", "-m", host.MODEL, "-o", artifact, "--tokens", 2048, "--atoms", 64, "--sweeps", 0,
            "--joint-width", 256, "--sensitivity", "condition", "--threads", 2,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertGreater(self.run_with_artifact(artifact, "transform").rate_percent, 19.0)

    def test_strict_mode_reads_everything_through_codes(self):
        result = host.kvcodec(
            "run", "--codec", "scalar", "--budget", "55%", "--mode", "strict", "--",
            host.program("llama-completion"), *host.completion_arguments(PROMPT, 60, "-c", 1024),
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("Paris", result.out)
        end = host.EndLine(result)
        self.assertEqual(end.pairs_percent, 100.0, result)
        self.assertEqual(end.dense, 0, result)

    def test_recalls_what_is_only_held_in_codes(self):
        secret = "the password of the old lighthouse is"
        text = f"Remember this: {secret} marmalade.\n\n{host.document(6000)}\n\nNow the question: {secret}"
        result = host.kvcodec(
            "run", "--codec", "scalar", "--budget", "30%", "--", host.program("llama-completion"),
            *host.completion_arguments(text, 12, "-c", 4096, "--no-display-prompt"),
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("marmalade", result.out)
        self.assertGreater(host.EndLine(result).coded, 1000)

    def test_bench(self):
        result = host.kvcodec(
            "run", "--codec", "scalar", "--budget", "20%", "--", host.program("llama-bench"),
            "-m", host.MODEL, "-p", 256, "-n", 8, "-r", 1, "-t", 2,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("KVCODEC", result.out)
        self.assertEqual(host.LoadLine(result).compressed, 30)

    def test_help(self):
        for words in (["--help"], ["run", "--help"], ["train", "--help"], ["inspect", "--help"]):
            result = host.kvcodec(*words)
            self.assertEqual(result.code, 0, result)
            self.assertIn("Exit codes: 0 success, 1 failure, 2 wrong usage", result.out, words)
        for option in ("--artifact", "--budget", "--codec", "--window", "--sinks", "--mode", "--plugin"):
            self.assertIn(option, host.kvcodec("run", "--help").out)
        for option in ("--model", "--output", "--text", "--atoms", "--sparsity", "--tokens"):
            self.assertIn(option, host.kvcodec("train", "--help").out)


if __name__ == "__main__":
    host.main()
