"""`thin-image mirror` as a daemon of a node, with the configuration that it prints for an engine, and hostile questions to it."""

import http.client
import socket
from pathlib import Path

from lab import Daemon, Failure, Relay, free_port

# Where the name of an image or a parameter could lead out of what is published. None may be answered with content.
HOSTILE = [
    *("/v2/../../etc/passwd", "/v2/x/manifests/../../../../etc/passwd", "/v2/x/../../../etc/manifests/passwd", "/v2//etc/manifests/passwd"),
    *("/v2/x/manifests/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v2/%2e%2e/%2e%2e/etc/manifests/passwd", "/v2/x%2f..%2f..%2fetc/manifests/passwd"),
    *("/v2/x/blobs/sha256:../../../../etc/passwd", "/v2/x/blobs/../../etc/passwd", "/v2/x/blobs/sha256:" + "0" * 63 + "%2f"),
    *("/v2/x/manifests/1?ns=../../etc", "/v2/x/manifests/1?ns=..%2f..%2fetc", "/v2/x/manifests/1?ns=.layers", "/v2/x/manifests/1?ns=%00"),
    *("/v2/x/manifests/1?ns=quay.io&ns=..", "/v2/passwd/tags/list?ns=..", "/v2/x/tags/list?n=-1", "/v2/x/tags/list?last=../../../etc"),
    *("/v2/.flat/manifests/1", "/v2/.metadata/x/manifests/1", "/v2/podmanStore/manifests/1", "/v2/x/manifests/1%00", "/v2/\x7f/manifests/1"),
    *("/v2/" + "a/" * 2000 + "manifests/1", "/v2/x/manifests/" + "t" * 5000, "/v2/x/manifests/1?ns=" + "n" * 5000, "/etc/passwd", "/v2/x/manifests/*"),
]


class Mirror:
    """A mirror of repositories below /cvmfs that is up; requests to it are counted by a relay, whose address is the one that is printed."""

    def __init__(self, lab, binaries, *repositories, options=()):
        self.lab, self.binary = lab, Path(binaries).resolve() / "thin-image"
        if not self.binary.exists():
            raise Failure(f"{self.binary} is missing: make build")
        self.port, self.options = free_port(), list(options)
        self.relay = Relay(self.port)
        command = [self.binary, "mirror", "--listen", f"127.0.0.1:{self.port}", *self.options]
        command += [word for name in repositories for word in ("--repo", name)]
        self.daemon = Daemon(lab, f"mirror-{self.port}", command, self._answers, f"does not answer on 127.0.0.1:{self.port}")
        self.daemon.start()

    def _answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def printed(self, engine):
        """What it prints for an engine."""
        return self.lab.run(self.binary, "mirror", "--print", engine, "--listen", f"127.0.0.1:{self.relay.port}", *self.options).stdout

    def install(self, engine, file):
        """Writes that to where an admin would."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.printed(engine))

    def ask(self, path, method="GET"):
        """(status, body) of a request whose path is sent as it is."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as s:
            s.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
            answer = http.client.HTTPResponse(s, method=method)
            answer.begin()
            return answer.status, answer.read()

    def leaks(self):
        """Those hostile paths that get an answer other than an error of this registry."""
        found = []
        for path in HOSTILE:
            status, body = self.ask(path)
            if not 400 <= status < 500 or b"root:" in body or len(body) > 2000:
                found.append(f"{path[:80]}: {status} {body[:100]!r}")
        return found
