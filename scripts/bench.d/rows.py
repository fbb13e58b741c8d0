"""What is measured: the rows of the table, each with its metrics and what ours must reach. Those
of what only ours does are in only_ours.py.

A row measures one server at a time; `scripts/bench` calls it for every server in every round,
in turns, so that a change of the machine's load meets all of them. Ratios are taken within a
round. A row raises BenchError where a server can't do it; that is shown, never hidden.
"""

import hashlib
import os
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from clients import SlowReaders, fetch, idle_connections, median, together, wrk
from processes import (BenchError, cpu_seconds, forget_peak, launch, machine_busy, own, stat,
                       status_sum, wait_ready)
from servers import HERE, Artifactapi, Around, Origin, Server

CONNECTIONS = (16, 32, 64, 256)
HERD = 50
SLOW_BYTES = 10 * 1024 * 1024
SLOW_READERS = 200
SLOW_READER_RATE = 20_000
RANGE_BYTES = 1_000_000
LOG_FLUSH_S = 0.3
# A count of misses during hits above this share means that the row measured something else.
MISSES_MAX = 0.01


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    big_name: str = "1g"
    big_label: str = "1 GiB"
    big: int = 1 << 30
    huge_name: str = "10g"
    huge: int = 10 << 30
    upload: int = 5 << 30
    batch: int = 1_000
    few: int = 1_000
    many: int = 100_000
    rows: int = 1_000_000
    idle: int = 1_000
    seconds: int = 5
    rates: tuple[int, ...] = (5_000_000, 1_000_000)


QUICK = Sizes(big_name="64m", big_label="64 MiB", big=64 << 20, huge_name="128m", huge=128 << 20,
              upload=64 << 20, batch=200, few=100, many=2_000, rows=20_000, idle=100, seconds=1,
              rates=(5_000_000,))


@dataclass(frozen=True)
class Target:
    """`server` must be `op` `factor` (times what `of` had in the same round, if named)."""

    op: str
    factor: float
    of: str = "nginx"
    server: str = "ours"

    def __str__(self):
        of = f" × {self.of}" if self.of else ""
        return f"{'' if self.server == 'ours' else self.server + ' '}{self.op} {self.factor:g}{of}"

    def met(self, value: float) -> bool:
        return value >= self.factor if self.op == "≥" else value <= self.factor


@dataclass(frozen=True)
class Metric:
    """One number of a row. `relative`: shown as a ratio to nginx's."""

    key: str
    unit: str
    targets: tuple[Target, ...] = ()
    relative: bool = True
    more_is_better: bool = False


PEAK = Metric("peak RSS", "MiB", (Target("≤", 64, ""),), relative=False)


@dataclass
class Bench:
    """What rows need: the upstreams and how to count what was asked of them."""

    around: Around
    sizes: Sizes
    origin: Origin
    # So that every round's cold path is new.
    serial: int = 0

    def cold(self) -> str:
        self.serial += 1
        return f"cold{os.getpid()}-{self.serial}.deb"

    def fast_gets(self, containing: str = "") -> int:
        time.sleep(LOG_FLUSH_S)
        needle = b"GET 200 /api/fast/" + containing.encode()
        return (self.origin.home / "access.log").read_bytes().count(needle)

    def slow_gets(self, beginning: str, remote: str = "slow") -> int:
        url = f"http://127.0.0.1:{self.around.slow}/count?/api/{remote}/{beginning}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.read())

    def warm(self, server: Server, name: str):
        """Fetches a file until it is stored, and checks its bytes against the original."""
        url = server.url("fast", f"{name}/warm.deb")
        with (self.origin.data / name).open("rb") as file:
            wanted = hashlib.file_digest(file, "sha256").hexdigest()
        for _ in range(2):
            digest = hashlib.sha256()
            with urllib.request.urlopen(url, timeout=600) as answer:
                while piece := answer.read(1 << 20):
                    digest.update(piece)
            if digest.hexdigest() != wanted:
                raise BenchError(f"{server.name} served other bytes than upstream has")
        if stat(server.pid) == []:
            raise BenchError(f"{server.name} has ended")


@dataclass
class Row:
    name: str
    about: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Bench, Server], dict[str, float]]
    prepare: Callable[[Bench, Server], None] = lambda bench, server: None
    # None: every server.
    only: tuple[str, ...] | None = None
    # Servers that are started for the row alone and emptied behind every measurement.
    fresh: bool = False


@dataclass
class Meter:
    """CPU of a server, and of everybody else, during a measurement."""

    server: Server
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.cpu = cpu_seconds(self.server.pid)

    def used(self) -> float:
        return cpu_seconds(self.server.pid) - self.cpu


def hit(size: str, connections: int, targets: dict[str, tuple[Target, ...]]) -> Row:
    def measure(bench: Bench, server: Server):
        url = server.url("fast", f"{size}/warm.deb")
        # Threads and buffers that the first requests make are not hits' cost.
        wrk(url, connections, 1)
        meter = Meter(server)
        result = wrk(url, connections, bench.sizes.seconds)
        return {"req/s": result.per_second, "p99": result.p99_ms,
                "CPU": meter.used() / result.requests * 10_000}

    return Row(f"hit-{size}-c{connections}",
               f"hit {size.replace('k', ' KiB')}, {connections} connections",
               (Metric("req/s", "1/s", targets.get("req/s", ()), more_is_better=True),
                Metric("CPU", "s per 10,000", targets.get("CPU", ())),
                Metric("p99", "ms", targets.get("p99", ())), PEAK),
               measure, lambda bench, server: bench.warm(server, size))


def big_hit(label: str, connections: int) -> Row:
    def measure(bench: Bench, server: Server):
        url = server.url("fast", f"{bench.sizes.big_name}/warm.deb")
        meter = Meter(server)
        began = time.monotonic()
        together(connections, lambda _: fetch(url, bench.sizes.big))
        seconds = time.monotonic() - began
        gigabytes = connections * bench.sizes.big / 1e9
        return {"GB/s": gigabytes / seconds, "CPU": meter.used() / gigabytes}

    fastapi = (Target("≤", 0.05, "fastapi", "ours S3"),) if connections == 4 else ()
    many_or_one = "connection" if connections == 1 else "connections"
    return Row(f"big-c{connections}", f"hit {label}, {connections} {many_or_one}",
               (Metric("GB/s", "GB/s", (Target("≥", 1.0),), more_is_better=True),
                Metric("CPU", "s per GB", (Target("≤", 1.0),)),
                Metric("peak RSS", "MiB", (*PEAK.targets, *fastapi), relative=False)),
               measure, lambda bench, server: bench.warm(server, bench.sizes.big_name))


def miss_big(bench: Bench, server: Server):
    name = f"{bench.sizes.big_name}/{bench.cold()}"
    direct = fetch(f"http://127.0.0.1:{bench.around.fast}/api/fast/{name}", bench.sizes.big)
    meter = Meter(server)
    got = fetch(server.url("fast", name), bench.sizes.big)
    return {"first byte over direct": (got.first_byte - direct.first_byte) * 1e3,
            "total": got.total / direct.total, "CPU": meter.used()}


def herd(rate: int) -> Row:
    label = f"{rate / 1e6:g} MB/s"

    def measure(bench: Bench, server: Server):
        direct = fetch(f"http://127.0.0.1:{bench.around.slow}/api/slow/{rate}/{bench.cold()}",
                       SLOW_BYTES)
        name = f"{rate}/{bench.cold()}"
        results = together(HERD, lambda _: fetch(server.url("slow", name), SLOW_BYTES))
        return {"GETs": bench.slow_gets(name),
                "first byte": median(one.first_byte for one in results) * 1e3,
                "last client": max(one.total for one in results) / direct.total}

    return Row(f"herd-{rate // 1_000_000}", f"herd of {HERD}, cold 10 MiB at {label}",
               (Metric("GETs", "upstream", (Target("≤", 1, ""),), relative=False),
                Metric("first byte", "ms, median", (Target("≤", 30, ""),), relative=False),
                Metric("last client", "× direct", (Target("≤", 1.03, ""),), relative=False), PEAK),
               measure)


def cold_range(bench: Bench, server: Server):
    rate = bench.sizes.rates[0]
    name = f"{rate}/{bench.cold()}"
    url = server.url("slow", name)
    first = RANGE_BYTES
    got = fetch(url, RANGE_BYTES, f"Range: bytes={first}-{first + RANGE_BYTES - 1}\r\n")
    # The fill, if there is one, takes as long as upstream does.
    time.sleep(SLOW_BYTES / rate + 1)
    before = bench.slow_gets(name)
    fetch(url, SLOW_BYTES)
    return {"range": got.total, "status": got.status,
            "full GET a hit": float(bench.slow_gets(name) == before)}


def slow_readers(bench: Bench, server: Server):
    url = server.url("fast", "1k/warm.deb")
    alone = wrk(url, 32, bench.sizes.seconds)
    with SlowReaders(server.url("fast", "10m/warm.deb"), SLOW_READERS, SLOW_READER_RATE) as readers:
        time.sleep(1)
        beside = wrk(url, 32, bench.sizes.seconds)
    return {"kept": beside.per_second / alone.per_second, "p99": beside.p99_ms,
            "slowest reader": readers.least}


def prepare_slow_readers(bench: Bench, server: Server):
    bench.warm(server, "1k")
    bench.warm(server, "10m")


def small_misses(bench: Bench, server: Server):
    prefix = f"4k/m{bench.cold()[:-4]}-"
    before = bench.fast_gets(prefix)
    began = time.monotonic()
    wrk(server.url("fast", prefix), 32, bench.sizes.seconds, HERE / "unique.lua", ["new", "0", "1"])
    seconds = time.monotonic() - began
    gets = bench.fast_gets(prefix) - before
    # Stored, not just passed through: asked for again they are hits.
    time.sleep(1)
    for number in range(0, gets - 64, max(1, gets // 100)):
        fetch(server.url("fast", f"{prefix}{number}.deb"), 4096)
    asked_again = bench.fast_gets(prefix) - before - gets
    if asked_again > 10:
        raise BenchError(f"{server.name} had not stored {asked_again} of 100 small misses")
    return {"stored": gets / seconds}


def store(bench: Bench, server: Server, prefix: str, count: int):
    """Stores `count` small files whose names are numbers."""
    done = 0
    while done < count:
        done += wrk(server.url("fast", prefix), 32, min(5, bench.sizes.seconds),
                    HERE / "unique.lua", ["new", str(done), "1"]).requests


def prepare_many(bench: Bench, server: Server):
    store(bench, server, "1k/few-", bench.sizes.few)
    store(bench, server, "1k/many-", bench.sizes.many)


def many(bench: Bench, server: Server):
    cost = {}
    for prefix, count in (("1k/few-", bench.sizes.few), ("1k/many-", bench.sizes.many)):
        before = bench.fast_gets(prefix)
        meter = Meter(server)
        result = wrk(server.url("fast", prefix), 32, bench.sizes.seconds, HERE / "unique.lua",
                     ["random", "0", str(count)])
        cost[prefix] = meter.used() / result.requests
        if bench.fast_gets(prefix) - before > result.requests * MISSES_MAX:
            raise BenchError(f"{server.name} did not keep {count} small files")
    return {"CPU many/few": cost["1k/many-"] / cost["1k/few-"],
            "CPU": cost["1k/many-"] * 10_000}


def prepare_startup(bench: Bench, server: Server):
    """Repeats the row of one stored artifact, the only one, under other names."""
    server.fresh()
    bench.warm(server, "1k")
    server.stop()
    file = server.home / "data" / "index.sqlite"
    with sqlite3.connect(file) as index:
        names = [row[1] for row in index.execute("PRAGMA table_info(artifact)")]
        picked = ", ".join("'1k/row-' || number || '.deb'" if name == "path" else name
                           for name in names)
        index.execute(
            f"WITH RECURSIVE counted(number) AS (SELECT 1 UNION ALL "
            f"SELECT number + 1 FROM counted WHERE number < {bench.sizes.rows}) "
            f"INSERT INTO artifact ({', '.join(names)}) SELECT {picked} FROM artifact, counted "
            "WHERE path = '1k/warm.deb'")
    index.close()
    server.start()


def startup(bench: Bench, server: Server):
    server.stop()
    own(server.home)
    log = server.home / "log.txt"
    began = time.monotonic()
    server.process = launch([str(bench.around.binary)], log, server.env, server.home)
    wait_ready(server.process, server.port, log)
    fetch(server.url("fast", "1k/warm.deb"), 1024)
    return {"start to first hit": time.monotonic() - began}


def idle(bench: Bench, server: Server):
    url = server.url("fast", "1k/warm.deb")
    wrk(url, 64, 1)
    time.sleep(1)
    before = status_sum(server.pid, "VmRSS")
    kept: list[socket.socket] = []
    try:
        kept = idle_connections(url, 1024, bench.sizes.idle)
        time.sleep(1)
        grown = status_sum(server.pid, "VmRSS") - before
        threads = status_sum(server.pid, "Threads")
        # They are still there, and still answered.
        fetch(url, 1024, connection=kept[0])
        fetch(url, 1024, connection=kept[-1])
    finally:
        for connection in kept:
            connection.close()
    return {"memory": grown / bench.sizes.idle, "threads": threads}


def huge(bench: Bench, server: Server):
    name = f"{bench.sizes.huge_name}/{bench.cold()}"
    miss = fetch(server.url("fast", name), bench.sizes.huge)
    # Published behind the client's back.
    time.sleep(2)
    before = bench.fast_gets(name)
    again = fetch(server.url("fast", name), bench.sizes.huge)
    if bench.fast_gets(name) != before:
        raise BenchError(f"{server.name} did not store the huge file")
    return {"miss": miss.bytes / miss.total / 1e6, "hit": again.bytes / again.total / 1e6}


def all_rows(sizes: Sizes) -> list[Row]:
    faster, cheaper, sooner = Target("≥", 1.0), Target("≤", 1.2), Target("≤", 1.2)
    s3 = (Target("≥", 20, "fastapi", "ours S3"), Target("≥", 0.9, "ours", "ours S3+hot"))
    rows = []
    for size in ("1k", "64k"):
        for connections in CONNECTIONS:
            targets = {"req/s": (faster,)}
            if connections == 32:
                targets = {"req/s": (faster, *(s3 if size == "1k" else ())), "p99": (sooner,)}
                targets |= {"CPU": (cheaper,)} if size == "1k" else {}
            rows.append(hit(size, connections, targets))
    caches = ("ours", "ours tiny_http", "nginx", "varnish", "squid", "trafficserver")
    return [
        *rows, big_hit(sizes.big_label, 1), big_hit(sizes.big_label, 4),
        Row("miss-big", f"miss {sizes.big_label}",
            (Metric("first byte over direct", "ms", (Target("≤", 2, ""),), relative=False),
             Metric("total", "× direct", (Target("≤", 2.0, ""),), relative=False),
             Metric("CPU", "s"), PEAK), miss_big, fresh=True),
        *(herd(rate) for rate in sizes.rates),
        Row("range", "cold Range of 1 MB in 10 MiB at 5 MB/s",
            # 0.40 to two digits: the bytes up to the range's end take upstream 0.400.
            (Metric("range", "s", (Target("≤", 0.405, ""),), relative=False),
             Metric("status", "", (Target("≤", 206, ""), Target("≥", 206, "")), relative=False),
             Metric("full GET a hit", "1 = yes", (Target("≥", 1, ""),), relative=False)),
            cold_range, only=caches),
        Row("slow-readers", "hits 1 KiB beside 200 readers at 20 KB/s",
            (Metric("kept", "of req/s", (Target("≥", 0.95, ""),), relative=False),
             Metric("p99", "ms", (Target("≤", 1.2),)),
             Metric("slowest reader", "of its rate", (Target("≥", 0.9, ""),), relative=False)),
            slow_readers, prepare_slow_readers),
        Row("small-misses", "misses 4 KiB, 32 connections",
            (Metric("stored", "1/s", (Target("≥", 1.0),), more_is_better=True), PEAK),
            small_misses, only=caches, fresh=True),
        Row("many", f"{sizes.many:,} objects against {sizes.few:,}",
            (Metric("CPU many/few", "per hit", (Target("≤", 1.1, ""),), relative=False),
             Metric("CPU", "s per 10,000, many"), PEAK), many, prepare_many, only=caches),
        Row("startup", f"start with {sizes.rows:,} objects",
            (Metric("start to first hit", "s", (Target("≤", 1.0, ""),), relative=False), PEAK),
            startup, prepare_startup, only=("ours",)),
        Row("idle", f"{sizes.idle:,} idle connections",
            (Metric("memory", "KiB each", (Target("≤", 6, ""),), relative=False),
             Metric("threads", "in all", relative=False)),
            idle, lambda bench, server: bench.warm(server, "1k"), only=caches),
        Row("huge", f"{sizes.huge >> 20:,} MiB through S3",
            (Metric("miss", "MB/s", relative=False), Metric("hit", "MB/s", relative=False),
             Metric("peak RSS", "MiB", (Target("≤", 128, "", "ours S3"),), relative=False)),
            huge, only=("ours S3",), fresh=True),
    ]


def measured(row: Row, bench: Bench, server: Server) -> dict[str, float]:
    """One measurement with what is taken in every row: the peak of memory, and how much CPU
    others used meanwhile (clients and upstreams of the benchmark included)."""
    forget_peak(server.pid)
    busy, used, began = machine_busy(), cpu_seconds(server.pid), time.monotonic()
    values = row.measure(bench, server)
    seconds = time.monotonic() - began
    others = machine_busy() - busy - (cpu_seconds(server.pid) - used)
    return values | {"peak RSS": status_sum(server.pid, "VmHWM") / 1024,
                     "others' CPUs": others / seconds, "load": os.getloadavg()[0]}


def s3_is_used(server: Artifactapi) -> bool:
    """Whether the set-up keeps its blobs elsewhere than on disk."""
    blobs = server.home / "data" / "blobs"
    return not any(path.is_file() for path in blobs.rglob("*.deb"))


