"""What only ours does, measured against itself: batches, a bounded cache, uploads.

No peer has these, so each row compares ours with ours of the same round: a miss beside a batch
with one without, a full cache with an unbounded one. Every row checks that what it measured
took place.
"""

import functools
import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clients import TIMEOUT_S, Wrk, fetch, median, wrk
from processes import BenchError, paused, status_sum
from rows import MISSES_MAX, PEAK, Bench, Metric, Row, Sizes, Target
from servers import ADMIN_TOKEN, HERE, Artifactapi, Server

SMALL_BYTES = 4 << 10
# Milliseconds to an upstream on the same continent, for a request and its answer.
FAR_MS = 20
MISSES_UNCOUNTED = 20
# One batch may end before a client has had enough misses; this many won't.
BATCHES_MAX = 20

FULL_BYTES_MAX = 64 << 20
HOT_FILES = 64
HOT_BYTES = 1 << 10
FILL_BYTES = 64 << 10
# Misses a second and threads that make them: together half the bound each second.
SMALL_MISSES, MEDIUM_MISSES, HOT_CHECKS = (400, 4), (30, 2), (20, 1)
KEPT_UP_MIN = 0.9
FLOOD_CONNECTIONS = 16
SAMPLES_MIN = 5

PIECE_BYTES = 1 << 20
NUMBER_BYTES = 8


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


# A bounded cache


class Load:
    """Misses of two sizes at fixed rates, and hits, each answer compared with upstream's bytes.

    Fixed, so that two servers get the same load, whichever is faster. A context manager.
    """

    def __init__(self, bench: Bench, server: Server, hot: str):
        self.server, self.ended = server, threading.Event()
        self.asked = 0
        self.error: Exception | None = None
        # Guards the two above.
        self.lock = threading.Lock()
        data, serial = bench.origin.data, bench.cold()[:-4]
        self.threads = []
        self.rate = 0

        def add(rate: tuple[int, int], file: str, path_of):
            per_second, threads = rate
            self.rate += per_second
            for thread in range(threads):
                self.threads.append(threading.Thread(target=self.run, args=(
                    per_second / threads, (data / file).read_bytes(),
                    functools.partial(path_of, thread))))

        add(SMALL_MISSES, "4k", lambda thread, at: f"4k/load-{serial}-{thread}-{at}.deb")
        add(MEDIUM_MISSES, "1m", lambda thread, at: f"1m/load-{serial}-{thread}-{at}.deb")
        add(HOT_CHECKS, "1k", lambda _, at: f"{hot}{at % HOT_FILES}.deb")

    def run(self, per_second: float, content: bytes, path_of):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=TIMEOUT_S)
        began, count = time.monotonic(), 0
        try:
            while not self.ended.wait(max(0, began + count / per_second - time.monotonic())):
                path = self.server.path("fast", path_of(count))
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200 or body != content:
                    raise BenchError(f"{path}: status {answer.status} with {len(body)} bytes, "
                                     f"not the {len(content)} of upstream")
                count += 1
        except (OSError, http.client.HTTPException, BenchError) as error:
            with self.lock:
                self.error = error
        finally:
            connection.close()
            with self.lock:
                self.asked += count

    def __enter__(self):
        self.began = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        seconds = time.monotonic() - self.began
        for thread in self.threads:
            thread.join()
        self.kept_up = self.asked / (seconds * self.rate)
        if self.error:
            raise BenchError(f"a client beside the load failed: {self.error!r}")


def hits(server: Server, prefix: str, seconds: int) -> Wrk:
    return wrk(server.url("fast", prefix), 1, seconds, HERE / "unique.lua",
               ["random", "0", str(HOT_FILES), str(HOT_BYTES)])


def fill(bench: Bench, server: Server) -> str:
    """Stores more than the bound, then the files that hits ask for; the beginning of these."""
    serial, done = bench.cold()[:-4], 0
    while done * FILL_BYTES < 2 * FULL_BYTES_MAX:
        done += wrk(server.url("fast", f"64k/fill-{serial}-"), FLOOD_CONNECTIONS, 1,
                    HERE / "unique.lua", ["new", str(done), "1", str(FILL_BYTES)]).requests
    hot = f"1k/hot-{serial}-"
    for number in range(HOT_FILES):
        fetch(server.url("fast", f"{hot}{number}.deb"), HOT_BYTES)
    return hot


def stored_bytes(server: Server) -> int:
    """The bytes of all blobs at one instant: of a server that runs, a walk could count both what
    goes and what comes in its place."""
    sizes = {}
    with paused(server.pid):
        for folder, _, names in os.walk(server.home / "data" / "blobs"):
            for name in names:
                found = os.lstat(os.path.join(folder, name))
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def samples_beside(bench: Bench, server: Server, hot: str) -> Iterator[int]:
    """How much is stored, at random instants of a load that no longer waits for its turn."""
    flood = server.url("fast", f"64k/flood-{bench.cold()[:-4]}-")
    with ThreadPoolExecutor(1) as pool, Load(bench, server, hot):
        flooded = pool.submit(wrk, flood, FLOOD_CONNECTIONS, bench.sizes.seconds,
                              HERE / "unique.lua", ["new", "0", "1", str(FILL_BYTES)])
        while not flooded.done():
            yield stored_bytes(server)
            time.sleep(random.uniform(0.01, 0.06))
        flooded.result()


def full(bench: Bench, server: Server):
    """Of two servers that live for this measurement alone; the one that is given rests."""
    bounded = Artifactapi("ours full", server.around, env={"CACHE_MAX_BYTES": str(FULL_BYTES_MAX)})
    unbounded = Artifactapi("ours unbounded", server.around)
    slices: dict[str, list[Wrk]] = {bounded.name: [], unbounded.name: []}
    try:
        hot = {}
        for one in (bounded, unbounded):
            one.start()
            hot[one.name] = fill(bench, one)
        alone = hits(bounded, hot[bounded.name], bench.sizes.seconds)
        before = ask_json(bounded, "/stats")["totals"]["evicted"]
        # In this order a steady change of the machine's load meets both alike.
        for one in (bounded, unbounded, unbounded, bounded):
            with Load(bench, one, hot[one.name]) as load:
                slices[one.name].append(hits(one, hot[one.name], bench.sizes.seconds))
            if load.kept_up < KEPT_UP_MIN:
                raise BenchError(f"the misses came at {load.kept_up:.2f} of their rate only")
        evicted = ask_json(bounded, "/stats")["totals"]["evicted"] - before
        refetched = sum(bench.fast_gets(prefix) - HOT_FILES for prefix in hot.values())
        asked = sum(slice.requests for each in slices.values() for slice in each)
        if refetched > asked * MISSES_MAX:
            raise BenchError(f"{refetched} of {asked} hits were none")
        samples = list(samples_beside(bench, bounded, hot[bounded.name]))
        if len(samples) < SAMPLES_MIN or max(samples) < FULL_BYTES_MAX * 3 / 4:
            raise BenchError(f"in {len(samples)} samples at most {max(samples, default=0)} bytes "
                             "were stored")
        if max(samples) > FULL_BYTES_MAX:
            # A target is judged by the median of the rounds; once is too often here.
            raise BenchError(f"{max(samples)} bytes were stored, {max(samples) - FULL_BYTES_MAX} "
                             "above the bound")
        peak = status_sum(bounded.pid, "VmHWM") / 1024
    finally:
        for one in (bounded, unbounded):
            one.wipe()

    def median_of(one: Server) -> float:
        return statistics.mean(slice.median_ms for slice in slices[one.name])

    def p99_of(one: Server) -> float:
        return statistics.mean(slice.p99_ms for slice in slices[one.name])

    return {"hit": median_of(bounded) / median_of(unbounded),
            "hit p99": p99_of(bounded) / p99_of(unbounded),
            "over the bound": (max(samples) - FULL_BYTES_MAX) / (1 << 20),
            "evicted": evicted, "refetched": refetched, "samples": len(samples),
            "hit alone": alone.median_ms, "p99 alone": alone.p99_ms,
            "hit when full": median_of(bounded), "p99 when full": p99_of(bounded),
            "peak RSS when full": peak}


# Uploads


def pieces(size: int) -> Iterator[memoryview]:
    """A body of random bytes, with the number of each piece in it, so that none can be taken for
    another. Each is valid until the next."""
    piece = bytearray(random.Random(size).randbytes(PIECE_BYTES))
    for number in range(size // PIECE_BYTES):
        piece[:NUMBER_BYTES] = number.to_bytes(NUMBER_BYTES)
        yield memoryview(piece)


@functools.cache
def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.hexdigest()


def put(connection: http.client.HTTPConnection, path: str, size: int) -> tuple[int, dict]:
    connection.putrequest("PUT", path)
    connection.putheader("Authorization", f"Bearer {ADMIN_TOKEN}")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for piece in pieces(size):
        connection.send(b"%x\r\n" % len(piece))
        connection.send(piece)
        connection.send(b"\r\n")
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, int, str]:
    """The status, how many bytes came, and their SHA-256."""
    connection.request("GET", path)
    answer = connection.getresponse()
    digest, read = hashlib.sha256(), 0
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := answer.readinto(buffer):
        digest.update(buffer[:count])
        read += count
    return answer.status, read, digest.hexdigest()


def upload(bench: Bench, server: Server):
    size = bench.sizes.upload
    if shutil.disk_usage(server.home).free < 2 * size:
        raise BenchError("there is no room on the disk")
    wanted, path = digest_of(size), server.path("local", bench.cold())
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    try:
        began = time.monotonic()
        status, said = put(connection, path, size)
        put_seconds = time.monotonic() - began
        if (status, said.get("size"), said.get("sha256")) != (201, size, wanted):
            raise BenchError(f"PUT {path}: status {status}, {said}")
        began = time.monotonic()
        got = get(connection, path)
        get_seconds = time.monotonic() - began
        if got != (200, size, wanted):
            raise BenchError(f"GET {path}: status {got[0]}, {got[1]} bytes, sha256 {got[2]}")
    finally:
        connection.close()
        status, _ = ask(server, "DELETE", path)
    left = sum(file.stat().st_size for file in Path(server.home / "data").glob("*/local/*/*"))
    if status != 204 or left:
        raise BenchError(f"DELETE {path}: status {status}, {left} bytes are left")
    return {"PUT": size / put_seconds / 1e6, "GET": size / get_seconds / 1e6}


def all_rows(sizes: Sizes) -> list[Row]:
    only = ("ours",)
    return [
        batch("batch-far", f"misses 4 KiB beside a batch of {sizes.batch:,}, upstream {FAR_MS} ms "
              "away", "far", f"{FAR_MS}"),
        batch("batch-near", f"misses 4 KiB beside a batch of {sizes.batch:,}, upstream on the same "
              "CPUs", "fast", "4k"),
        Row("full", f"hits 1 KiB of a full cache of {FULL_BYTES_MAX >> 20} MiB beside misses",
            (Metric("hit", "× unbounded", (Target("≤", 1.2, ""),), relative=False),
             Metric("hit p99", "× unbounded", relative=False),
             Metric("over the bound", "MiB", (Target("≤", 0, ""),), relative=False),
             Metric("evicted", "artifacts", (Target("≥", 1, ""),), relative=False),
             Metric("refetched", "hot files", relative=False),
             Metric("samples", "of what is stored", relative=False),
             Metric("hit alone", "ms", relative=False), Metric("p99 alone", "ms", relative=False),
             Metric("hit when full", "ms", relative=False),
             Metric("p99 when full", "ms", relative=False),
             Metric("peak RSS when full", "MiB", PEAK.targets, relative=False)),
            full, only=only),
        Row("upload", f"upload of {sizes.upload >> 20:,} MiB in chunks",
            (Metric("PUT", "MB/s", relative=False), Metric("GET", "MB/s", relative=False), PEAK),
            upload, lambda bench, server: server.fresh(), only=only),
    ]
