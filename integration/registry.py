"""The registry's side of a scenario: a real `docker-registry`, and a client of it that shares no code with what is tested."""

import concurrent.futures
import hashlib
import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from images import debian_architecture, read_layout
from lab import Failure, free_port

MANIFESTS = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
]


def serve(lab, notify=None):
    """Starts docker-registry on a free port and returns its URL. It tells of pushes to `notify`: a URL and a token."""
    return Registry(lab, notify).url


class Registry:
    """A docker-registry that is up, and can be stopped and started again with what it has."""

    def __init__(self, lab, notify=None):
        port, directory = free_port(), lab.path("registry")
        endpoint = {"name": "watch", "timeout": "2s", "threshold": 3, "backoff": "300ms"}
        if notify:
            endpoint |= {"url": notify[0], "headers": {"Authorization": [f"Bearer {notify[1]}"]}}
        (directory / "config.yml").write_text(
            "version: 0.1\n"
            "log: { level: warn }\n"
            f"storage: {{ filesystem: {{ rootdirectory: {json.dumps(str(directory / 'data'))} }} }}\n"
            f'http: {{ addr: "127.0.0.1:{port}", secret: not-a-secret }}\n'
            + (f"notifications: {json.dumps({'endpoints': [endpoint]})}\n" if notify else "")
        )
        self.url, self._lab, self._port = f"http://127.0.0.1:{port}", lab, port
        self._command = ["docker-registry", "serve", directory / "config.yml"]
        self.start()

    def start(self):
        """Returns when it answers."""
        self._process = self._lab.serve("docker-registry", self._command, self._port)

    def stop(self):
        """Ends it, so that nobody answers at its address."""
        self._process.terminate()
        self._process.wait(15)


def push(layout, url, name, tag):
    """Pushes the only image of an OCI layout."""
    manifest, _ = read_layout(layout)
    blobs = Path(layout) / "blobs"
    for descriptor in [manifest["config"], *manifest["layers"]]:
        place = _request("POST", f"{url}/v2/{name}/blobs/uploads/").headers["Location"]
        query = ("&" if "?" in place else "?") + urllib.parse.urlencode({"digest": descriptor["digest"]})
        with open(blobs / descriptor["digest"].replace(":", "/"), "rb") as blob:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor["size"])}
            _request("PUT", urllib.parse.urljoin(url, place) + query, blob, headers).read()
    digest = json.loads((Path(layout) / "index.json").read_text())["manifests"][0]["digest"]
    body = (blobs / digest.replace(":", "/")).read_bytes()
    _request("PUT", f"{url}/v2/{name}/manifests/{tag}", body, {"Content-Type": manifest["mediaType"]}).read()


def _request(method, url, body=None, headers={}, secret_headers={}):
    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    for key, value in secret_headers.items():
        request.add_unredirected_header(key, value)  # a token is not for the host that a registry redirects to
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 401 and not secret_headers and (token := _token(error.headers.get("WWW-Authenticate", ""))):
            return _request(method, url, body, headers, {"Authorization": f"Bearer {token}"})
        raise Failure(f"{method} {url}: {error} {error.read(500).decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise Failure(f"{method} {url}: {error.reason}; is there a network?") from error


def _token(challenge):
    """An anonymous token, if the registry asks for one."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.startswith("Bearer ") or "realm" not in fields:
        return None
    query = urllib.parse.urlencode({key: fields[key] for key in ("service", "scope") if key in fields})
    answer = json.load(_request("GET", f"{fields['realm']}?{query}"))
    return answer.get("token") or answer.get("access_token")


class Image:
    """One image of a registry, found by a reference as a wish list has it; the platform is this machine's."""

    def __init__(self, reference):
        found = re.fullmatch(r"(?:(https?)://)?([^/]+)/(.+?)(?::([^:/@]+))?(?:@(sha256:[0-9a-f]{64}))?", reference)
        if not found:
            raise Failure(f"{reference} is no image reference; write for instance docker.io/library/python:3.12-slim")
        scheme, host, self.name, tag, digest = found.groups()
        if host in ("docker.io", "index.docker.io", "registry.hub.docker.com"):
            host = "registry-1.docker.io"
        self.url = f"{scheme or 'https'}://{host}/v2/{self.name}"
        self.manifest = self._manifest(digest or tag or "latest")
        with self._blob(self.manifest["config"]) as blob:
            self.config = json.load(blob)

    def _manifest(self, what):
        with _request("GET", f"{self.url}/manifests/{what}", headers={"Accept": ", ".join(MANIFESTS)}) as answer:
            manifest = json.load(answer)
        for entry in manifest.get("manifests", []):
            if entry["platform"]["os"] == "linux" and entry["platform"]["architecture"] == debian_architecture():
                return self._manifest(entry["digest"])
        if "layers" not in manifest:
            raise Failure(f"{self.url}: no manifest for linux/{debian_architecture()}")
        return manifest

    def _blob(self, descriptor):
        return _request("GET", f"{self.url}/blobs/{descriptor['digest']}")

    @property
    def layers(self):
        """Descriptors of the layers, from the bottom up."""
        return self.manifest["layers"]

    def size(self):
        """Bytes of all layers as they are transferred."""
        return sum(layer["size"] for layer in self.layers)

    def environment(self):
        """NAME=value strings of the config."""
        return self.config["config"].get("Env") or ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]

    def command(self):
        """Entry point and default arguments."""
        return (self.config["config"].get("Entrypoint") or []) + (self.config["config"].get("Cmd") or [])

    def pull_and_unpack(self, directory):
        """What engines do without lazy loading: three downloads at a time, verified; layers unpacked in order, each as soon as it is there."""
        root = directory / "root"
        root.mkdir()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for descriptor, blob in zip(self.layers, pool.map(lambda d: self._download(d, directory), self.layers)):
                compression = "--zstd" if descriptor["mediaType"].endswith("zstd") else "--gzip"
                if descriptor["mediaType"].endswith("tar"):
                    compression = "--no-auto-compress"
                # Deletions are left out: they cost a real engine nothing either.
                options = ["--exclude=.wh.*", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]
                done = subprocess.run(["tar", "-x", compression, *options, "-f", blob, "-C", root], capture_output=True, text=True)
                if done.returncode != 0:
                    raise Failure(f"tar can't unpack {descriptor['digest']}: {done.stderr}")
        return root

    def _download(self, descriptor, directory):
        path, digest = directory / descriptor["digest"].removeprefix("sha256:"), hashlib.sha256()
        with self._blob(descriptor) as source, open(path, "wb") as sink:
            while data := source.read(1 << 20):
                digest.update(data)
                sink.write(data)
        if f"sha256:{digest.hexdigest()}" != descriptor["digest"]:
            raise Failure(f"{self.url}: {descriptor['digest']} arrived damaged")
        return path
