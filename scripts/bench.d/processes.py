"""Processes of the benchmark: starting, ending, and what /proc says about them.

Everything that is started here is ended by `stop_all`, by its own process id. CPU and memory
are summed over a server's whole process tree, so that a peer that forks is not favoured.
"""

import os
import random
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
# As an ordinary user where we are root: some peers refuse root, and none should need it.
ORDINARY_USER = "nobody"

running: list[subprocess.Popen] = []


class BenchError(Exception):
    """Something that ends a row, with a text for its reader."""


def free_port() -> int:
    """A port of the loopback address that was free just now: below those that outgoing
    connections take, and below 32,768, which is all that apt-cacher-ng can count to."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def own(path: Path):
    """Gives a folder to the user that the servers run as."""
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", f"{ORDINARY_USER}:", str(path)], check=True)


def launch(command: list[str], log: Path, env: dict[str, str] | None = None,
           cwd: Path | None = None) -> subprocess.Popen:
    """Starts a server in the background, in its own session."""
    if os.getuid() == 0:
        command = ["setpriv", f"--reuid={ORDINARY_USER}", "--regid=nogroup", "--clear-groups",
                   *command]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(log.parent), **(env or {})}
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env=environment, cwd=cwd or log.parent, start_new_session=True)
    running.append(process)
    return process


def wait_ready(process: subprocess.Popen, port: int, log: Path) -> float:
    """Waits until the port accepts; the seconds that took."""
    began = time.monotonic()
    while time.monotonic() - began < READY_SECONDS_MAX:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return time.monotonic() - began
        if process.poll() is not None:
            break
        time.sleep(0.002)
    words = log.read_text(errors="replace")[-1500:] if log.exists() else ""
    raise BenchError(f"{log.parent.name} did not start: {words}")


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def stop(process: subprocess.Popen):
    """Ends a server and its children, by their ids."""
    if process in running:
        running.remove(process)
    everyone = tree(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                pass
    for pid in everyone[1:]:
        # A child that outlived its parent; its id is not reused that quickly.
        try:
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def stop_all():
    for process in reversed(list(running)):
        stop(process)


def stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, ended children included."""
    fields = [stat(one) for one in tree(pid)]
    return sum(int(of[index]) for of in fields if of for index in (11, 12, 13, 14)) / TICKS


def status_sum(pid: int, name: str) -> int:
    """The sum over the tree of a number in /proc/PID/status: kB, or a count."""
    total = 0
    for one in tree(pid):
        try:
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith(name + ":"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return total


def forget_peak(pid: int):
    """Starts a new measurement of the peak of resident memory."""
    for one in tree(pid):
        try:
            Path(f"/proc/{one}/clear_refs").write_text("5")
        except OSError:
            continue


@contextmanager
def paused(pid: int):
    """Holds a process still, so that what it has on disk can be looked at as of one instant."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # A thread inside a system call ends that first.
        began = time.monotonic()
        while any(one.read_text().rsplit(")", 1)[1].split()[0] not in "TZX"
                  for one in Path(f"/proc/{pid}/task").glob("*/stat")):
            if time.monotonic() - began > STOP_SECONDS_MAX:
                raise BenchError(f"process {pid} can't be paused")
            time.sleep(0.0005)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def machine_busy() -> float:
    """CPU seconds that all processes of the machine have used."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / TICKS
