"""`kvcodec doctor`: what it says of programs and models that are served, and of those that are not."""

import unittest

import host
import tiny_model


class Doctor(unittest.TestCase):
    def examine(self, *arguments, code=0):
        result = host.kvcodec("doctor", *arguments, "--plugin", host.PLUGIN)
        self.assertEqual(result.code, code, result)
        return result.out

    def with_program(self, *arguments, code=0, options=()):
        result = host.kvcodec("doctor", *options, "--plugin", host.PLUGIN, "--", *arguments)
        self.assertEqual(result.code, code, result)
        return result.out

    def test_all_is_well(self):
        out = self.with_program(host.program("llama-server"), "-m", host.MODEL, options=["--budget", "26%"])
        self.assertIn("llama-server loads the plug-in", out)
        self.assertIn("30 of 30 layers with a cache are compressed", out)
        self.assertIn("32768 tokens take", out)
        self.assertNotIn("WRONG", out)

    def test_bench(self):
        out = self.with_program(host.program("llama-bench"), "-m", host.MODEL)
        self.assertIn("llama-bench loads the plug-in", out)

    def test_flags_in_the_way(self):
        out = self.with_program(host.program("llama-server"), "-m", host.MODEL, "-fa", "off", code=1)
        self.assertIn("WRONG  -fa off", out)
        self.assertIn("set it to on", out)

    def test_no_program(self):
        self.assertIn("add its folder to PATH", self.with_program("llama-nowhere", code=1))

    def test_other_program(self):
        self.assertIn("was not tried", self.with_program("true"))

    def test_model_without_artifact(self):
        out = self.examine("-m", host.MODEL, "--codec", "dictionary", code=1)
        self.assertIn("kvcodec train -m", out)

    def test_layers_that_cannot_be_compressed(self):
        path = host.WORK / "narrow.gguf"
        tiny_model.write(path, tiny_model.small_vocabulary(), "llama", 8, 8)
        out = self.examine("-m", path, code=1)
        self.assertIn("is not compressed", out)
        self.assertIn("no layer is compressed", out)

    def test_plugin_that_is_none(self):
        path = host.WORK / "no-plugin.so"
        path.write_bytes(b"nothing")
        result = host.kvcodec("doctor", "-m", host.MODEL, "--plugin", path)
        self.assertEqual(result.code, 1, result)
        self.assertIn("cannot be loaded", result.out)


if __name__ == "__main__":
    host.main()
