"""`kvcodec eval` measures what it says: as llama-perplexity does, and a broken cache is caught by every suite."""

import json
import random
import re
import unittest

import host

GOOD = "kvcodec:codec=scalar:bits=8:artifact=none"
BROKEN = "kvcodec:codec=dictionary:s=1"
N_CTX = 512
CHUNKS = 2


def evaluate(*arguments, json_file=None):
    command = ["eval", "-m", host.MODEL, "--threads", 2, *arguments]
    if json_file is not None:
        command += ["--json", json_file]
    return host.kvcodec(*command, KVCODEC_PLUGIN=str(host.PLUGIN))


def fresh(name):
    path = host.WORK / name
    path.unlink(missing_ok=True)
    return path


def results(path):
    """Results by cache."""
    return {entry["cache"]: entry["result"] for entry in json.loads(path.read_text())["results"]}


def problems(name, n, seed):
    """Sums in GSM8K's form that the small model can do."""
    path = host.WORK / name
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(n):
            a, b = generator.randint(2, 9), generator.randint(2, 9)
            question = f"Tom has {a} apples and gets {b} more. How many apples does he have?"
            answer = f"{a} + {b} = {a + b} apples.\n#### {a + b}"
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return path


class Eval(unittest.TestCase):
    def run_suite(self, suite, *arguments):
        path = fresh(f"eval-{suite}.json")
        caches = f"{GOOD},{BROKEN}"
        result = evaluate(
            "--suite", suite, "-a", host.small_artifact(), "--cache", caches, *arguments, json_file=path
        )
        self.assertEqual(result.code, 0, result)
        return results(path)

    def test_agrees_with_llama_perplexity(self):
        text = host.document_file(40_000)
        base = fresh("base.kld")
        common = ["-m", host.MODEL, "-f", text, "-c", N_CTX, "--chunks", CHUNKS, "-t", 2, "-fa", "on"]
        self.assertEqual(host.plain("llama-perplexity", *common, "--kl-divergence-base", base).code, 0)
        quantised = host.plain(
            "llama-perplexity", *common, "--kl-divergence-base", base, "--kl-divergence", "-ctk", "q4_0", "-ctv", "q4_0"
        )  # fmt: skip
        base.unlink()
        found = re.search(r"Mean\s+KLD:\s+([\d.]+) ±\s+([\d.]+)", quantised.out + quantised.err)
        self.assertIsNotNone(found, quantised)
        path = fresh("eval-kld-host.json")
        ours = evaluate(
            "--text", text, "--ctx-size", N_CTX, "--chunks", CHUNKS, "--cache", "q4_0,f16/q8_0", json_file=path
        )
        self.assertEqual(ours.code, 0, ours)
        kld = results(path)["q4_0"]
        self.assertEqual(kld["tokens"], CHUNKS * (N_CTX // 2 - 1))
        self.assertAlmostEqual(kld["kld"], float(found[1]), delta=max(0.01 * float(found[1]), float(found[2])))
        self.assertLess(results(path)["f16/q8_0"]["kld"], kld["kld"] / 4)

    def test_pass_through_is_the_reference(self):
        path = fresh("eval-kld-none.json")
        result = evaluate(
            "--text", host.document_file(40_000), "--ctx-size", N_CTX, "--chunks", 1, "--cache", "kvcodec:codec=none",
            json_file=path,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertAlmostEqual(results(path)["kvcodec:codec=none"]["kld_max"], 0.0, delta=1e-6)

    def test_live_mode_that_reads_few_codes_is_refused(self):
        path = fresh("eval-kld-live.json")
        result = evaluate(
            "--text", host.document_file(40_000), "--ctx-size", N_CTX, "--chunks", 1, "--mode", "live", "--cache", GOOD,
            json_file=path,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        self.assertTrue(results(path)[GOOD]["refused"])
        self.assertIn("refused", result.out)

    def test_broken_codec_is_caught_by_kld(self):
        text = host.document_file(40_000)
        found = self.run_suite("kld", "--text", text, "--ctx-size", N_CTX, "--chunks", 1)
        self.assertLess(found[GOOD]["kld"], 0.05)
        self.assertGreater(found[GOOD]["same_top"], 0.9)
        self.assertGreater(found[BROKEN]["kld"], 1.0)
        self.assertLess(found[BROKEN]["same_top"], 0.6)

    def test_broken_codec_is_caught_by_recon(self):
        text = host.document_file(40_000)
        found = self.run_suite("recon", "--text", text, "--ctx-size", N_CTX, "--chunks", 1)
        for cache, low, high in [(GOOD, 0.0, 0.02), (BROKEN, 0.4, 1.1)]:
            self.assertEqual(len(found[cache]["distortion"]), 30)
            for layer in found[cache]["distortion"]:
                for side in "kv":
                    miss, residual, _ = layer[side][0]
                    self.assertTrue(low <= (miss / residual) ** 0.5 <= high, (cache, layer))

    def test_broken_codec_is_caught_by_solutions(self):
        found = self.run_suite("solutions", "--problems", problems("solutions.jsonl", 4, 1), "--max-tokens", 48)
        self.assertLess(found[GOOD]["kld"], 0.05)
        self.assertGreater(found[BROKEN]["kld"], 1.0)

    def test_broken_codec_is_caught_by_retrieval(self):
        found = self.run_suite("retrieval", "--ctx-size", 128, "-n", 24)
        self.assertGreater(found["f16"]["score"], 0.4)
        self.assertGreater(found[GOOD]["score"], 0.4)
        self.assertLess(found[BROKEN]["score"], 0.2)
        self.assertLess(found[BROKEN]["mcnemar_p"], 0.05)

    def test_broken_codec_is_caught_by_gsm8k(self):
        found = self.run_suite(
            "gsm8k", "--problems", problems("sums.jsonl", 24, 2), "--examples", problems("examples.jsonl", 5, 3),
            "--max-tokens", 32,
        )  # fmt: skip
        self.assertGreater(found["f16"]["score"], 0.5)
        self.assertGreater(found[GOOD]["score"], 0.5)
        self.assertLess(found[BROKEN]["score"], 0.2)
        self.assertLess(found[BROKEN]["mcnemar_p"], 0.05)
        self.assertGreater(found["f16"]["strict_score"], 0.5)

    def test_longbench_scores_each_type(self):
        story = "Anna went to the market. She bought three green apples and a loaf of bread for her brother Tom."
        kinds = {
            "qasper": ("Where did Anna go?", ["The market"]),
            "samsum": ("", ["Anna bought apples and bread."]),
            "trec": ("Question: Where is Rome? Type:", ["Location"]),
            "passage_retrieval_en": ("Paragraph 1 is about a market. Which paragraph is it?", ["Paragraph 1"]),
            "lcc": ("def add(a, b):\n    return", ["a + b"]),
        }
        path = host.WORK / "longbench.jsonl"
        with path.open("w") as file:
            for dataset, (question, answers) in kinds.items():
                line = {"dataset": dataset, "context": "" if dataset == "lcc" else story, "input": question,
                        "answers": answers, "all_classes": ["Location", "Person"]}  # fmt: skip
                file.write(json.dumps(line) + "\n")
        found = self.run_suite("longbench", "--tasks", path)
        self.assertEqual(set(found["f16"]["groups"]), set(kinds))
        for result in found.values():
            self.assertTrue(all(0 <= score <= 1 for score in result["scores"]), result)
        for kind in ("qasper", "samsum", "lcc"):
            self.assertGreater(found["f16"]["groups"][kind]["score"], 0, found["f16"])
        self.assertLess(found[BROKEN]["score"], found["f16"]["score"])

    def test_choice_retrieval_needle_ruler_and_generate(self):
        path = host.WORK / "choice.jsonl"
        line = {"question": "Which is an animal?", "options": ["stone", "cat"], "answer_index": 1, "category": "easy"}
        path.write_text(json.dumps(line) + "\n")
        found = self.run_suite("choice", "--tasks", path, "--max-tokens", 32)
        self.assertEqual(found["f16"]["n"], 1)
        self.assertIn("easy", found["f16"]["groups"])
        path = host.WORK / "records.jsonl"
        line = {"ordered_kv_records": [["aa", "17"], ["bb", "42"], ["cc", "58"]], "key": "bb", "value": "42"}
        path.write_text(json.dumps(line) + "\n")
        found = self.run_suite("retrieval", "--tasks", path)
        self.assertEqual(found[GOOD]["score"], 1)
        found = self.run_suite("needle", "--text", host.document_file(40_000), "--ctx-size", "256,384", "-n", 10)
        self.assertEqual(len(found["f16"]["groups"]), 10)
        self.assertGreater(found[GOOD]["score"], 0.5)
        self.assertLess(found[BROKEN]["score"], 0.5)
        found = self.run_suite("ruler", "--ctx-size", "256", "-n", 4)
        self.assertEqual(len(found["f16"]["groups"]), 2)
        found = self.run_suite("generate", "--prompt", "The capital of France is", "--max-tokens", 8)
        self.assertIn("Paris", found["f16"]["answers"][0])
        self.assertIn("Paris", found[GOOD]["answers"][0])

    def test_speed_and_components(self):
        path, page = fresh("eval-speed.json"), fresh("eval-speed.html")
        result = evaluate(
            "--suite", "speed,components,kld", "--depths", "0,256", "--sequences", "1,2", "--cache", GOOD,
            "--text", host.document_file(40_000), "--ctx-size", N_CTX, "--chunks", 1, "--html", page, json_file=path,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        entries = {(e["suite"], e["cache"]): e["result"] for e in json.loads(path.read_text())["results"]}
        f16, ours = entries["speed", "f16"], entries["speed", GOOD]
        self.assertGreater(f16["depths"][1]["median_ms"], f16["depths"][0]["median_ms"])
        self.assertEqual([point["sequences"] for point in ours["sequences"]], [1, 2])
        self.assertEqual(ours["f16"], {key: f16[key] for key in ours["f16"]})
        self.assertEqual(ours["f16"]["depths"], f16["depths"])
        # 30 layers of 3 heads of 64 + 64 elements, 48 tokens after the deepest depth.
        token = 30 * 3 * (64 + 64) * 2
        self.assertEqual(f16["resident_bytes"], (256 + 48) * token)
        # Window, sinks and up to 32 tokens that wait for their turn are dense; codes come in blocks of 64 tokens.
        dense, coded = 128 + 4 + 32, 5 * 64
        self.assertLess(ours["resident_bytes"], 1.1 * (dense + ours["rate"] * coded) * token)
        self.assertGreater(ours["resident_bytes"], (128 + ours["rate"] * (256 + 48 - dense)) * token)
        self.assertLess(ours["rate"], 0.52)
        self.assertGreater(sum(entries["components", GOOD]["parts_ms"].values()), 0)
        self.assertIn("overview", page.read_text())
        self.assertRegex(result.out, r"\| f16 \| 100.0 % .*reference")

    def test_baselines(self):
        """Sizes as their papers have them, and answers that are not far off with many bits or rows."""
        rates = {"token:bits=4": 5 / 16, "kivi:bits=4": 5 / 16, "turboquant:bits=4": 4 / 16 + 1 / 64,
                 "zipcache:budget=20%": 0.2, "h2o:budget=50%": 0.5, "snapkv:budget=50%": 0.5,
                 "pyramidkv:budget=50%": 0.5}  # fmt: skip
        path = fresh("eval-baselines.json")
        caches = ",".join(f"kvcodec:codec={name}" for name in rates)
        result = evaluate(
            "--text", host.document_file(40_000), "--ctx-size", 1536, "--chunks", 1, "--together", len(rates),
            "--cache", caches, json_file=path,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        found = results(path)
        for name, rate in rates.items():
            cache = found[f"kvcodec:codec={name}"]
            self.assertAlmostEqual(cache["rate"], rate, delta=0.002 if "bits" in name else 0.02, msg=name)
            self.assertLess(cache["kld"], 0.7 if name.startswith("zipcache") else 0.3, name)  # it has 20 %
            self.assertGreater(cache["kld"], 0.001, name)

    def test_transform_beats_what_it_replaces(self):
        """Keys before RoPE: at equal bytes ahead of the scalar codec, and taken by itself where 3 bits do not fit."""
        path = fresh("eval-transform.json")
        chosen, transform, larger = "13.28%", "codec=transform:budget=13.28%", "codec=transform:budget=26%"
        scalar = "codec=scalar:bits=2"
        caches = ",".join(f"kvcodec:{name}:sinks=4" for name in (chosen, transform, larger, scalar))
        result = evaluate(
            "-a", host.small_artifact(), "--text", host.document_file(40_000), "--ctx-size", 1024, "--chunks", 1,
            "--together", 4, "--cache", caches, json_file=path,
        )  # fmt: skip
        self.assertEqual(result.code, 0, result)
        found = {name: results(path)[f"kvcodec:{name}:sinks=4"] for name in (chosen, transform, larger, scalar)}
        self.assertLessEqual(found[transform]["rate"], found[scalar]["rate"] + 1e-9)
        self.assertLess(found[transform]["kld"], 0.8 * found[scalar]["kld"])
        self.assertEqual(found[chosen]["kld"], found[transform]["kld"])
        self.assertLess(found[larger]["kld"], 0.1 * found[scalar]["kld"])

    def test_finished_results_are_kept(self):
        path, page, curve = fresh("eval-resume.json"), fresh("eval.html"), fresh("eval.svg")
        arguments = ["--text", host.document_file(40_000), "--ctx-size", N_CTX, "--chunks", 1]
        first = evaluate(*arguments, "--cache", "q8_0", json_file=path)
        self.assertEqual(first.code, 0, first)
        before = results(path)["q8_0"]
        second = evaluate(
            *arguments, "--cache", "q8_0,q5_0", "--html", page, "--svg", curve, json_file=path
        )  # fmt: skip
        self.assertEqual(second.code, 0, second)
        self.assertIn("1 caches", second.err)
        self.assertEqual(results(path)["q8_0"], before)
        self.assertIn("q5_0", page.read_text())
        self.assertIn("<svg", curve.read_text())


class Mistakes(unittest.TestCase):
    def assert_refused(self, code, *arguments, words):
        result = evaluate(*arguments)
        self.assertEqual(result.code, code, result)
        for word in words:
            self.assertIn(word, result.err)
        self.assertNotIn("|", result.out)

    def test_missing_files(self):
        self.assertNotEqual(host.kvcodec("eval", "-m", "/absent.gguf").code, 0)
        self.assert_refused(1, "--text", "/absent.txt", words=["/absent.txt"])
        self.assert_refused(1, words=["--text"])

    def test_text_too_short(self):
        self.assert_refused(
            1, "--text", host.document_file(2_000), "--ctx-size", 1024, "--cache", "q8_0", words=["tokens", "--chunks"]
        )

    def test_malformed_tasks(self):
        path = host.WORK / "malformed.jsonl"
        for suite, line in [
            ("longbench", {"dataset": "qasper", "context": 5, "answers": ["x"]}),
            ("longbench", {"dataset": "unknown", "context": "", "answers": ["x"]}),
            ("choice", {"question": "Which?", "options": ["a", "b"], "answer_index": 2}),
            ("choice", ["Which?"]),
            ("retrieval", {"ordered_kv_records": [["a"]], "key": "a", "value": "b"}),
        ]:
            path.write_text(json.dumps(line) + "\n")
            self.assert_refused(1, "--suite", suite, "--tasks", path, "--cache", "q8_0", words=[str(path), "line 1"])

    def test_unknown_names(self):
        text = ["--text", host.document_file(2_000)]
        self.assert_refused(2, *text, "--suite", "everything", words=["everything", "kld"])
        self.assert_refused(1, *text, "--cache", "q9_0", words=["q9_0", "q8_0"])
        self.assert_refused(1, *text, "--cache", "kvcodec:bits=5", words=["bits=5"])

    def test_artifact_of_another_model(self):
        inspected = json.loads(host.kvcodec("inspect", "--json", host.small_artifact()).out)
        fingerprint = inspected["model"]["fingerprint"].encode()
        path = host.WORK / "eval-other-model.kvc.gguf"
        path.write_bytes(host.small_artifact().read_bytes().replace(fingerprint, fingerprint[::-1]))
        self.assert_refused(
            1, "--text", host.document_file(40_000), "--cache", "kvcodec", "-a", path, words=["kvcodec train"]
        )

    def test_results_that_cannot_be_written(self):
        text = ["--text", host.document_file(2_000), "--cache", "q8_0"]
        self.assert_refused(1, *text, "--json", "/absent/results.json", words=["/absent"])
        other = host.WORK / "not-results.json"
        other.write_text("[]")
        self.assert_refused(1, *text, "--json", other, words=["not a file of results"])
        self.assertEqual(other.read_text(), "[]")


if __name__ == "__main__":
    host.main()
