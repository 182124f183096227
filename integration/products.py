"""Our own programs as a scenario uses them: through their command lines only."""

import json
from pathlib import Path

from lab import Failure, free_port


class Repository:
    """A repository of the lab's, made, published and mounted by the binaries in a directory."""

    def __init__(self, lab, binaries, fqrn):
        self.lab, self.fqrn = lab, fqrn
        self.home = lab.path(fqrn)
        self.storage, self.keys, self.state, self.wish_list = (self.home / name for name in ("storage", "keys", "state", "wishlist.yaml"))
        publisher, self.client = (Path(binaries).resolve() / name for name in ("cvmfs-publisher", "cvmfs-client"))
        for binary in (publisher, self.client):
            if not binary.exists():
                raise Failure(f"{binary} is missing: make build, or PROFILE=dev make build for target/debug")
        self.publisher = [publisher, "--storage", self.storage, "--keys", self.keys, "--state", self.state]

    def create(self, *options):
        """Makes the repository with its first revision."""
        self.lab.run(*self.publisher, "init", self.fqrn, *options)

    def wish(self, *references):
        """Writes the wish list."""
        lines = [f"version: 1\ncvmfs_repo: {self.fqrn}\ninput:\n", *(f"  - {json.dumps(reference)}\n" for reference in references)]
        self.wish_list.write_text("".join(lines))

    def convert_command(self):
        """The command line of one pass over the wish list, with the report on stdout."""
        return [*self.publisher, "--json", "convert", self.wish_list]

    def convert(self):
        """One pass over the wish list; returns the report."""
        return json.loads(self.lab.run(*self.convert_command()).stdout)

    def check(self, *options):
        """The status of a check: 0 is a sound repository; what it found is printed otherwise."""
        done = self.lab.run(*self.publisher, "check", self.fqrn, *options, ok=None)
        if done.returncode != 0:
            print(done.stdout + done.stderr)
        return done.returncode

    def revision(self):
        """The revision in the manifest, read here and not by the programs under test."""
        head = (self.storage / ".cvmfspublished").read_bytes().split(b"\n--\n")[0]
        return next(int(line[1:]) for line in head.split(b"\n") if line.startswith(b"S"))

    def serve(self):
        """Starts the HTTP server and returns its port."""
        port = free_port()
        self.lab.serve("cvmfs-publisher-serve", [*self.publisher, "serve", self.fqrn, "--listen", f"127.0.0.1:{port}"], port)
        return port

    def mount(self, name, cache, port, point=None, *more):
        """Mounts what is served on `port` on a directory of that name, or on `point`; returns the mount point and what unmounts it."""
        point = point or self.lab.path(name)
        url = f"http://127.0.0.1:{port}/cvmfs/@fqrn@"
        options = ["--server-url", url, "--public-key", self.keys / f"{self.fqrn}.pub", "--cache", self.lab.dir / cache, *more]
        return point, self.lab.mount(point, self.client, "mount", self.fqrn, point, *options)
