"""What llama.cpp's programs do with a cache beside generating text, on the compressed one."""

import base64
import math
import struct
import unittest
import zlib

import host
import tiny_model
from server import QUESTIONS, SYSTEM, Server, is_right

CODEC = ["--codec", "scalar", "--budget", "30%", "--window", "32"]
PROMPT = "The capital of France is"


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


class Adapters(unittest.TestCase):
    """LoRA adapters on the projections that fill the cache."""

    @classmethod
    def setUpClass(cls):
        cls.path = host.WORK / "adapter.gguf"
        projections = [(f"blk.{layer}.attn_{side}.weight", 576, 192) for layer in range(30) for side in ("k", "v")]
        tiny_model.write_adapter(cls.path, "llama", projections, rank=4)
        # Longer than the window, so that what is generated has been read through codes.
        cls.prompt = host.document(800) + "\n\nIn short, this text"
        cls.arguments = host.completion_arguments(cls.prompt, 24, "-c", 1024, "--no-display-prompt", "--lora", cls.path)

    def test_changes_what_is_generated(self):
        without = host.plain("llama-completion", *self.arguments[:-2])
        self.assertNotEqual(host.plain("llama-completion", *self.arguments).out, without.out)

    def test_pass_through(self):
        expected = host.plain("llama-completion", *self.arguments)
        actual = host.with_plugin("llama-completion", "codec=none", *self.arguments)
        self.assertEqual(actual.code, 0, actual)
        self.assertEqual(actual.out, expected.out)

    def test_compressed(self):
        result = host.kvcodec("run", *CODEC, "--", host.program("llama-completion"), *self.arguments)
        self.assertEqual(result.code, 0, result)
        self.assertEqual(host.LoadLine(result).compressed, 30)
        self.assertGreater(host.EndLine(result).coded, 50)
        expected = host.plain("llama-completion", *self.arguments)
        self.assertEqual(result.out.split()[:4], expected.out.split()[:4])


class Speculation(unittest.TestCase):
    """A draft model, whose cache is a second one of the process, and rejected tokens that are rolled back."""

    def ask(self, name, options, *arguments):
        server = Server(name, options, ["-c", "2048", "-np", "1", *arguments])
        try:
            answers = [server.complete(question, cache_prompt=False) for question, _ in QUESTIONS]
            return server.log_text(), answers
        finally:
            server.close()

    def assert_right(self, answers, at_least):
        texts = [answer["choices"][0]["message"]["content"] for answer in answers]
        right = sum(is_right(text, expected) for text, (_, expected) in zip(texts, QUESTIONS))
        self.assertGreaterEqual(right, at_least, texts)

    def speculate(self, name, draft):
        """Log, answers, tokens drafted and accepted."""
        log, answers = self.ask(
            name, CODEC, "-md", draft, "--spec-type", "draft-simple", "--spec-draft-n-max", "4", "--spec-draft-n-min", "1"
        )
        drafted = sum(answer["timings"].get("draft_n", 0) for answer in answers)
        accepted = sum(answer["timings"].get("draft_n_accepted", 0) for answer in answers)
        self.assertGreater(drafted, 50)
        return log, answers, drafted, accepted

    def test_good_draft(self):
        log, answers, drafted, accepted = self.speculate("good-draft", host.MODEL)
        self.assertEqual(log.count("30 of 30 layers compressed"), 2, log[-3000:])
        self.assertGreater(accepted, 0.5 * drafted)
        self.assert_right(answers, 6)

    def test_draft_that_is_rejected(self):
        path = host.WORK / "bad-draft.gguf"
        tiny_model.write(path, host.MODEL, "llama", 2, 1)
        log, answers, drafted, accepted = self.speculate("bad-draft", path)
        self.assertIn("2 of 2 layers compressed", log)
        self.assertLess(accepted, 0.1 * drafted)
        self.assert_right(answers, 6)


class Embeddings(unittest.TestCase):
    """llama.cpp reads a text that it embeds in one piece: what it attends to is still dense."""

    @classmethod
    def setUpClass(cls):
        text = host.document(9000)
        cls.texts = [text[:3000], text[3000:6000], text[6000:]]

    def embed(self, name, options):
        server = Server(name, options, ["-c", "4096", "--embeddings", "--pooling", "mean", "-b", "2048", "-ub", "2048"])
        try:
            answer = server.ask("/v1/embeddings", {"input": self.texts})
            return server.log_text(), [item["embedding"] for item in answer["data"]]
        finally:
            server.close()

    def test_are_those_of_the_dense_cache(self):
        _, expected = self.embed("embeddings-f16", None)
        log, actual = self.embed("embeddings", CODEC)
        self.assertIn("30 of 30 layers compressed", log)
        self.assertEqual(len(actual), len(self.texts))
        for ours, theirs in zip(actual, expected):
            self.assertGreater(cosine(ours, theirs), 0.9999)
        _, none = self.embed("embeddings-none", ["--codec", "none"])
        for ours, theirs in zip(none, expected):
            self.assertGreater(cosine(ours, theirs), 0.999999)


class Ranking(unittest.TestCase):
    """A causal model that ranks texts reads long ones in several pieces, the earlier ones through codes."""

    @classmethod
    def setUpClass(cls):
        cls.path = host.WORK / "reranker.gguf"
        tiny_model.write(cls.path, host.MODEL, "qwen3", 2, 1)
        text = host.document(6000)
        cls.texts = [text[at : at + 1000] for at in range(0, len(text), 1000)]

    def rank(self, name, options):
        """The log and the texts' scores."""
        server = Server(name, options, ["-c", "4096", "-np", "2", "--reranking", "-b", "128", "-ub", "128"], self.path)
        try:
            answer = server.ask("/v1/rerank", {"query": "How is it built?", "documents": self.texts})
            self.assertEqual(len(answer["results"]), len(self.texts))
            scores = {item["index"]: item["relevance_score"] for item in answer["results"]}
            return server.log_text(), [scores[index] for index in range(len(self.texts))]
        finally:
            server.close()

    def test_scores_are_those_of_the_dense_cache(self):
        _, expected = self.rank("rerank-f16", None)
        self.assertGreater(max(expected) - min(expected), 0.1)  # or nothing could be told apart
        _, none = self.rank("rerank-none", ["--codec", "none"])
        for ours, theirs in zip(none, expected):
            self.assertAlmostEqual(ours, theirs, delta=1e-5)
        log, actual = self.rank("rerank", ["--codec", "scalar", "--budget", "60%", "--window", "32"])
        self.assertIn("2 of 2 layers compressed", log)
        self.assertNotEqual(actual, expected)
        for ours, theirs in zip(actual, expected):
            self.assertAlmostEqual(ours, theirs, delta=0.05)


def picture(size):
    """A PNG of this many pixels in height and width, as a data URL."""
    rows = b"".join(
        b"\0" + bytes(value for x in range(size) for value in (x * 255 // size, y * 255 // size, 128)) for y in range(size)
    )

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


class Images(unittest.TestCase):
    """A vision encoder beside the model: its tokens see each other, and lie in the cache among those of the text."""

    @classmethod
    def setUpClass(cls):
        cls.path = host.WORK / "mmproj.gguf"
        tiny_model.write_image_projector(cls.path, 576)

    def ask(self, name, options):
        content = [
            {"type": "image_url", "image_url": {"url": picture(128)}},
            {"type": "text", "text": "What is the capital of France?"},
        ]
        server = Server(name, options, ["-c", "2048", "-np", "1", "--mmproj", self.path])
        try:
            body = {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]}
            body.update(max_tokens=48, temperature=0, seed=1)
            answer = server.ask("/v1/chat/completions", body)
            self.assertGreater(answer["usage"]["prompt_tokens"], 60)
            return server.log_text(), answer["choices"][0]["message"]["content"]
        finally:
            server.close()

    def test_pass_through(self):
        _, expected = self.ask("image-f16", None)
        _, actual = self.ask("image-none", ["--codec", "none"])
        self.assertEqual(actual, expected)

    def test_compressed(self):
        log, answer = self.ask("image", CODEC)
        self.assertIn("30 of 30 layers compressed", log)
        self.assertIn("paris", answer.lower())


class LongContext(unittest.TestCase):
    TOKENS = 131072

    def test_room_that_is_not_used_costs_nothing(self):
        result = host.kvcodec(
            "run", *CODEC, "--", host.program("llama-completion"),
            *host.completion_arguments(PROMPT, 48, "-c", self.TOKENS),
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertIn("Paris", result.out)
        self.assertEqual(host.LoadLine(result).tokens, self.TOKENS)
        self.assertLess(host.EndLine(result).resident_mib, 20.0, result)

    def test_full(self):
        """A tiny model reads that much in a minute or two."""
        path = host.WORK / "tiny-long.gguf"
        tiny_model.write(path, tiny_model.small_vocabulary(), "llama", 2, 1)
        result = host.with_plugin(
            "llama-batched-bench", "codec=scalar,budget=30%", "-m", path, "-t", 2, "-c", self.TOKENS,
            "-b", 2048, "-ub", 512, "-npp", self.TOKENS - 16, "-ntg", 16, "-npl", 1,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        load, end = host.LoadLine(result), host.EndLine(result)
        self.assertEqual((load.compressed, load.layers), (2, 2))
        self.assertGreaterEqual(end.coded + end.dense, self.TOKENS - 16)
        self.assertLess(end.resident_percent, 50.0)


if __name__ == "__main__":
    host.main()
