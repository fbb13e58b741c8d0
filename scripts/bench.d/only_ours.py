"""What only ours does, measured against itself: batches.

No peer has these, so each row compares ours with ours of the same round: a miss beside a batch
with one without. Every row checks that what it measured took place.
"""

import http.client
import json
import random
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from clients import TIMEOUT_S, fetch, median
from processes import BenchError
from rows import PEAK, Bench, Metric, Row, Sizes, Target
from servers import ADMIN_TOKEN, Server

SMALL_BYTES = 4 << 10
# Milliseconds to an upstream on the same continent, for a request and its answer.
FAR_MS = 20
MISSES_UNCOUNTED = 20
# One batch may end before a client has had enough misses; this many won't.
BATCHES_MAX = 20


def ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request, to where no artifacts are; the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {ADMIN_TOKEN}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask_json(server: Server, path: str) -> dict:
    status, body = ask(server, "GET", path)
    if status != 200:
        raise BenchError(f"GET {path}: status {status}")
    return json.loads(body)


# Batches


@dataclass(frozen=True)
class Miss:
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Client:
    """Asks for one cold file after the other, on one connection."""

    def __init__(self, url: str):
        self.url = url
        self.misses = 0
        host, port = url.split("/")[2].split(":")
        self.connection = socket.create_connection((host, int(port)), TIMEOUT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def miss(self) -> Miss:
        began = time.monotonic()
        fetch(f"{self.url}{self.misses}.deb", SMALL_BYTES, connection=self.connection)
        self.misses += 1
        return Miss(began, time.monotonic())


def misses_beside(client: Client, server: Server, remote: str, paths: list[str]) -> list[Miss]:
    """Has the paths cached by one request; the client's misses that lie wholly within that."""
    request = json.dumps({"remote": remote, "paths": paths}).encode()
    before = len(ask_json(server, "/jobs")["jobs"])
    misses = []
    with ThreadPoolExecutor(1) as pool:
        asked = time.monotonic()
        answer = pool.submit(ask, server, "POST", "/cache-artifact", request)
        # From here on the batch is known to run.
        while not answer.done() and len(ask_json(server, "/jobs")["jobs"]) == before:
            time.sleep(0.001)
        while not answer.done():
            misses.append(client.miss())
        status, body = answer.result()
    report = json.loads(body)
    ended = ("matched", "cached_count", "already_cached", "failed", "refused", "cancelled")
    counts = [report.get(name) for name in ended]
    if status != 200 or counts != [len(paths), len(paths), 0, 0, 0, 0]:
        raise BenchError(f"a batch of {len(paths)}: status {status}, "
                         f"{report.get('message') or report.get('detail')}")
    # It began after it was asked for, so at this time at the earliest it had ended.
    over = asked + report["seconds"]
    return [one for one in misses if one.ended <= over]


def p95(misses: list[Miss]) -> float:
    return statistics.quantiles([one.seconds for one in misses], n=20)[-1]


def batch(name: str, about: str, remote: str, folder: str) -> Row:
    def gets(bench: Bench, prefix: str) -> int:
        return (bench.fast_gets(prefix) if remote == "fast"
                else bench.slow_gets(prefix, remote))

    def measure(bench: Bench, server: Server):
        count = bench.sizes.batch
        wanted = count // 10
        serial = bench.cold()[:-4]
        batched, missed = f"{folder}/batch-{serial}-", f"{folder}/client-{serial}-"
        during: list[Miss] = []
        with Client(server.url(remote, missed)) as client:
            for _ in range(MISSES_UNCOUNTED):
                client.miss()
            # As many before as behind, so that a change of the machine's load meets both.
            idle = [client.miss() for _ in range(wanted)]
            batches = 0
            while len(during) < wanted:
                if batches == BATCHES_MAX:
                    raise BenchError(f"{batches} batches lasted for {len(during)} misses only")
                paths = [f"{batched}{batches}-{number}.deb" for number in range(count)]
                during += misses_beside(client, server, remote, paths)
                batches += 1
            idle += [client.miss() for _ in range(wanted)]
        if gets(bench, missed) != client.misses:
            raise BenchError(f"{client.misses} misses of a client asked upstream "
                             f"{gets(bench, missed)} times")
        # Stored, not just fetched: asked for again they are hits.
        for path in random.sample(paths, 20):
            fetch(server.url(remote, path), SMALL_BYTES)
        if gets(bench, batched) != batches * count:
            raise BenchError(f"{batches} batches of {count} asked upstream "
                             f"{gets(bench, batched)} times")
        alone = median(one.seconds for one in idle)
        return {"miss": median(one.seconds for one in during) / alone,
                "miss p95": p95(during) / p95(idle), "idle miss": alone * 1e3,
                "misses": len(during), "batches": batches}

    return Row(name, about,
               (Metric("miss", "× idle", (Target("≤", 1.5, ""),), relative=False),
                Metric("miss p95", "× idle", relative=False),
                Metric("idle miss", "ms", relative=False),
                Metric("misses", "counted", relative=False),
                Metric("batches", "", relative=False), PEAK),
               measure, lambda bench, server: server.fresh(), only=("ours",))


def all_rows(sizes: Sizes) -> list[Row]:
    return [
        batch("batch-far", f"misses 4 KiB beside a batch of {sizes.batch:,}, upstream {FAR_MS} ms "
              "away", "far", f"{FAR_MS}"),
        batch("batch-near", f"misses 4 KiB beside a batch of {sizes.batch:,}, upstream on the same "
              "CPUs", "fast", "4k"),
    ]
