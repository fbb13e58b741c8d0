"""The servers that are compared: artifactapi in its set-ups, and its peers.

Each serves the same paths: /api/fast/SIZE/NAME and /api/slow/RATE/NAME (apt-cacher-ng, which
names the origin in the path, has its own form); ours also /api/far/MILLISECONDS/NAME and uploads
to /api/local/NAME. Configurations are the templates in peers/.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from processes import BenchError, free_port, launch, own, stop, wait_ready

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
# The benchmark's own, for uploads to servers that only it can reach.
ADMIN_TOKEN = "benchmark-of-artifactapi"
PACKAGES = ["nginx-light", "wrk", "varnish", "gcc", "libc6-dev", "squid", "trafficserver",
            "apt-cacher-ng", "sqlite3"]


# What is larger is deleted at once.
ASIDE_BYTES_MAX = 1 << 20


@dataclass
class Around:
    """What every server needs to know: the run's folder and the upstreams."""

    home: Path
    binary: Path
    fast: int = 0
    slow: int = 0
    # endpoint,access key,secret key,bucket: as scripts/services exports it.
    s3: str = ""
    tools: Path = Path("target/tools")


def fill(template: str, target: Path, **values):
    """Writes a template with its @names@ replaced."""
    text = (PEERS / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    target.write_text(text)


def program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
    if not path:
        raise BenchError(f"{name} is not installed: scripts/bench --install")
    return path


@dataclass
class Server:
    """One server under test; `start` and `stop` may follow each other any number of times."""

    name: str
    around: Around
    port: int = 0
    process: subprocess.Popen | None = None
    start_seconds: float = 0.0
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.around.home / self.name.replace(" ", "-")

    @property
    def pid(self) -> int:
        return self.process.pid

    def path(self, remote: str, rest: str) -> str:
        return f"/api/{remote}/{rest}"

    def url(self, remote: str, rest: str) -> str:
        return f"http://127.0.0.1:{self.port}{self.path(remote, rest)}"

    def start(self):
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        command = self.prepare()
        own(self.home)
        log = self.home / "log.txt"
        self.process = launch(command, log, self.env, self.home)
        self.start_seconds = wait_ready(self.process, self.port, log)

    def stop(self):
        if self.process:
            stop(self.process)
            self.process = None

    def wipe(self):
        """Stops, and forgets what was cached. Small files are only put aside until the end: ext4
        without a journal gives out no inode that was freed within the last minutes, so deleting
        many makes whoever comes next slow."""
        self.stop()
        if not self.home.exists():
            return
        for path in self.home.rglob("*"):
            if path.is_file() and path.lstat().st_size > ASIDE_BYTES_MAX:
                path.unlink()
        aside = self.around.home / "aside"
        aside.mkdir(exist_ok=True)
        self.home.rename(aside / str(len(list(aside.iterdir()))))

    def fresh(self):
        self.wipe()
        self.start()

    def prepare(self) -> list[str]:
        raise NotImplementedError

    def values(self) -> dict:
        return {"home": self.home, "port": self.port, "fast": self.around.fast,
                "slow": self.around.slow}


class Artifactapi(Server):
    """Ours; `env` says which set-up."""

    def prepare(self):
        fill("remotes.yaml", self.home / "remotes.yaml", **self.values())
        self.env |= {
            "LISTEN_ADDR": f"127.0.0.1:{self.port}",
            "DATA_DIR": str(self.home / "data"),
            "CONFIG_PATH": str(self.home / "remotes.yaml"),
            "ADMIN_TOKEN": ADMIN_TOKEN,
            # As every peer: hits are not logged.
            "LOG_LEVEL": "warn",
            # All of the benchmark's clients share one address.
            "CONNECTIONS_PER_ADDRESS_MAX": "8192",
        }
        return [str(self.around.binary)]


class Nginx(Server):
    def prepare(self):
        (self.home / "tmp").mkdir(exist_ok=True)
        fill("nginx.conf", self.home / "nginx.conf", **self.values())
        return [program("nginx"), "-c", str(self.home / "nginx.conf"), "-e",
                str(self.home / "error.log")]


class Varnish(Server):
    """Storage in memory, as it comes; jails are for root, which it does not run as."""

    def prepare(self):
        fill("varnish.vcl", self.home / "bench.vcl", **self.values())
        # The home's path would not fit the name of a socket.
        return [program("varnishd"), "-F", "-n", str(self.home / "n"), "-j", "none",
                "-a", f"127.0.0.1:{self.port}", "-T", "none", "-f", str(self.home / "bench.vcl"),
                "-s", "malloc,3G", "-p", "timeout_idle=600"]


class Squid(Server):
    def prepare(self):
        fill("squid.conf", self.home / "squid.conf", **self.values())
        if not (self.home / "cache" / "00").exists():
            own(self.home)
            command = [program("squid"), "-N", "-z", "-f", str(self.home / "squid.conf")]
            (self.home / "cache").mkdir(exist_ok=True)
            own(self.home)
            made = launch(command, self.home / "make.txt")
            made.wait(60)
            stop(made)
        return [program("squid"), "-N", "-f", str(self.home / "squid.conf")]


class TrafficServer(Server):
    def prepare(self):
        # Its packages' folders are the system's; a layout of its own lets it run anywhere.
        for folder in ("config", "store", "run", "log", "share"):
            (self.home / folder).mkdir(exist_ok=True)
        config = self.home / "config"
        (self.home / "runroot.yaml").write_text(
            f"prefix: {self.home}\nexec_prefix: {self.home}\nbindir: /usr/bin\nsbindir: /usr/sbin\n"
            f"sysconfdir: {config}\ndatadir: {self.home / 'share'}\nlocalstatedir: {self.home}\n"
            f"runtimedir: {self.home / 'run'}\nlogdir: {self.home / 'log'}\n"
            f"cachedir: {self.home / 'store'}\n"
            "libdir: /usr/lib/trafficserver\nlibexecdir: /usr/lib/trafficserver/modules\n")
        fill("records.config", config / "records.config", **self.values())
        fill("ip_allow.yaml", config / "ip_allow.yaml")
        (config / "storage.config").write_text(f"{self.home / 'store'} 12G\n")
        (config / "remap.config").write_text("".join(
            f"map http://127.0.0.1:{self.port}/api/{name}/ http://127.0.0.1:{port}/api/{name}/\n"
            for name, port in (("fast", self.around.fast), ("slow", self.around.slow))))
        return [program("traffic_server"), f"--run-root={self.home / 'runroot.yaml'}"]


class AptCacherNg(Server):
    def prepare(self):
        for folder in ("conf", "cache", "log"):
            (self.home / folder).mkdir(exist_ok=True)
        fill("acng.conf", self.home / "conf" / "acng.conf", **self.values())
        return [program("apt-cacher-ng"), "-c", str(self.home / "conf")]

    def path(self, remote, rest):
        port = self.around.fast if remote == "fast" else self.around.slow
        return f"/127.0.0.1:{port}/api/{remote}/{rest}"


class FastApi(Server):
    """The application that artifactapi replaces, in its own Python environment."""

    def prepare(self):
        python = self.around.tools / "fastapi" / "bin" / "python3"
        if not python.exists():
            raise BenchError("the FastAPI application is not installed: scripts/bench --install")
        shutil.copy(HERE / "fastapi_app.py", self.home / "fastapi_app.py")
        self.env = {"BENCH_S3": self.around.s3, "BENCH_PREFIX": f"bench-{os.getpid()}-{self.port}",
                    "BENCH_FAST": str(self.around.fast), "BENCH_SLOW": str(self.around.slow)}
        return [str(python), "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port",
                str(self.port), "--log-level", "warning", "--no-access-log"]


class Origin(Server):
    """The fast upstream, which counts GETs in its access log."""

    data: Path = Path()
    read_to: int = 0

    def prepare(self):
        (self.home / "tmp").mkdir(exist_ok=True)
        fill("origin.conf", self.home / "nginx.conf", data=self.data, **self.values())
        return [program("nginx"), "-c", str(self.home / "nginx.conf"), "-e",
                str(self.home / "error.log")]


def s3_env(s3: str) -> dict[str, str]:
    """The variables of the S3 set-up from what scripts/services exports."""
    endpoint, access, secret, bucket = s3.split(",")
    scheme, _, host = endpoint.partition("://")
    return {"MINIO_ENDPOINT": host, "MINIO_ACCESS_KEY": access, "MINIO_SECRET_KEY": secret,
            "MINIO_BUCKET": bucket, "MINIO_SECURE": "true" if scheme == "https" else "false"}


def all_servers(around: Around) -> dict[str, Server]:
    """Every server by name; the order is that of the table."""
    servers = [
        Artifactapi("ours", around),
        Artifactapi("ours tiny_http", around, env={"HTTP_FRONT": "tiny_http"}),
        Nginx("nginx", around),
        Varnish("varnish", around),
        Squid("squid", around),
        TrafficServer("trafficserver", around),
        AptCacherNg("apt-cacher-ng", around),
    ]
    if around.s3:
        # A hot tier that can hold all that the rows read, and none.
        servers += [
            Artifactapi("ours S3", around, env=s3_env(around.s3)),
            Artifactapi("ours S3+hot", around, env=s3_env(around.s3) | {"HOT_BYTES": "4Gi"}),
            FastApi("fastapi", around),
        ]
    return {server.name: server for server in servers}


def install(tools: Path):
    """Installs the peers from the distribution's packages, without starting them."""
    guard, made = Path("/usr/sbin/policy-rc.d"), False
    sudo = [] if os.getuid() == 0 else ["sudo", "-n"]
    missing = [name for name in PACKAGES if subprocess.run(
        ["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True,
        text=True).stdout != "install ok installed"]
    if shutil.which("nginx", path="/usr/sbin:/usr/bin") and "nginx-light" in missing:
        missing.remove("nginx-light")
    if missing:
        if not guard.exists():
            # Packages must not start servers of their own: the machine's ports are not ours.
            subprocess.run([*sudo, "tee", str(guard)], input=b"#!/bin/sh\nexit 101\n",
                           stdout=subprocess.DEVNULL, check=True)
            subprocess.run([*sudo, "chmod", "755", str(guard)], check=True)
            made = True
        try:
            apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o",
                   "DPkg::Lock::Timeout=300"]
            subprocess.run([*apt, "update", "-qq"], check=False)
            subprocess.run([*apt, "install", "-y", "--no-install-recommends", *missing], check=True)
        finally:
            if made:
                subprocess.run([*sudo, "rm", "-f", str(guard)], check=True)
    python = tools / "fastapi" / "bin" / "python3"
    if not python.exists():
        tools.mkdir(parents=True, exist_ok=True)
        subprocess.run(["python3", "-m", "venv", str(tools / "fastapi")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet",
                        "--disable-pip-version-check", "-r", str(HERE / "requirements.txt")],
                       check=True)
