"""Latency of `serve`: p50, p90 and p99 of one session per request, and requests per second, over HTTP on this machine.

    python benchmarks/serve.py [--items 12000] [--requests 500] [--clients 4] [--json FILE]
    python benchmarks/serve.py --checkpoint FILE [--intents nearest] [--ask 20]

Without a checkpoint SR-GNN with session text is trained for one epoch on synthetic clicks over so many items (the text encoder reads their
titles first). Sessions hold 1 to 20 known items. `--ask N` then has N sessions answered by the checkpoint's LLM, which is slow by nature.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from growth import write_log
from scale import in_a_process


def make_checkpoint(folder: str, items: int) -> str:
    """A model over so many items, in this process."""
    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.intent.infer import infer
    from recbole_llm4sbr.training.run import train

    write_log(folder, 20_000, items)
    given = {
        "data_path": folder, "atomic_path": f"{folder}/atomic", "checkpoint_dir": f"{folder}/saved", "session_rule": "user",
        "session_targets": "all", "min_item_count": 1, "intent_source": "session_text", "epochs": 1, "gpu_id": "", "show_progress": False,
    }  # fmt: skip
    settings = load_settings("SRGNN", "synthetic", overrides=given)
    prepare(settings)
    infer(settings)
    return str(train(settings).checkpoint)


def ask(url: str, sessions: list[list[str]], intents: str) -> list[float]:
    """Seconds of each request, one after the other on one connection each."""
    seconds = []
    for session in sessions:
        body = json.dumps({"sessions": [session], "intents": intents}).encode()
        request = urllib.request.Request(url + "recommend", body, {"Content-Type": "application/json"})
        started = time.perf_counter()
        urllib.request.urlopen(request, timeout=600).read()
        seconds.append(time.perf_counter() - started)
    return seconds


def known_items(checkpoint: str) -> list[str]:
    from recbole_llm4sbr import Recommender

    catalogue = Recommender.load(checkpoint).catalogue
    return [token for token, clicked in zip(catalogue.tokens, catalogue.clicked) if clicked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--checkpoint", help="a model of your own")
    parser.add_argument("--intents", default="stored", choices=("stored", "nearest", "none"))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4, help="at once, for the requests per second")
    parser.add_argument("--ask", type=int, default=0, help="requests that have the LLM asked")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    rng = random.Random(1)
    result: dict[str, Any] = {"options": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or in_a_process(make_checkpoint, folder, options.items)
        items = in_a_process(known_items, checkpoint)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "recbole_llm4sbr.cli",
            "serve",
            f"--checkpoint={checkpoint}",
            f"--port={port}",
            "--allow_ask",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as service:
            url = f"http://127.0.0.1:{port}/"
            for _ in range(600):
                try:
                    urllib.request.urlopen(url + "health", timeout=1).read()
                    break
                except OSError:
                    time.sleep(0.1)

            def draw(count: int) -> list[list[str]]:
                return [rng.sample(items, rng.randint(1, 20)) for _ in range(count)]

            ask(url, draw(20), options.intents)  # the first requests read what is read once
            seconds = ask(url, draw(options.requests), options.intents)
            cuts = statistics.quantiles(seconds, n=100)
            result["ms"] = {name: round(1000 * cuts[at - 1], 1) for name, at in (("p50", 50), ("p90", 90), ("p99", 99))}
            started = time.perf_counter()
            with ThreadPoolExecutor(options.clients) as pool:
                list(
                    pool.map(
                        lambda each: ask(url, each, options.intents),
                        [draw(options.requests // 4) for _ in range(options.clients)],
                    )
                )
            result["requests_per_second"] = round(
                options.clients * (options.requests // 4) / (time.perf_counter() - started), 1
            )
            if options.ask:
                result["ask_seconds_p50"] = round(statistics.median(ask(url, draw(options.ask), "ask")), 2)
            service.kill()
    print(f"{len(items):,} items, intents {options.intents}: {result['ms']} ms")
    print(f"{result['requests_per_second']} requests/s of {options.clients} clients at once")
    if options.ask:
        print(f"with the LLM asked: p50 {result['ask_seconds_p50']} s")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
