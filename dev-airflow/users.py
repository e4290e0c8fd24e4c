"""Users of a service: real rows at a fixed rate, whether those before are answered or not; who answered, every 5 s."""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet

from airflow_ml_provider import models
from airflow_ml_provider.exceptions import MlError
from airflow_ml_provider.serving.client import Client

SHOWN_EVERY_S = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of the services")
    parser.add_argument("service")
    parser.add_argument("--rate", type=float, default=20, help="requests per second")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    client = Client(args.root, args.service, timeout_s=10)
    try:
        rows = itertools.cycle(sample(client))
    except MlError as error:
        sys.exit(f"error: {error}")
    answered: Counter[str] = Counter()
    lock, began = threading.Lock(), time.monotonic()

    def ask(row: dict) -> None:
        try:
            who = client.predict(row).version
        except MlError:
            who = "failed"
        with lock:
            answered[who] += 1

    with ThreadPoolExecutor(32) as pool:
        for number in itertools.count():
            due = began + number / args.rate
            time.sleep(max(0.0, due - time.monotonic()))
            if due - began > args.seconds:
                break
            pool.submit(ask, next(rows))
            if number and number % round(args.rate * SHOWN_EVERY_S) == 0:
                with lock:
                    print(f"{due - began:5.0f} s  " + "  ".join(f"{who}: {n}" for who, n in sorted(answered.items())))
                    answered.clear()
                sys.stdout.flush()


def sample(client: Client) -> list[dict]:
    """Return rows that the stable version was tried with when it was packaged."""
    wanted = client.wanted()
    package = Path(wanted.versions[wanted.stable].package)
    inputs = list(models.read_manifest(package).inputs)
    table = pyarrow.parquet.read_table(package / models.SAMPLE, columns=inputs)
    return [{name: [value] for name, value in row.items()} for row in table.to_pylist()]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print()
