"""Python programs: the `openai` client of llama-server, and llama-cpp-python, which is a host of its own."""

import json
import os
import shutil
import sys
import unittest

import host
from server import PLACE, QUESTIONS, WEATHER, ServerCase, is_right, messages

PACKAGES = host.CACHE / "python"  # scripts/get-python.sh
sys.path.insert(0, str(PACKAGES))
TOOL_MODEL = os.environ.get("KVCODEC_TOOL_MODEL")


@unittest.skipUnless((PACKAGES / "openai").exists(), "the openai client (scripts/get-python.sh) not found")
class OpenAiClient(ServerCase):
    ARGUMENTS = ["-c", "8192", "-np", "4", "--jinja"]

    @classmethod
    def setUpClass(cls):
        import openai

        super().setUpClass()
        cls.client = openai.OpenAI(base_url=f"{cls.server.url}/v1", api_key="none", max_retries=0)

    def create(self, question, **options):
        return self.client.chat.completions.create(
            model="any", messages=messages(question), temperature=0, max_tokens=48, **options
        )

    def test_chat(self):
        answers = [(self.create(question).choices[0].message.content, right) for question, right in QUESTIONS]
        self.assertGreaterEqual(sum(is_right(*answer) for answer in answers), 6, answers)

    def test_streaming(self):
        # Without the prompt of the first request, so that both are read in the same batches: others round differently.
        question, same = "What do bees make?", {"seed": 1, "extra_body": {"cache_prompt": False}}
        whole = self.create(question, **same).choices[0].message.content
        parts = list(self.create(question, stream=True, stream_options={"include_usage": True}, **same))
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        self.assertGreater(len(text), 10)
        self.assertEqual(text.split()[:5], whole.split()[:5])
        self.assertGreater(parts[-1].usage.completion_tokens, 4)

    def test_stream_left_early(self):
        for _ in range(3):
            stream = self.create("Tell me a long story about a ship.", stream=True)
            for _ in range(4):
                next(stream)
            stream.close()
        self.server.wait_until_idle()
        self.assertIn("paris", self.create("What is the capital of France?").choices[0].message.content.lower())

    def test_json_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}}
        answer = self.create("Describe the capital of France.", response_format=form)
        self.assertEqual(sorted(json.loads(answer.choices[0].message.content)), ["city", "inhabitants"])

    def test_request_with_tools(self):
        answer = self.create("What is the weather in Rome?", tools=[WEATHER], tool_choice="auto").choices[0].message
        # The model is too small to call tools, with its f16 cache, too.
        self.assertTrue(answer.tool_calls or len(answer.content) > 20, answer)

    def test_error_of_the_server(self):
        import openai

        with self.assertRaises(openai.BadRequestError):
            self.create("Hello " * 9000)
        self.assertIn("paris", self.create("What is the capital of France?").choices[0].message.content.lower())


@unittest.skipUnless((PACKAGES / "openai").exists(), "the openai client (scripts/get-python.sh) not found")
@unittest.skipUnless(TOOL_MODEL, "KVCODEC_TOOL_MODEL names no model that calls tools")
class ToolCalls(ServerCase):
    MODEL = TOOL_MODEL
    ARGUMENTS = ["-c", "4096", "-np", "1", "--jinja"]

    def test_calls_the_tool(self):
        import openai

        client = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0)
        question = [{"role": "user", "content": "What is the weather in Rome right now?"}]
        answer = client.chat.completions.create(
            model="any", messages=question, temperature=0, max_tokens=128, tools=[WEATHER]
        )
        message = answer.choices[0].message
        if message.tool_calls:
            name, arguments = message.tool_calls[0].function.name, json.loads(message.tool_calls[0].function.arguments)
        else:  # Qwen2.5 Coder leaves out the marks around its call
            call = json.loads(message.content.strip("`json\n"))
            name, arguments = call["name"], call["arguments"]
        self.assertEqual((name, arguments["city"]), ("weather", "Rome"))


@unittest.skipUnless((PACKAGES / "llama_cpp").exists(), "llama-cpp-python (scripts/get-python.sh) not found")
class LlamaCppPython(unittest.TestCase):
    """Its Python files beside the llama.cpp of these tests, as its own installation lays them."""

    PROGRAM = """
import json, os, sys
import llama_cpp
from llama_cpp._ggml import libggml

libggml.ggml_backend_load_all_from_path(os.environ["BACKENDS"].encode())
llama = llama_cpp.Llama(model_path=sys.argv[1], n_ctx=2048, n_threads=2, n_gpu_layers=-1, flash_attn=True, verbose=True)
prompt = sys.argv[2]
first = llama(prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
state = llama.save_state()
llama("Something else entirely: once upon a time", max_tokens=8, temperature=0)
llama.load_state(state)
again = llama(prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
messages = [
    {"role": "system", "content": "You are a friendly assistant. Answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
parts = llama.create_chat_completion(messages, max_tokens=48, temperature=0, stream=True)
chat = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
print(json.dumps({"first": first, "again": again, "chat": chat}))
"""

    # Predictions of a text behind a prompt. First: at once, and with the state saved before and restored. Then, with all
    # of the prompt coded by now, the same and after each of some rounds of saving and restoring.
    ROUNDS = """
import ctypes, os, sys
import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

libggml.ggml_backend_load_all_from_path(os.environ["BACKENDS"].encode())
llama = llama_cpp.Llama(
    model_path=sys.argv[1], n_ctx=1024, n_threads=2, n_gpu_layers=-1, flash_attn=True, logits_all=True, verbose=True
)
tokens = llama.tokenize(open(sys.argv[2], "rb").read())
prompt, probe = tokens[:700], tokens[700:764]
memory = llama_cpp.llama_get_memory(llama.ctx)

def predict():
    llama.n_tokens = len(prompt)
    llama.eval(probe)
    logits = llama.scores[len(prompt) : len(prompt) + len(probe)].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

def save():
    llama_cpp.llama_memory_seq_rm(memory, 0, len(prompt), -1)
    state = (ctypes.c_uint8 * llama_cpp.llama_state_get_size(llama.ctx))()
    assert llama_cpp.llama_state_get_data(llama.ctx, state, len(state)) == len(state)
    return state

def restore(state):
    llama_cpp.llama_memory_clear(memory, True)
    assert llama_cpp.llama_state_set_data(llama.ctx, state, len(state)) == len(state)

llama.eval(prompt)
state = save()
predictions = [predict()]
restore(state)
predictions += [predict(), predict()]
for _ in range(int(sys.argv[4])):
    restore(save())
    predictions.append(predict())
np.save(sys.argv[3], np.array(predictions))
"""

    @classmethod
    def setUpClass(cls):
        cls.folder = host.WORK / "llama-cpp-python"
        shutil.rmtree(cls.folder, ignore_errors=True)
        shutil.copytree(PACKAGES / "llama_cpp", cls.folder / "llama_cpp")
        (cls.folder / "llama_cpp" / "lib").symlink_to(host.PROGRAMS)

    def run_python(self, program, *arguments, **variables):
        path = os.pathsep.join([str(self.folder), str(PACKAGES)])
        environment = host.clean_environment(PYTHONPATH=path, BACKENDS=str(host.PROGRAMS), **variables)
        result = host.execute([sys.executable, "-c", program, host.MODEL, *arguments], environment)
        self.assertEqual(result.code, 0, result)
        return result

    def run_program(self, prompt, **variables):
        result = self.run_python(self.PROGRAM, prompt, **variables)
        return result, json.loads(result.out.splitlines()[-1])

    def divergences(self, codec):
        """Mean KL divergences from the dense cache's predictions."""
        import numpy

        text, path = host.document_file(9000), host.WORK / "predictions.npy"
        self.run_python(self.ROUNDS, text, path, 0)
        dense = numpy.load(path)[0]
        result = self.run_python(self.ROUNDS, text, path, 10, GGML_BACKEND_PATH=str(host.PLUGIN), KVCODEC=codec)
        self.assertEqual(host.LoadLine(result).compressed, 30)
        self.assertGreater(host.EndLine(result).coded, 500)
        return [float((numpy.exp(dense) * (dense - other)).sum(axis=1).mean()) for other in numpy.load(path)]

    def test_ten_rounds_of_saving_and_restoring(self):
        for codec in ("codec=scalar,budget=26%,window=32", f"codec=dictionary,window=32,artifact={host.small_artifact()}"):
            with self.subTest(codec):
                at_once, restored, coded, *rounds = self.divergences(codec)
                print(f"{codec}: KLD {at_once:.5f}, restored {restored:.5f}; wholly coded {coded:.5f}, "
                      f"then {', '.join(f'{value:.5f}' for value in rounds)}")
                self.assertGreater(at_once, 1e-5)
                # The host rounds activations to 8 bits: any other order of sums moves predictions by a divergence of
                # 0.004, here as between its own batch sizes.
                self.assertAlmostEqual(restored, at_once, delta=0.15 * at_once)  # the window, too
                self.assertEqual(len(rounds), 10)
                self.assertAlmostEqual(rounds[0], coded, delta=0.25 * coded)
                for value in rounds:
                    self.assertAlmostEqual(value, rounds[0], delta=0.001 * coded)

    def test_compresses(self):
        secret = "the password of the old lighthouse is"
        prompt = f"Remember this: {secret} marmalade.\n\n{host.document(3000)}\n\nNow the question: {secret}"
        result, answers = self.run_program(prompt, GGML_BACKEND_PATH=str(host.PLUGIN), KVCODEC="codec=scalar,budget=30%")
        self.assertEqual(host.LoadLine(result).compressed, 30)
        self.assertGreater(host.EndLine(result).coded, 500)
        self.assertIn("marmalade", answers["first"])
        self.assertIn("marmalade", answers["again"])
        self.assertIn("Paris", answers["chat"])

    def test_pass_through_is_its_own_cache(self):
        _, expected = self.run_program("Once upon a time")
        result, actual = self.run_program("Once upon a time", GGML_BACKEND_PATH=str(host.PLUGIN), KVCODEC="codec=none")
        self.assertIn("KVCODEC", result.err)  # where the host says the cache lies
        self.assertEqual(actual, expected)


if __name__ == "__main__":
    if not any((PACKAGES / name).exists() for name in ("openai", "llama_cpp")):
        print("skipped: the Python packages (scripts/get-python.sh) not found")
        sys.exit(host.SKIPPED)
    host.main()
