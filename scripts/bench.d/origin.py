"""The slow upstream of the benchmark: one body, sent smoothly at a given rate, or its beginning,
sent at once after a given time.

nginx's limit_rate lets a second's worth through at once and counts in whole seconds, which hides
what the herd and range rows measure; so this one paces every 16 KiB. It is no web server: it
knows GET, HEAD and one range, and answers GET /count?BEGINNING with how many GETs asked for paths
that begin so.

    origin.py PORT FILE      paths: /api/slow/BYTES_PER_SECOND/NAME, the whole file
                                    /api/far/MILLISECONDS/NAME, its first 4 KiB
"""

import collections
import math
import os
import re
import socketserver
import sys
import threading
import time

PIECE = 16 * 1024
HEAD_BYTES_MAX = 16 * 1024
FAR_BYTES = 4 * 1024

gets: collections.Counter[str] = collections.Counter()
guard = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    """One connection, kept alive until its client leaves."""

    disable_nagle_algorithm = True

    def handle(self):
        try:
            while self.one_request():
                pass
        except (ConnectionError, TimeoutError):
            pass

    def one_request(self) -> bool:
        line = self.rfile.readline(HEAD_BYTES_MAX).decode("latin-1")
        if not line.strip():
            return False
        method, target, _ = line.split(" ", 2)
        fields = {}
        while (field := self.rfile.readline(HEAD_BYTES_MAX).decode("latin-1").strip()):
            name, _, value = field.partition(":")
            fields[name.lower()] = value.strip()
        path = target.removeprefix("http://127.0.0.1").lstrip(":0123456789")
        if path.startswith("/count?"):
            with guard:
                count = sum(times for asked, times in gets.items()
                            if asked.startswith(path.removeprefix("/count?")))
            body = str(count).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return True
        if method == "GET":
            with guard:
                gets[path] += 1
        kind, number = path.split("/")[2:4]
        if kind == "far":
            # As a way of half that time in each direction would.
            time.sleep(int(number) / 1000)
            self.send(method, FAR_BYTES, math.inf, fields)
        else:
            self.send(method, self.server.size, int(number), fields)
        return True

    def send(self, method: str, size: int, rate: float, fields: dict[str, str]):
        start, end, status = 0, size, "200 OK"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", fields.get("range", ""))
        if asked:
            start, end = int(asked[1]), min(size, int(asked[2] or size - 1) + 1)
            status = f"206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{size}"
        self.wfile.write(
            (f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nAccept-Ranges: bytes\r\n"
             'ETag: "bench"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
             "Content-Type: application/octet-stream\r\n"
             "Cache-Control: public, max-age=2592000\r\n\r\n").encode())
        if method != "GET":
            return
        began, at = time.monotonic(), start
        while at < end:
            piece = os.pread(self.server.body, min(PIECE, end - at), at)
            self.wfile.write(piece)
            at += len(piece)
            ahead = (at - start) / rate - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)


class Server(socketserver.ThreadingTCPServer):
    """Threads, since each mostly sleeps."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int, file: str):
        super().__init__(("127.0.0.1", port), Handler)
        self.body = os.open(file, os.O_RDONLY)
        self.size = os.fstat(self.body).st_size


if __name__ == "__main__":
    Server(int(sys.argv[1]), sys.argv[2]).serve_forever()
