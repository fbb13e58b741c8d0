"""Judges manifests/: run by scripts/manifests, which brings the packages.

Beside the schemas: names that are referred to exist, pods keep to the restricted standard, and
numbers that depend on each other fit. At the end every rule has to refuse a manifest that
breaks it (MISTAKES), so that none of them can pass by looking at nothing.
"""

import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from compose_spec import PyCompose

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "manifests"
# The oldest version in which every field is on by default, and the newest known.
VERSIONS = ("1.30.0", "1.37.0")
NAMESPACE = "artifact-storage"
KUSTOMIZATION, COMPOSE = "kustomization.yaml", "docker-compose.yml"
# Variables that are not the program's own, by the container that takes them.
FOREIGN = re.compile(r"^(POSTGRES_|PGDATA|REDIS_PASSWORD|REDISCLI_AUTH|AWS_)")
# What the users of this program know it by.
KNOWN_NAMES = {
    "Namespace/artifact-storage",
    "ConfigMap/artifactapi-config",
    "Secret/artifactapi-secret",
    "Deployment/artifactapi",
    "PodDisruptionBudget/artifactapi",
    "Service/artifactapi-service",
    "Service/postgres-service",
    "Service/redis-service",
    "Service/minio-service",
    "Ingress/artifactapi",
}
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def size(text):
    """Bytes of a quantity such as 20Gi."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", text).groups()
    return int(number) * UNITS[unit]


class Cluster:
    """Every object of the manifests, and what is wrong with them."""

    def __init__(self, files):
        self.problems = []
        self.objects = {}
        self.texts = files
        for name, text in files.items():
            if name in (KUSTOMIZATION, COMPOSE):
                continue
            for one in yaml.safe_load_all(text):
                self.add(name, one)

    def say(self, where, what):
        self.problems.append(f"{where}: {what}")

    def add(self, file, one):
        name = f"{one['kind']}/{one['metadata']['name']}"
        if name in self.objects:
            self.say(file, f"{name} is there twice")
        self.objects[name] = one
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(str(step) for step in error.path)
                self.say(f"{file} {name}", f"{version}: {where}: {error.message}")

    def of_kind(self, *kinds):
        return [(name, one) for name, one in self.objects.items() if one["kind"] in kinds]

    def workloads(self):
        for name, one in self.of_kind("Deployment", "StatefulSet"):
            yield name, one["spec"], one["spec"]["template"]

    def pods_with(self, labels):
        for name, _, template in self.workloads():
            if labels.items() <= template["metadata"]["labels"].items():
                yield name, template["spec"]

    def service_ports(self, name):
        """The ports of a Service by name and number; none where there is no such Service."""
        service = self.objects.get(f"Service/{name}")
        ports = service["spec"]["ports"] if service else []
        return {port["name"] for port in ports} | {port["port"] for port in ports}


def container_ports(pod):
    ports = [port for container in pod["containers"] for port in container.get("ports", [])]
    return {port["name"] for port in ports}


def check_names(cluster):
    for name in sorted(KNOWN_NAMES - cluster.objects.keys()):
        cluster.say("manifests", f"{name} is missing")
    for name, one in cluster.objects.items():
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != NAMESPACE:
            cluster.say(name, f"is not in {NAMESPACE}")


def check_kustomization(cluster):
    kustomization = yaml.safe_load(cluster.texts[KUSTOMIZATION])
    expected = {"apiVersion", "kind", "namespace", "labels", "resources", "images"}
    if kustomization.keys() != expected:
        cluster.say(KUSTOMIZATION, f"has the keys {sorted(kustomization)}")
    if kustomization["namespace"] != NAMESPACE:
        cluster.say(KUSTOMIZATION, f"is not for {NAMESPACE}")
    files = cluster.texts.keys() - {KUSTOMIZATION, COMPOSE}
    for file in sorted(files ^ set(kustomization["resources"])):
        cluster.say(KUSTOMIZATION, f"{file} is listed or there, not both")
    images = {image["name"]: image["newTag"] for image in kustomization["images"]}
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    if images.get("artifactapi") != version:
        cluster.say(KUSTOMIZATION, f"the image artifactapi is not of version {version}")


def check_selectors(cluster):
    for name, spec, template in cluster.workloads():
        if not spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items():
            cluster.say(name, "does not select its own pods")
        if "serviceName" in spec and not cluster.service_ports(spec["serviceName"]):
            cluster.say(name, f"there is no Service {spec['serviceName']}")
        for spread in template["spec"].get("topologySpreadConstraints", []):
            if spread["labelSelector"]["matchLabels"] != template["metadata"]["labels"]:
                cluster.say(name, "spreads other pods than its own")
    for name, one in cluster.of_kind("Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        pods = list(cluster.pods_with(selector.get("matchLabels", selector)))
        if len(pods) != 1:
            cluster.say(name, f"selects {len(pods)} workloads")
        for port in one["spec"].get("ports", []):
            if not any(port["targetPort"] in container_ports(pod) for _, pod in pods):
                cluster.say(name, f"its pods have no port {port['targetPort']}")
    for name, one in cluster.of_kind("Ingress"):
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                if service["port"]["name"] not in cluster.service_ports(service["name"]):
                    cluster.say(name, f"there is no Service {service['name']} with its port")


def check_pods(cluster):
    for name, spec, template in cluster.workloads():
        pod = template["spec"]
        security = pod["securityContext"]
        if not security.get("runAsNonRoot") or not security.get("runAsUser"):
            cluster.say(name, "may run as root")
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            cluster.say(name, "has no seccomp profile")
        if pod.get("automountServiceAccountToken", True) or pod.get("enableServiceLinks", True):
            cluster.say(name, "gets a token or the variables of Services")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        mounted = set()
        for container in pod["containers"]:
            check_container(cluster, f"{name} {container['name']}", container)
            mounted |= {mount["name"] for mount in container["volumeMounts"]}
        for volume in sorted(volumes ^ mounted):
            cluster.say(name, f"the volume {volume} is declared or mounted, not both")
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                cluster.say(name, f"the volume {volume['name']} has no bound")
            if "configMap" in volume:
                keys = [item["key"] for item in volume["configMap"]["items"]]
                for key in keys:
                    check_key(cluster, name, "ConfigMap", volume["configMap"]["name"], key)


def check_container(cluster, where, container):
    security = container.get("securityContext", {})
    is_restricted = (
        security.get("allowPrivilegeEscalation") is False
        and security.get("readOnlyRootFilesystem") is True
        and security.get("capabilities") == {"drop": ["ALL"]}
    )
    if not is_restricted:
        cluster.say(where, "is not restricted")
    for kind in ("requests", "limits"):
        if container.get("resources", {}).get(kind, {}).keys() < {"memory", "cpu"}:
            cluster.say(where, f"has no {kind} of memory and cpu")
    image = container["image"]
    if image != "artifactapi" and not re.search(r":\d[\w.]*$", image):
        cluster.say(where, f"the image {image} has no version")
    for kind in ("readinessProbe", "livenessProbe"):
        if kind not in container:
            cluster.say(where, f"has no {kind}")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(kind, {}).get("httpGet", {}).get("port")
        if port is not None and port not in container_ports({"containers": [container]}):
            cluster.say(where, f"{kind}: there is no port {port}")
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if field in source and not source[field].get("optional"):
                check_key(cluster, where, kind, source[field]["name"], source[field]["key"])
        check_variable(cluster, where, variable["name"])


def check_key(cluster, where, kind, name, key):
    one = cluster.objects.get(f"{kind}/{name}", {})
    if key not in one.get("stringData", one.get("data", {})):
        cluster.say(where, f"{kind} {name} has no {key}")


def check_variable(cluster, where, name):
    if not FOREIGN.match(name) and f"`{name}`" not in cluster.readme:
        cluster.say(where, f"README does not know the variable {name}")


def check_settings(cluster):
    """Every value of the ConfigMap and the Secret is used; addresses are those of Services."""
    used = set()
    for _, _, template in cluster.workloads():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {})
                reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
                if reference:
                    used.add((reference["name"], reference["key"]))
    secret = cluster.objects["Secret/artifactapi-secret"]["stringData"]
    config = cluster.objects["ConfigMap/artifactapi-config"]["data"]
    given = {("artifactapi-secret", key) for key in secret}
    given |= {("artifactapi-config", key) for key in config if key != "remotes.yaml"}
    for name, key in sorted(given - used):
        cluster.say(name, f"nothing uses {key}")
    redis = re.fullmatch(r"redis://:(.*)@(.*)/\d", secret["REDIS_URL"])
    if not redis or redis[1] != secret["REDIS_PASSWORD"]:
        cluster.say("artifactapi-secret", "REDIS_URL has not REDIS_PASSWORD")
    postgres = f"{secret['DBHOST']}:{secret['DBPORT']}"
    for address in (postgres, secret["MINIO_ENDPOINT"], redis[2] if redis else ":0"):
        host, port = address.rsplit(":", 1)
        if int(port) not in cluster.service_ports(host):
            cluster.say("artifactapi-secret", f"there is no Service at {address}")
    for key in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "DBPASS", "REDIS_PASSWORD"):
        if not secret[key].startswith("REPLACE-ME"):
            cluster.say("artifactapi-secret", f"{key} looks like a real secret")


def check_artifactapi(cluster):
    where = "Deployment/artifactapi"
    spec = cluster.objects[where]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    if spec["replicas"] != 2:
        cluster.say(where, "has not two replicas")
    wanted = {
        "requests": {"memory": "256Mi", "cpu": "250m"},
        "limits": {"memory": "512Mi", "cpu": "500m"},
    }
    if container["resources"] != wanted:
        cluster.say(where, f"its resources are {container['resources']}")
    for kind, path in (("readinessProbe", "/health/ready"), ("livenessProbe", "/health/live")):
        if container[kind]["httpGet"]["path"] != path:
            cluster.say(where, f"{kind} does not ask {path}")
    config = cluster.objects["ConfigMap/artifactapi-config"]["data"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] <= pause + int(config["SHUTDOWN_GRACE_S"]):
        cluster.say(where, "is killed before SHUTDOWN_GRACE_S is over")
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    data = volumes.get(mounts.get(variables["DATA_DIR"]), {})
    if size(data.get("emptyDir", {}).get("sizeLimit", "0Ki")) <= size(config["STAGING_BYTES_MAX"]):
        cluster.say(where, "DATA_DIR has no room for STAGING_BYTES_MAX")
    if str(Path(variables["CONFIG_PATH"]).parent) not in mounts:
        cluster.say(where, "CONFIG_PATH is on no volume")


def check_ingress(cluster):
    annotations = cluster.objects["Ingress/artifactapi"]["metadata"]["annotations"]
    wanted = {
        "proxy-body-size": "10g",
        "proxy-read-timeout": "600",
        "proxy-buffering": "off",
        "proxy-request-buffering": "off",
    }
    for key, value in wanted.items():
        if annotations.get(f"nginx.ingress.kubernetes.io/{key}") != value:
            cluster.say("Ingress/artifactapi", f"{key} is not {value}")


def interpolated(text):
    """What Compose makes of a file where no variable is set."""
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text)
    return text.replace("$$", "$")


def check_compose(cluster):
    text = interpolated(cluster.texts[COMPOSE])
    try:
        PyCompose.from_yaml(text)
    except ValueError as error:
        cluster.say(COMPOSE, str(error))
        return
    compose = yaml.safe_load(text)
    services = compose["services"]
    for name, service in services.items():
        where = f"{COMPOSE} {name}"
        if "build" in service:
            context = (FOLDER / service["build"]["context"]).resolve()
            if not (context / "Dockerfile").is_file():
                cluster.say(where, "there is no Dockerfile where it builds")
        elif not re.search(r":\d[\w.]*$", service["image"]):
            cluster.say(where, f"the image {service['image']} has no version")
        elif "healthcheck" not in service:
            cluster.say(where, "has no health check")
        for other in service.get("depends_on", {}):
            if other not in services:
                cluster.say(where, f"depends on {other}, which is not there")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            is_path = source.startswith(".")
            if not ((FOLDER / source).exists() if is_path else source in compose["volumes"]):
                cluster.say(where, f"there is no volume {source}")
        for variable in service.get("environment", {}):
            check_variable(cluster, where, variable)
    own = services["artifactapi"]["environment"]
    hosts = {own["MINIO_ENDPOINT"].split(":")[0], own["DBHOST"]}
    hosts.add(own["REDIS_URL"].rsplit("@", 1)[1].split(":")[0])
    for host in sorted(hosts ^ services["artifactapi"]["depends_on"].keys()):
        cluster.say(COMPOSE, f"artifactapi uses {host} or waits for it, not both")


CHECKS = (
    check_names,
    check_kustomization,
    check_selectors,
    check_pods,
    check_settings,
    check_artifactapi,
    check_ingress,
    check_compose,
)


def judge(files, readme):
    """What is wrong with these files. The further checks rely on the schemas."""
    cluster = Cluster(files)
    cluster.readme = readme
    if cluster.problems:
        return cluster.problems
    for check in CHECKS:
        try:
            check(cluster)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            # Something that a rule looks at is not there at all.
            cluster.say(check.__name__, f"found no {error}")
    return cluster.problems


# One mistake each: file, what stands there, what is written instead, what has to be said.
MISTAKES = (
    ("artifactapi.yaml", "readinessProbe:", "readynessProbe:", "unexpected"),
    ("artifactapi.yaml", "replicas: 2", 'replicas: "two"', "'two'"),
    ("namespace.yaml", "name: artifact-storage", "name: other", "Namespace/artifact-storage is missing"),
    ("service.yaml", "namespace: artifact-storage", "namespace: default", "is not in artifact-storage"),
    (KUSTOMIZATION, "  - redis.yaml\n", "", "redis.yaml is listed or there"),
    (KUSTOMIZATION, "newTag: ", "newTag: 9", "is not of version"),
    ("service.yaml", "selector:\n    app.kubernetes.io/name: artifactapi", "selector:\n    app.kubernetes.io/name: artefactapi", "selects 0 workloads"),
    ("service.yaml", "targetPort: http", "targetPort: https", "no port https"),
    ("ingress.yaml", "name: artifactapi-service", "name: artifactapi", "no Service artifactapi"),
    ("postgres.yaml", "serviceName: postgres-service", "serviceName: postgres", "no Service postgres"),
    ("redis.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
    ("redis.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "is not restricted"),
    ("redis.yaml", "mountPath: /data", "mountPath: /data\n            - name: tmp\n              mountPath: /tmp", "the volume tmp is declared or mounted"),
    ("redis.yaml", "redis:8", "redis:latest", "has no version"),
    ("redis.yaml", "emptyDir:\n            sizeLimit: 16Mi", "emptyDir: {}", "has no bound"),
    ("artifactapi.yaml", "preStop:", "postStart:", "check_artifactapi: .*'preStop'"),
    ("artifactapi.yaml", "key: DBPASS}", "key: DBPASSWORD}", "has no DBPASSWORD"),
    ("artifactapi.yaml", "- name: LOG_LEVEL", "- name: LOGLEVEL", "README does not know the variable LOGLEVEL"),
    ("artifactapi.yaml", "port: http\n            periodSeconds: 5", "port: web\n            periodSeconds: 5", "there is no port web"),
    ("artifactapi.yaml", "path: /health/ready", "path: /health/live", "readinessProbe does not ask"),
    ("artifactapi.yaml", "terminationGracePeriodSeconds: 140", "terminationGracePeriodSeconds: 35", "is killed before"),
    ("artifactapi.yaml", "sizeLimit: 20Gi", "sizeLimit: 16Gi", "no room for STAGING_BYTES_MAX"),
    ("artifactapi.yaml", "memory: 512Mi", "memory: 1Gi", "its resources are"),
    ("artifactapi.yaml", "ADMIN_TOKEN, optional: true", "ADMIN_TOKEN", "has no ADMIN_TOKEN"),
    ("secret.yaml", "minio-service:9000", "minio-service:9001", "no Service at minio-service:9001"),
    ("secret.yaml", "REDIS_PASSWORD: REPLACE-ME", "REDIS_PASSWORD: REPLACE-ME-not", "REDIS_URL has not"),
    ("secret.yaml", "DBPASS: REPLACE-ME-database-password", "DBPASS: hunter2", "looks like a real secret"),
    ("configmap.yaml", "LOG_FORMAT: json", "LOG_FORMAT: json\n  LOG_COLOUR: none", "nothing uses LOG_COLOUR"),
    ("ingress.yaml", "proxy-body-size: 10g", "proxy-body-size: 1m", "proxy-body-size is not 10g"),
    (COMPOSE, "healthcheck:", "health_check:", "health_check"),
    (COMPOSE, "postgres: {condition: service_healthy}", "database: {condition: service_healthy}", "depends on database"),
    (COMPOSE, "- postgres:/var/lib", "- database:/var/lib", "no volume database"),
    (COMPOSE, "      LOG_LEVEL:", "      LOGLEVEL:", "README does not know the variable LOGLEVEL"),
    (COMPOSE, "DBHOST: postgres", "DBHOST: database", "artifactapi uses database"),
)


def main():
    files = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.y*ml"))}
    readme = (ROOT / "README.md").read_text()
    problems = judge(files, readme)
    for problem in problems:
        print(f"manifests: {problem}", file=sys.stderr)
    if problems:
        return 1
    for file, right, wrong, said in MISTAKES:
        if right not in files[file]:
            print(f"manifests: {file} has no {right!r} to make a mistake of", file=sys.stderr)
            return 1
        found = judge({**files, file: files[file].replace(right, wrong, 1)}, readme)
        if not any(re.search(said, problem) for problem in found):
            print(f"manifests: {file} with {wrong!r} passes: {found}", file=sys.stderr)
            return 1
    print(f"manifests: nothing to say ({len(MISTAKES)} mistakes were found)")
    return 0


sys.exit(main())
