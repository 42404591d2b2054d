"""Random steps over llama.cpp's cache interface: the same on the f16 cache and on ours (random_walk.cc).

With KVCODEC_WALK_STEPS and KVCODEC_WALK_SEEDS in the environment, it takes so many steps of so many seeds of both kinds of
models with every kind of cache, and nothing else.
"""

import functools
import os
import random
import string
import unittest

import host
import tiny_model

WALK = os.environ.get("KVCODEC_RANDOM_WALK", "")
# What the mean KL divergence must stay below; random weights are harsher than trained ones.
EQUAL, SCALAR, TRANSFORM, LATENT, DICTIONARY = 0, 0.003, 0.03, 0.01, 1.0
STEPS = (
    ["clear", "copy", "decode", "divide", "keep", "load", "load sequence", "remove middle", "remove tail", "save"]
    + ["save sequence", "shift"]
)  # fmt: skip


@functools.cache
def model(architecture, n_head, n_head_kv, **more):
    path = host.WORK / f"{architecture}-{n_head}-{n_head_kv}.gguf"
    tiny_model.write(path, tiny_model.small_vocabulary(), architecture, n_head, n_head_kv, **more)
    return path


@functools.cache
def artifact(command, path, suffix, *arguments):
    written = path.with_suffix(suffix)
    result = host.kvcodec(command, "-m", path, "-o", written, "--threads", 1, *arguments)
    if result.code != 0:
        raise AssertionError(f"kvcodec {command} failed: {result}")
    return written


@functools.cache
def random_text():
    """What walks and artifacts are made of: the plug-in refuses an artifact that does not fit what it sees."""
    text = host.WORK / "random.txt"
    pick = random.Random(1)
    characters = [chr(value) for value in range(32, 0x800)]
    words = [" " + a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    text.write_text("".join(pick.choice(pick.choice([characters, words])) for _ in range(20000)), encoding="utf-8")
    return text


def learned(path):
    return artifact("train", path, ".kvc.gguf", "--text", random_text(), "--tokens", 4096, "--atoms", 64, "--sweeps", 2)


def low_rank(path):
    return artifact("lowrank", path, ".lorc.gguf", "--keep", "100%", "--per-head")


def caches(path):
    """All kinds of codes, with the divergence that each may have."""
    return {
        "codec=none": EQUAL,
        "codec=scalar:bits=8:window=16": SCALAR,
        f"codec=dictionary:s=24:window=16:artifact={learned(path)}": DICTIONARY,
        f"codec=transform:budget=50%:window=16:artifact={learned(path)}": TRANSFORM,
        f"codec=latent:bits=8:window=16:artifact={low_rank(path)}": LATENT,
    }


def walk(path, steps, seed, n_seeds, cells, which):
    return host.execute(
        [
            *(WALK, host.PLUGIN, path, random_text(), steps, seed, n_seeds, cells),
            *(f"kvcodec:{cache}={bound}" for cache, bound in which.items()),
        ],
        host.clean_environment(OMP_WAIT_POLICY="passive"),
    )


@unittest.skipIf("KVCODEC_WALK_STEPS" in os.environ, "a long walk was asked for")
class RandomWalk(unittest.TestCase):
    def check(self, result):
        self.assertEqual(result.code, 0, result)
        self.assertEqual(result.err, "")
        for step in STEPS:
            self.assertIn(f'"{step}"', result.out)
        print(result.out)

    def test_equal_and_near_in_one_pool(self):
        path = model("llama", 2, 1)
        which = {"codec=none": EQUAL, "codec=scalar:bits=8:window=16": SCALAR}
        self.check(walk(path, 2000, 1, 1, "unified", which))

    def test_all_codes_in_streams(self):
        path = model("qwen2", 2, 2, bias=True)
        self.check(walk(path, 500, 2, 1, "streams", caches(path)))

    def test_without_rope(self):
        which = {"codec=none": EQUAL, "codec=scalar:bits=8:window=16": SCALAR}
        self.check(walk(model("mpt", 2, 2), 500, 3, 1, "unified", which))

    def test_finds_what_is_wrong(self):
        result = walk(model("llama", 2, 1), 300, 1, 1, "unified", {"codec=scalar:bits=2:window=16": SCALAR})
        self.assertEqual(result.code, 1, result)
        self.assertIn("MORE THAN", result.out)
        result = walk(model("llama", 2, 1), 300, 1, 1, "unified", {"codec=scalar:bits=8:window=16": EQUAL})
        self.assertEqual(result.code, 1, result)
        self.assertIn("the logits of token", result.err)


@unittest.skipUnless("KVCODEC_WALK_STEPS" in os.environ, "takes long")
class LongWalk(unittest.TestCase):
    def test_many_seeds(self):
        steps, n_seeds = int(os.environ["KVCODEC_WALK_STEPS"]), int(os.environ["KVCODEC_WALK_SEEDS"])
        for cells, path in [("unified", model("llama", 2, 1)), ("streams", model("qwen2", 2, 2, bias=True))]:
            for seed in range(1, n_seeds + 1):
                result = walk(path, steps, seed, 1, cells, caches(path))
                # Of random weights and tokens, an artifact's layer may look like another model's to the plug-in.
                print(f"{path.stem}, {cells}, {result.out}{result.err}", flush=True)
                self.assertEqual(result.code, 0, result)


if __name__ == "__main__":
    host.main()
