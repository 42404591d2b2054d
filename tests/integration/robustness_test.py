"""What is not as it should be around the plug-in: a full disk, too little memory, another ggml, files that change."""

import shutil
import subprocess
import unittest

import host
import tiny_model
from server import Server

PROMPT = "The capital of France is"


def limited(limits, command, environment=None):
    """The command under limits of the shell; a file that grows too long is an error, as on a full disk."""
    script = f'{limits}; trap "" XFSZ; exec "$@"'
    return host.execute(["bash", "-c", script, "bash", *command], environment or host.clean_environment())


class FullDisk(unittest.TestCase):
    """Files may have 64 KiB."""

    def assert_nothing_is_lost(self, path, command, *words):
        path.write_text("what was there before")
        before = sorted(host.WORK.iterdir())
        result = limited("ulimit -f 64", [host.TOOL, *command])
        self.assertEqual(result.code, 1, result)
        for word in words:
            self.assertIn(word, result.err)
        self.assertEqual(path.read_text(), "what was there before")
        self.assertEqual(sorted(host.WORK.iterdir()), before, "a partial file was left")

    def test_training(self):
        path = host.WORK / "full-disk.kvc.gguf"
        command = ["train", "-m", host.MODEL, "-o", path, "--tokens", 2048, "--atoms", 64, "--sweeps", 0]
        self.assert_nothing_is_lost(path, command, str(path))

    def test_low_ranks(self):
        model = host.WORK / "projections.gguf"
        tiny_model.write_projections(model, tiny_model.small_vocabulary(), 256, 4, 4, 64, 2)
        path = host.WORK / "full-disk.lorc.gguf"
        self.assert_nothing_is_lost(path, ["lowrank", "-m", model, "-o", path, "--keep", "60%"], str(path))

    def test_results_of_an_evaluation(self):
        path = host.WORK / "full-disk.json"
        path.unlink(missing_ok=True)
        command = [
            host.TOOL, "eval", "-m", host.MODEL, "--suite", "kld", "--text", host.document_file(9000), "--ctx-size", 128,
            "--chunks", 1, "--json", path, "--cache",
        ]  # fmt: skip
        result = host.execute([*command, "kvcodec:codec=scalar:budget=30%"], host.clean_environment())
        self.assertEqual(result.code, 0, result)
        before = path.read_text()
        self.assertGreater(len(before), 1024)
        result = limited("ulimit -f 1", [*command, "kvcodec:codec=scalar:budget=20%"])
        self.assertEqual(result.code, 1, result)
        self.assertIn(str(path), result.err)
        self.assertEqual(path.read_text(), before)


class LittleMemory(unittest.TestCase):
    def test_address_space_for_the_cache(self):
        """The host is told, says so and ends by itself."""
        command = [host.program("llama-completion"), *host.completion_arguments(PROMPT, 8, "-c", 2_000_000)]
        environment = host.clean_environment(
            GGML_BACKEND_PATH=str(host.PLUGIN), LLAMA_ARG_DEVICE="KVCODEC", KVCODEC="codec=scalar,budget=20%"
        )
        result = limited("ulimit -v 4000000", command, environment)
        self.assertEqual(result.code, 1, result)
        self.assertIn("kvcodec: ", result.err)
        self.assertIn("memory", " ".join(result.messages()))


class OtherGgml(unittest.TestCase):
    def test_is_refused(self):
        """A program whose ggml says another version than the plug-in was built for."""
        source, library = host.WORK / "version.c", host.WORK / "version.so"
        source.write_text('const char * ggml_version(void) { return "9.8.7"; }\n')
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        arguments = [host.program("llama-completion"), *host.completion_arguments(PROMPT, 48, "-c", 1024)]
        environment = host.clean_environment(GGML_BACKEND_PATH=str(host.PLUGIN), LD_PRELOAD=str(library))
        result = host.execute(arguments, environment)
        self.assertEqual(result.code, 0, result)
        self.assertIn("Paris", result.out)
        self.assertIn("kvcodec: this plug-in was built for ggml ", result.err)
        self.assertIn("the program uses 9.8.7; rebuild it with `make plugin", result.err)


class ReplacedArtifact(unittest.TestCase):
    def test_while_a_server_uses_it(self):
        path = host.WORK / "replaced.kvc.gguf"
        shutil.copyfile(host.small_artifact(), path)
        options = ["--artifact", path, "--budget", "25%", "--window", "32"]
        server = Server("replaced", options, ["-c", "2048", "-np", "1"])
        try:
            question = "What is the capital of France?"
            before = server.chat(question, cache_prompt=False, seed=1)
            # In place, as a careless copy does, and by another file of that name.
            with open(path, "r+b") as file:
                file.write(b"\xff" * path.stat().st_size)
            self.assertEqual(server.chat(question, cache_prompt=False, seed=1), before)
            path.write_bytes(b"")
            self.assertEqual(server.chat(question, cache_prompt=False, seed=1), before)
            path.unlink()
            self.assertEqual(server.chat(question, cache_prompt=False, seed=1), before)
            self.assertIn("30 of 30 layers compressed", server.log_text())
        finally:
            server.close()


if __name__ == "__main__":
    host.main()
