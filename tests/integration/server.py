"""llama-server for the tests that talk to it, behind `kvcodec run` or alone."""

import json
import socket
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

import host

START_TIMEOUT_S = 120

# A system prompt longer than the window, so that every request reads codes.
SYSTEM = (
    "You are a friendly assistant. Answer in one or two short sentences of plain English. Say what you know, and "
    "when you do not know something, say so. Do not make lists, do not use code, and do not repeat the question."
)
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
        },
    },
}
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


def is_right(answer, expected):
    return any(word in answer.lower() for word in expected.split("|"))


def messages(question):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


class Server:
    """Running until close(). options: those of `kvcodec run`, or None for llama-server with its own cache."""

    def __init__(self, name, options, arguments, model=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_path = host.WORK / f"{name}.log"
        self._log = open(self.log_path, "wb")
        command = [] if options is None else [host.TOOL, "run", *options, "--"]
        command += [
            host.program("llama-server"), "-m", model or host.MODEL, *arguments,
            "-t", "2", "--host", "127.0.0.1", "--port", self.port,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=host.clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise AssertionError("llama-server did not start:\n" + self.log_text()[-4000:])
            time.sleep(0.2)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def resident_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kib) / 1024

    def open(self, path, body=None, timeout=300):
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=timeout)

    def ask(self, path, body=None):
        with self.open(path, body) as answer:
            return json.load(answer)

    def stream(self, body):
        """The parts of the answer of the endpoint for chats, as they come."""
        with self.open("/v1/chat/completions", {**body, "stream": True}) as answer:
            for line in answer:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[len(b"data: "):])

    def complete(self, question, **options):
        """The whole answer of the endpoint for chats."""
        body = {"messages": messages(question), "max_tokens": 48, "temperature": 0, **options}
        return self.ask("/v1/chat/completions", body)

    def chat(self, question, **options):
        choice = self.complete(question, **options)["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise AssertionError(choice)
        return choice["message"]["content"]

    def wait_until_idle(self, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while any(slot["is_processing"] for slot in self.ask("/slots")):
            if time.monotonic() > deadline:
                raise AssertionError("a slot is still busy with a request that was cancelled")
            time.sleep(0.2)


class ServerCase(unittest.TestCase):
    """A server of its own for the tests of one class."""

    OPTIONS = ["--codec", "scalar", "--budget", "30%", "--window", "32"]
    ARGUMENTS = []
    MODEL = None  # the test model

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.__name__, cls.OPTIONS, cls.ARGUMENTS, cls.MODEL)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()
