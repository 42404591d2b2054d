"""llama-server's OpenAI-compatible endpoint behind `kvcodec run`."""

import concurrent.futures
import json
import types
import unittest

import host
from server import PLACE, QUESTIONS, WEATHER, Server, ServerCase, is_right

ROUNDS = 4
PARALLEL = 4
REQUESTS = 20


class Chats(ServerCase):
    ARGUMENTS = ["-c", "8192", "-np", PARALLEL]

    def test_compresses(self):
        self.assertIn("30 of 30 layers compressed", self.server.log_text())

    def test_chat_round_by_round(self):
        resident = []
        for _ in range(ROUNDS):
            questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(REQUESTS)]
            with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
                answers = list(pool.map(lambda item: self.server.chat(item[0]), questions))
            resident.append(self.server.resident_mib())
            right = 0
            for (question, expected), answer in zip(questions, answers):
                self.assertGreater(len(answer.strip()), 0, question)
                self.assertGreater(sum(c.isalnum() or c.isspace() for c in answer), 0.8 * len(answer), answer)
                right += is_right(answer, expected)
            # The model is a small one: two answers of three is what it gives with its f16 cache, too.
            self.assertGreaterEqual(right, 0.6 * REQUESTS, list(zip(questions, answers)))
        print(f"resident MiB after each round: {', '.join(f'{mib:.1f}' for mib in resident)}")
        # The first round fills what is kept anyway: buffers, slots.
        self.assertLess(max(resident[1:]) - resident[1], 4.0, resident)

    def test_same_request_same_answer(self):
        answers = {self.server.chat("Tell me a fact about the sea.", cache_prompt=False, seed=1) for _ in range(3)}
        self.assertEqual(len(answers), 1, answers)

    def test_streaming(self):
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
        parts = list(self.server.stream(body))
        text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
        self.assertGreater(len(text.strip()), 0)
        self.assertIn(parts[-1]["choices"][0]["finish_reason"], ("stop", "length"))

    def test_json_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
        answer = json.loads(self.server.chat("Describe the capital of France.", response_format=form, max_tokens=128))
        self.assertEqual(sorted(answer), ["city", "inhabitants"])
        self.assertIsInstance(answer["inhabitants"], int)

    def test_request_with_tools(self):
        answer = self.server.complete("What is the weather in Rome?", tools=[WEATHER], tool_choice="auto", max_tokens=64)
        message = answer["choices"][0]["message"]
        # The model is too small to call tools, with its f16 cache, too.
        self.assertTrue(message.get("tool_calls") or len(message["content"].strip()) > 20, message)

    def test_cancelled_in_mid_stream(self):
        body = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 4000}
        for _ in range(3):
            parts = self.server.stream(body)
            for _ in range(5):
                next(parts)
            parts.close()
        self.server.wait_until_idle()
        self.assertIn("paris", self.server.chat("What is the capital of France?").lower())


class Slots(ServerCase):
    """One slot whose state is saved, and prompts that begin alike."""

    ARGUMENTS = ["-c", "2048", "-np", "1"]

    @classmethod
    def setUpClass(cls):
        folder = host.WORK / "slots"
        folder.mkdir(exist_ok=True)
        cls.ARGUMENTS = [*cls.ARGUMENTS, "--slot-save-path", f"{folder}/"]
        super().setUpClass()

    def test_the_same_beginning_is_not_read_again(self):
        self.server.complete("What is the capital of France?")
        timings = self.server.complete("What do bees make?")["timings"]
        self.assertGreater(timings["cache_n"], 40, timings)
        self.assertLess(timings["prompt_n"], 30, timings)

    def test_saved_and_restored(self):
        question = "What is the capital of France?"
        self.assertIn("paris", self.server.chat(question).lower())
        saved = self.server.ask("/slots/0?action=save", {"filename": "paris"})
        self.server.complete("An entirely different question: what is two plus two?", cache_prompt=False)
        restored = self.server.ask("/slots/0?action=restore", {"filename": "paris"})
        self.assertEqual(restored["n_restored"], saved["n_saved"])
        again = self.server.complete(question)
        self.assertGreater(again["timings"]["cache_n"], 60, again)
        self.assertIn("paris", again["choices"][0]["message"]["content"].lower())


class RemovedTokens(unittest.TestCase):
    """Prompts that get shorter leave windows of longer ones behind, which the host forgets without a word."""

    def dense_cells(self, parallel, n_last):
        """Those left after eight prompts to one slot, the last of which generates n_last tokens."""
        options = ["--codec", "scalar", "--budget", "30%", "--window", "64"]
        server = Server(f"removed-{parallel}", options, ["-c", 1024 * parallel, "-np", parallel])
        document = host.document(2000)
        try:
            for length in range(2000, 400, -200):
                body = {"prompt": document[:length], "ignore_eos": True, "temperature": 0, "id_slot": 0}
                server.ask("/completion", {**body, "n_predict": 8 if length > 600 else n_last})
        finally:
            server.close()
        return host.EndLine(types.SimpleNamespace(err=server.log_text())).dense

    def test_are_coded(self):
        most = 64 + 4 + 31  # the window, the first tokens, what is coded together
        self.assertLessEqual(self.dense_cells(2, 8), most)
        # Of one stream they might belong to a sequence that pauses.
        self.assertLessEqual(self.dense_cells(1, 300), most)
        self.assertGreater(self.dense_cells(1, 8), most)


class ContextShift(ServerCase):
    """More tokens than there is room for."""

    ARGUMENTS = ["-c", "512", "-np", "1", "--context-shift"]

    def test_goes_on_past_the_context(self):
        answer = self.server.ask("/completion", {"prompt": "Once upon a time", "n_predict": 1200, "ignore_eos": True, "temperature": 0})
        self.assertEqual(answer["tokens_predicted"], 1200)
        text = answer["content"]
        self.assertGreater(sum(c.isalnum() or c.isspace() for c in text), 0.8 * len(text), text)
        self.assertIn("paris", self.server.chat("What is the capital of France?").lower())


if __name__ == "__main__":
    host.main()
