"""llama-server's OpenAI-compatible endpoint behind `kvcodec run`."""

import concurrent.futures
import json
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import host

ROUNDS = 4
PARALLEL = 4
REQUESTS = 20
START_TIMEOUT_S = 120

# A system prompt longer than the window, so that every request reads codes.
SYSTEM = (
    "You are a friendly assistant. Answer in one or two short sentences of plain English. Say what you know, and "
    "when you do not know something, say so. Do not make lists, do not use code, and do not repeat the question."
)
QUESTIONS = [
    ("What is the capital of France?", "paris"),
    ("What colour is the sky on a clear day?", "blue"),
    ("How many days are there in a week?", "seven|7"),
    ("Which planet do we live on?", "earth"),
    ("What do bees make?", "honey"),
    ("Which animal says meow?", "cat"),
    ("What do we call frozen water?", "ice"),
    ("In which country is the city of Rome?", "italy"),
    ("What is two plus two?", "four|4"),
    ("Which language do people speak in Spain?", "spanish"),
]


class ServerCase(unittest.TestCase):
    """A server of its own for the tests of one class."""

    OPTIONS = ["--codec", "scalar", "--budget", "30%", "--window", "32"]
    ARGUMENTS = []

    @classmethod
    def setUpClass(cls):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            cls.port = probe.getsockname()[1]
        cls.log_path = host.WORK / f"{cls.__name__}.log"
        cls.log = open(cls.log_path, "wb")
        command = [
            host.TOOL, "run", *cls.OPTIONS, "--", host.program("llama-server"), "-m", host.MODEL, *cls.ARGUMENTS,
            "-t", "2", "--host", "127.0.0.1", "--port", cls.port,
        ]  # fmt: skip
        cls.server = subprocess.Popen(
            [str(word) for word in command],
            env=host.clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=cls.log,
            stderr=cls.log,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not cls.is_healthy():
            if cls.server.poll() is not None or time.monotonic() > deadline:
                cls.tearDownClass()
                raise AssertionError("llama-server did not start:\n" + cls.log_text())
            time.sleep(0.2)

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        try:
            cls.server.wait(30)
        except subprocess.TimeoutExpired:
            cls.server.kill()
            cls.server.wait()
        cls.log.close()

    @classmethod
    def log_text(cls):
        return cls.log_path.read_text(errors="replace")[-4000:]

    @classmethod
    def is_healthy(cls):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{cls.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def resident_mib(self):
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kib) / 1024

    def open(self, path, body=None, timeout=300):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=timeout)

    def ask(self, path, body=None):
        with self.open(path, body) as answer:
            self.assertEqual(answer.status, 200)
            return json.load(answer)

    def complete(self, question, **options):
        """The whole answer of the endpoint for chats."""
        body = {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "max_tokens": 48,
            "temperature": 0,
            **options,
        }
        return self.ask("/v1/chat/completions", body)

    def chat(self, question, **options):
        choice = self.complete(question, **options)["choices"][0]
        self.assertIn(choice["finish_reason"], ("stop", "length"))
        return choice["message"]["content"]


class Server(ServerCase):
    ARGUMENTS = ["-c", "8192", "-np", PARALLEL]

    def test_compresses(self):
        log = self.log_path.read_text(errors="replace")
        self.assertIn("30 of 30 layers compressed", log)

    def test_chat_round_by_round(self):
        resident = []
        for _ in range(ROUNDS):
            questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(REQUESTS)]
            with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
                answers = list(pool.map(lambda item: self.chat(item[0]), questions))
            resident.append(self.resident_mib())
            right = 0
            for (question, expected), answer in zip(questions, answers):
                self.assertGreater(len(answer.strip()), 0, question)
                self.assertGreater(sum(c.isalnum() or c.isspace() for c in answer), 0.8 * len(answer), answer)
                right += any(word in answer.lower() for word in expected.split("|"))
            # The model is a small one: two answers of three is what it gives with its f16 cache, too.
            self.assertGreaterEqual(right, 0.6 * REQUESTS, list(zip(questions, answers)))
        print(f"resident MiB after each round: {', '.join(f'{mib:.1f}' for mib in resident)}")
        # The first round fills what is kept anyway: buffers, slots.
        self.assertLess(max(resident[1:]) - resident[1], 4.0, resident)

    def test_same_request_same_answer(self):
        answers = {self.chat("Tell me a fact about the sea.", cache_prompt=False, seed=1) for _ in range(3)}
        self.assertEqual(len(answers), 1, answers)

    def test_streaming(self):
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "stream": True}
        with self.open("/v1/chat/completions", body) as answer:
            lines = [line.decode() for line in answer if line.startswith(b"data: ")]
        self.assertEqual(lines[-1].strip(), "data: [DONE]")
        parts = [json.loads(line[len("data: "):]) for line in lines[:-1]]
        text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
        self.assertGreater(len(text.strip()), 0)

    def test_json_schema(self):
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}, "inhabitants": {"type": "integer"}},
            "required": ["city", "inhabitants"],
        }
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
        answer = json.loads(self.chat("Describe the capital of France.", response_format=form, max_tokens=128))
        self.assertEqual(sorted(answer), ["city", "inhabitants"])
        self.assertIsInstance(answer["inhabitants"], int)

    def test_request_with_tools(self):
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        function = {"name": "weather", "description": "The weather in a city.", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        answer = self.complete("What is the weather in Rome?", tools=tools, tool_choice="auto", max_tokens=64)
        message = answer["choices"][0]["message"]
        # The model is too small to call tools, with its f16 cache, too.
        self.assertTrue(message.get("tool_calls") or len(message["content"].strip()) > 20, message)

    def test_cancelled_in_mid_stream(self):
        body = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 4000, "stream": True}
        for _ in range(3):
            with self.open("/v1/chat/completions", body) as answer:
                for _ in range(5):
                    answer.readline()
        deadline = time.monotonic() + 60
        while any(slot["is_processing"] for slot in self.ask("/slots")):
            self.assertLess(time.monotonic(), deadline, "a slot is still busy with a request that was cancelled")
            time.sleep(0.2)
        self.assertIn("paris", self.chat("What is the capital of France?").lower())


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
        self.complete("What is the capital of France?")
        timings = self.complete("What do bees make?")["timings"]
        self.assertGreater(timings["cache_n"], 40, timings)
        self.assertLess(timings["prompt_n"], 30, timings)

    def test_saved_and_restored(self):
        question = "What is the capital of France?"
        self.assertIn("paris", self.chat(question).lower())
        saved = self.ask("/slots/0?action=save", {"filename": "paris"})
        self.complete("An entirely different question: what is two plus two?", cache_prompt=False)
        restored = self.ask("/slots/0?action=restore", {"filename": "paris"})
        self.assertEqual(restored["n_restored"], saved["n_saved"])
        again = self.complete(question)
        self.assertGreater(again["timings"]["cache_n"], 60, again)
        self.assertIn("paris", again["choices"][0]["message"]["content"].lower())


class ContextShift(ServerCase):
    """More tokens than there is room for."""

    ARGUMENTS = ["-c", "512", "-np", "1", "--context-shift"]

    def test_goes_on_past_the_context(self):
        answer = self.ask("/completion", {"prompt": "Once upon a time", "n_predict": 1200, "ignore_eos": True, "temperature": 0})
        self.assertEqual(answer["tokens_predicted"], 1200)
        text = answer["content"]
        self.assertGreater(sum(c.isalnum() or c.isspace() for c in text), 0.8 * len(text), text)
        self.assertIn("paris", self.chat("What is the capital of France?").lower())


if __name__ == "__main__":
    host.main()
