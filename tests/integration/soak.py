#!/usr/bin/env python3
"""Serves many mixed requests with kvcodec, then the first quarter of them with llama.cpp's own f16 cache, and compares.

    scripts/soak.sh [REQUESTS]

Requests are known by their numbers: short chats, questions about long texts, streams, streams that are left in
their midst, JSON schemas, tools. Prints a Markdown table; exit code 1 where a request failed, resident memory grew from
half time on, or an answer is not what a quiet server gives.
"""

import argparse
import concurrent.futures
import json
import random
import sys
import threading
import time

import host
from server import PLACE, QUESTIONS, WEATHER, Server, is_right, messages

SLOTS = 8
CONTEXT = 16384
CLIENTS = 8
PROMPTS_MIB = 64  # of llama-server's own memory for prompts, which otherwise grows to 8 GiB
WARM_UP_S = 60  # buffers fill in the first minute; the cells of all slots later
GROWTH_MIB = 16.0


class Request:
    """One of the list, known by its number. document: where texts are taken from."""

    KINDS = {"chat": 30, "text": 25, "stream": 20, "left": 10, "schema": 10, "tools": 5}

    def __init__(self, number, document):
        draw = random.Random(number)
        self.kind = draw.choices(list(self.KINDS), list(self.KINDS.values()))[0]
        self.question, self.expected = draw.choice(QUESTIONS)
        self.body = {"messages": messages(self.question), "max_tokens": 48, "temperature": 0, "seed": 1}
        if self.kind == "text":
            start = draw.randrange(len(document) - 4000)
            text = document[start : start + draw.randrange(500, 4000)]
            self.body["messages"] = messages(f"{text}\n\nWhat is this text about? One sentence.")
        elif self.kind == "schema":
            self.body["messages"] = messages("Describe the capital of France.")
            self.body["response_format"] = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
            self.body["max_tokens"] = 128
        elif self.kind == "tools":
            self.body["tools"] = [WEATHER]

    def send(self, server, gaps):
        """Whether the answer is a good one. gaps: seconds between the parts of streams are added."""
        if self.kind in ("stream", "left"):
            body = {**self.body, "max_tokens": 2000} if self.kind == "left" else self.body
            parts = server.stream(body)
            text, last = "", None
            for number, part in enumerate(parts):
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now
                text += "".join(choice["delta"].get("content") or "" for choice in part["choices"])
                if self.kind == "left" and number == 8:
                    parts.close()
                    return True
            return len(text) > 0
        answer = server.ask("/v1/chat/completions", self.body)["choices"][0]["message"]
        if self.kind == "schema":
            return sorted(json.loads(answer["content"])) == ["city", "inhabitants"]
        return len((answer.get("content") or "").strip()) > 0 or bool(answer.get("tool_calls"))


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def latencies(report, n_requests):
    """Of the first requests: between tokens, ms, and of whole requests, s; median and 99th percentile each."""
    gaps = [1e3 * gap for number in range(n_requests) for gap in report["gaps"][number]]
    whole = [report["latency"][number] for number in range(n_requests)]
    return [quantile(gaps, 0.5), quantile(gaps, 0.99), quantile(whole, 0.5), quantile(whole, 0.99)]


def quiet_answers(server):
    """What it says to each question with nothing else to do."""
    return [server.chat(question, cache_prompt=False, seed=1) for question, _ in QUESTIONS]


def soak(name, options, n_requests):
    document = host.document(400_000)
    server = Server(f"soak-{name}", options, ["-c", CONTEXT, "-np", SLOTS, "--jinja", "--cache-ram", PROMPTS_MIB])
    report = {"cache": name}
    try:
        before = quiet_answers(server)
        start = time.monotonic()
        resident, failures = [], []
        latency, gaps = {}, {}  # by request
        finished = threading.Event()

        def watch():
            resident.append((time.monotonic() - start, server.resident_mib()))
            while not finished.wait(1) and server.process.poll() is None:
                resident.append((time.monotonic() - start, server.resident_mib()))

        def send(number):
            began = time.monotonic()
            own_gaps = []
            try:
                request = Request(number, document)
                if not request.send(server, own_gaps):
                    failures.append(f"request {number} ({request.kind}): a bad answer")
            except Exception as error:  # whatever a client sees counts
                failures.append(f"request {number}: {error!r}")
            latency[number] = time.monotonic() - began
            gaps[number] = own_gaps

        watcher = threading.Thread(target=watch)
        watcher.start()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(send, range(n_requests)))
        finished.set()
        watcher.join()
        report["seconds"] = time.monotonic() - start
        for failure in failures[:20]:
            print(f"{name}: {failure}", file=sys.stderr)
        if server.process.poll() is not None:
            sys.exit(f"error: the server ended with {server.process.returncode}:\n{server.log_text()[-2000:]}")
        server.wait_until_idle()
        after = quiet_answers(server)
        last = resident[-1][0]
        report.update(failures=failures)
        for when, begin in (("first", min(WARM_UP_S, last)), ("half", last / 2), ("last", max(0, last - 60))):
            minute = [mib for second, mib in resident if begin <= second <= begin + 60]
            report[f"{when}_mib"] = sum(minute) / len(minute)
        report.update(
            n_requests=n_requests,
            latency=latency,
            gaps=gaps,
            same=sum(a == b for a, b in zip(before, after)),
            right=sum(is_right(answer, expected) for answer, (_, expected) in zip(after, QUESTIONS)),
        )
    finally:
        server.close()
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--options", default="--budget 20%", help="those of `kvcodec run`")
    arguments = parser.parse_args()
    reason = host.missing()
    if reason is not None:
        sys.exit(f"error: {reason}")
    host.WORK.mkdir(parents=True, exist_ok=True)
    n_compared = max(1, arguments.requests // 4)
    own = soak("kvcodec", arguments.options.split(), arguments.requests)
    dense = soak("f16", None, n_compared)
    print(f"{arguments.requests} requests of {CLIENTS} clients, {SLOTS} slots, {CONTEXT} cells, {arguments.options}; "
          f"latencies are of the first {n_compared}\n")
    print("| cache | requests served | errors | minutes | resident MiB, second minute | at half time | last minute "
          "| between tokens, ms, median | 99 % | a request, s, median | 99 % | quiet answers unchanged | right |")
    print("|" + " --- |" * 13)
    for report in (own, dense):
        between, between_99, whole, whole_99 = latencies(report, n_compared)
        print(
            f"| {report['cache']} | {report['n_requests'] - len(report['failures'])} | {len(report['failures'])} "
            f"| {report['seconds'] / 60:.1f} | {report['first_mib']:.1f} | {report['half_mib']:.1f} | {report['last_mib']:.1f} "
            f"| {between:.1f} | {between_99:.1f} | {whole:.2f} | {whole_99:.2f} "
            f"| {report['same']} of {len(QUESTIONS)} | {report['right']} of {len(QUESTIONS)} |"
        )
    ratios = [a / b for a, b in zip(latencies(own, n_compared), latencies(dense, n_compared))]
    print(f"\n99 % of latency, kvcodec / f16: {ratios[3]:.2f} a request, {ratios[1]:.2f} between tokens")
    grew = own["last_mib"] - own["half_mib"] > GROWTH_MIB
    sys.exit(1 if own["failures"] or grew or own["same"] < len(QUESTIONS) else 0)


if __name__ == "__main__":
    main()
