"""The clients of the benchmark: wrk for hits, and sockets of our own for what wrk can't do.

Our own clients check the status and the number of bytes of every answer; a short body is an
error, never a fast result.
"""

import re
import socket
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from processes import BenchError

BUFFER = 256 * 1024
TIMEOUT_S = 600
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass
class Wrk:
    requests: int
    per_second: float
    median_ms: float
    p99_ms: float


def wrk(url: str, connections: int, seconds: int, script: Path | None = None,
        arguments: list[str] | None = None) -> Wrk:
    """Runs wrk; anything but whole 2xx answers is an error, and with unique.lua's LENGTH any
    other length."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    if script:
        command += ["-s", str(script)]
    command += [url, *(["--", *arguments] if arguments else [])]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    text = ended.stdout
    if ended.returncode != 0:
        raise BenchError(f"wrk: {text.strip()} {ended.stderr.strip()}")
    if "Non-2xx" in text or "Socket errors" in text:
        raise BenchError("wrk: " + " ".join(line.strip() for line in text.splitlines()
                                            if "Non-2xx" in line or "Socket errors" in line))
    if "wrong answer" in text:
        raise BenchError(f"wrk: {text[text.index('wrong answer'):].splitlines()[0]}")
    requests = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
    parts = [re.search(rf"{part}%\s+([\d.]+)(us|ms|s|m)", text) for part in (50, 99)]
    if not (requests and rate and all(parts)) or int(requests[1]) == 0:
        raise BenchError("no request was answered")
    return Wrk(int(requests[1]), float(rate[1]),
               *(float(part[1]) * UNITS[part[2]] for part in parts))


@dataclass
class Fetched:
    """One download, in seconds from its start."""

    status: int
    bytes: int
    first_byte: float
    total: float


def request_of(url: str, fields: str = "") -> tuple[tuple[str, int], bytes]:
    parts = urlsplit(url)
    head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{fields}\r\n"
    return (parts.hostname, parts.port), head.encode()


def read_head(connection: socket.socket) -> tuple[int, int | None, bytes]:
    """Status, Content-Length (None: chunked or to the end), and what came of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise BenchError("the connection ended inside the head")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(head.split(b" ", 2)[1]), int(length[1]) if length else None, rest


def fetch(url: str, size: int, fields: str = "",
          connection: socket.socket | None = None) -> Fetched:
    """Downloads, expecting `size` bytes of body."""
    address, request = request_of(url, fields)
    began = time.monotonic()
    own = connection is None
    connection = connection or socket.create_connection(address, TIMEOUT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        status, length, rest = read_head(connection)
        if length is not None:
            read, first = len(rest), time.monotonic() if rest else None
            buffer = memoryview(bytearray(BUFFER))
            while read < length:
                count = connection.recv_into(buffer)
                if not count:
                    break
                first = first or time.monotonic()
                read += count
        else:
            read, first = chunked(connection, rest)
    finally:
        if own:
            connection.close()
    ended = time.monotonic()
    if status not in (200, 206) or read != size:
        raise BenchError(f"{url}: status {status} with {read} of {size} bytes")
    return Fetched(status, read, (first or ended) - began, ended - began)


def chunked(connection: socket.socket, rest: bytes) -> tuple[int, float]:
    """Reads a chunked body; its bytes, and when the first came."""
    file = connection.makefile("rb", BUFFER)
    data, read, first = rest, 0, None

    def line() -> bytes:
        nonlocal data
        while b"\r\n" not in data:
            data += file.readline()
        text, _, data = data.partition(b"\r\n")
        return text

    while True:
        size = int(line().split(b";")[0], 16)
        first = first or time.monotonic()
        if size == 0:
            line()
            return read, first
        left = size + 2
        taken = min(left, len(data))
        data, left = data[taken:], left - taken
        while left:
            piece = file.read1(min(left, BUFFER))
            if not piece:
                raise BenchError("the connection ended inside a chunk")
            left -= len(piece)
        read += size


def together(count: int, work) -> list:
    """Runs `work(number)` on so many threads at once; their results, or the first error."""
    results, gate = [None] * count, threading.Barrier(count)

    def one(number: int):
        gate.wait()
        try:
            results[number] = work(number)
        except Exception as error:  # It must reach the caller's thread.
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result if isinstance(result, BenchError) else BenchError(repr(result))
    return results


class SlowReaders:
    """Clients that take a body at a given rate, on one thread; a context manager.

    `least` is afterwards the share of its rate that the slowest of them got.
    """

    def __init__(self, url: str, count: int, rate: int):
        self.url, self.count, self.rate = url, count, rate
        self.least = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.error: Exception | None = None

    def __enter__(self):
        address, request = request_of(self.url)
        self.open = []
        for _ in range(self.count):
            connection = socket.socket()
            # A large one would take the body from the server at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            connection.connect(address)
            connection.sendall(request)
            self.open.append(connection)
        self.thread.start()
        return self

    def run(self):
        try:
            taken = dict.fromkeys(self.open, 0)
            began = time.monotonic()
            while not self.ended.wait(0.05):
                due = (time.monotonic() - began) * self.rate
                for connection in self.open:
                    want = int(due - taken[connection])
                    if want >= 1024:
                        connection.setblocking(False)
                        try:
                            taken[connection] += len(connection.recv(min(want, 65536)))
                        except BlockingIOError:
                            pass
            seconds = time.monotonic() - began
            self.least = min(taken.values()) / (self.rate * seconds)
        except OSError as error:
            self.error = error

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        for connection in self.open:
            connection.close()
        if self.error:
            raise BenchError(f"a slow reader failed: {self.error}")


def idle_connections(url: str, size: int, count: int) -> list[socket.socket]:
    """Connections that were answered once and are kept open."""
    address, _ = request_of(url)
    kept = []
    for _ in range(count):
        connection = socket.create_connection(address, TIMEOUT_S)
        kept.append(connection)
        fetch(url, size, connection=connection)
    return kept


def median(values) -> float:
    return statistics.median(values)
