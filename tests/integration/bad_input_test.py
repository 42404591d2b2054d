"""Mistakes: the program still answers and one line says what is wrong, or `kvcodec run` refuses before it starts."""

import json
import random
import unittest

import host
import tiny_model

PROMPT = "The capital of France is"
ANSWER = "Paris"


class BadInput(unittest.TestCase):
    def complete(self, options, *arguments):
        result = host.with_plugin(
            "llama-completion", options, *host.completion_arguments(PROMPT, 48, "-c", 1024, *arguments)
        )
        self.assertEqual(result.code, 0, result)
        self.assertIn(ANSWER, result.out)
        return result

    def assert_one_message(self, result, *words):
        messages = [line for line in result.messages() if "0 of 30 layers compressed" not in line]
        self.assertEqual(len(messages), 1, result)
        for word in words:
            self.assertIn(word, messages[0])

    def assert_refused(self, *words, arguments=(), options=()):
        result = host.kvcodec(
            "run", *options, "--", host.program("llama-completion"), *host.completion_arguments(PROMPT, 8, *arguments)
        )
        self.assertEqual(result.code, 1, result)
        self.assertEqual(result.out, "")
        self.assertEqual(len(result.messages()), 1, result)
        for word in words:
            self.assertIn(word, result.messages()[0])

    def changed_artifact(self, name, change):
        """A copy of a good artifact, its bytes passed through `change`."""
        path = host.WORK / f"{name}.kvc.gguf"
        path.write_bytes(change(host.small_artifact().read_bytes()))
        return path

    def test_missing_artifact(self):
        self.assert_one_message(self.complete("artifact=/absent.kvc.gguf"), "nothing is compressed", "/absent.kvc.gguf")
        self.assert_refused("/absent.kvc.gguf", options=["--artifact", "/absent.kvc.gguf"])

    def test_training_without_vocabulary(self):
        path = host.WORK / "no-vocabulary.gguf"
        tiny_model.write(path, tiny_model.no_vocabulary(), "llama", 2, 1)
        result = host.kvcodec("train", "-m", path, "-o", host.WORK / "never.kvc.gguf")
        self.assertEqual(result.code, 1, result)
        self.assertIn("has no vocabulary", result.err)
        self.assertFalse((host.WORK / "never.kvc.gguf").exists())

    def test_unknown_instruction_set(self):
        result = host.with_plugin(
            "llama-completion", "", *host.completion_arguments(PROMPT, 48, "-c", 1024), KVCODEC_TARGET="AVX9"
        )
        self.assertIn(ANSWER, result.out)
        warnings = [line for line in result.messages() if "KVCODEC_TARGET" in line]
        self.assertEqual(len(warnings), 1, result)
        self.assertIn("KVCODEC_TARGET=AVX9: this machine has ", warnings[0])

    def test_truncated_artifact(self):
        path = self.changed_artifact("truncated", lambda data: data[: len(data) // 2])
        self.assert_one_message(self.complete(f"artifact={path}"), "nothing is compressed", str(path))
        self.assert_refused(str(path), options=["--artifact", path])

    def test_artifact_of_noise(self):
        path = self.changed_artifact("noise", lambda data: data[:64] + random.Random(1).randbytes(len(data) - 64))
        self.assert_one_message(self.complete(f"artifact={path}"), "nothing is compressed", str(path))
        self.assert_refused(str(path), options=["--artifact", path])

    def test_artifact_of_another_model(self):
        inspected = json.loads(host.kvcodec("inspect", "--json", host.small_artifact()).out)
        fingerprint = inspected["model"]["fingerprint"].encode()
        path = self.changed_artifact("other-model", lambda data: data.replace(fingerprint, fingerprint[::-1]))
        self.assert_refused("another model", "kvcodec train -m", options=["--artifact", path])

    def test_rope_of_another_model(self):
        """The plug-in does not see the model's file, but the graph tells its RoPE."""
        result = self.complete(f"artifact={host.small_artifact()}", "--rope-freq-base", "90000")
        self.assert_one_message(result, "RoPE differs")

    def test_unknown_option(self):
        self.assert_one_message(self.complete("bugdet=20%"), "nothing is compressed", "'bugdet'", "budget")

    def test_bad_value(self):
        self.assert_one_message(self.complete("budget=lots"), "nothing is compressed", "budget=lots")

    def test_flash_attention_off(self):
        self.assert_one_message(self.complete("budget=20%", "-fa", "off"), "-fa")
        self.assert_refused("-fa off", arguments=["-fa", "off"])

    def test_quantised_cache(self):
        self.assert_one_message(self.complete("budget=20%", "-ctk", "q8_0", "-ctv", "q8_0"), "q8_0", "-ctk")
        self.assert_one_message(self.complete("budget=20%", "-ctk", "q8_0"), "q8_0", "-ctk")
        self.assert_refused("-ctk q8_0", arguments=["-ctk", "q8_0"])

    def test_no_layers_offloaded(self):
        self.assert_one_message(self.complete("budget=20%", "-ngl", "0"), "-ngl")
        self.assert_refused("-ngl 0", arguments=["-ngl", "0"])

    def test_no_kv_offload(self):
        self.assert_one_message(self.complete("budget=20%", "-nkvo"), "-nkvo")
        self.assert_refused("-nkvo", arguments=["-nkvo"])

    def test_quiet(self):
        self.assertEqual(self.complete("budget=20%,log=quiet").messages(), [])


if __name__ == "__main__":
    host.main()
