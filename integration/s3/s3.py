#!/usr/bin/env python3
"""A repository in a bucket of an S3 server: published, mounted, fought over by two publishers, killed and cut off.

  make test-s3 ROUNDS=20        (SEED=n repeats a run's moments)

The server is built from the crates s3s and s3s-fs (publisher/examples/s3-server.rs): it verifies signatures, honours conditional writes,
and lets anybody read objects, which is how cvmfs-client gets them. Times stand beside those of the same work on a local directory.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import registry
from lab import Failure, Lab, free_port
from products import Repository

FQRN = "s3.example.org"
BUCKET = "cvmfs"
NAME_OF = {"AWS_ACCESS_KEY_ID": "publisher", "AWS_SECRET_ACCESS_KEY": "of no use to anybody", "AWS_REGION": "us-east-1"}


class InBucket(Repository):
    """A repository whose storage is a bucket; one more publisher of it with `other`."""

    def __init__(self, lab, binaries, fqrn, port):
        super().__init__(lab, binaries, fqrn)
        self.port, self.binary = port, self.publisher[0]
        self.publisher = self.command(self.state)

    def command(self, state):
        """The publisher with a state of its own, as it has on another machine."""
        return [self.binary, "--storage", f"s3://{BUCKET}/{self.fqrn}", "--keys", self.keys, "--state", state]

    def read(self, name):
        """A file as everybody can read it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{BUCKET}/{self.fqrn}/{name}", timeout=20) as answer:
            return answer.read()

    def revision(self):
        head = self.read(".cvmfspublished").split(b"\n--\n")[0]
        return next(int(line[1:]) for line in head.split(b"\n") if line.startswith(b"S"))

    def images(self):
        """Where the published images are."""
        return {image["path"].lstrip("/") for image in json.loads(self.lab.run(*self.publisher, "--json", "images", self.fqrn).stdout)}

    def root_catalogs_in_reflog(self):
        """How many root catalogs the reflog knows."""
        import sqlite3

        path = self.lab.dir / "reflog"
        path.write_bytes(self.read(".cvmfsreflog"))
        with sqlite3.connect(path) as database:
            return database.execute("SELECT count(*) FROM refs WHERE type = 0").fetchone()[0]


class Faulty:
    """A TCP relay that cuts connections: each after a random number of bytes while `limit` is set, all of them while `dead`."""

    def __init__(self, port, dice):
        self.target, self.dice, self.limit, self.dead, self.cuts = port, dice, None, False, 0
        self._early = itertools.cycle((True, False))
        self._open = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def die(self):
        """Cuts everything, now and until `dead` is taken back."""
        self.dead = True
        for connection in list(self._open):
            _cut(connection)

    def _accept(self):
        while True:
            client, _ = self._listener.accept()
            if self.dead:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {client, server}
            # Every other one breaks early, the first too: so some break whatever the dice say. The others may carry the largest request.
            left = [self.dice.randrange(self.limit // 200 if next(self._early) else self.limit) if self.limit else None]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink, left), daemon=True).start()

    def _pump(self, source, sink, left):
        try:
            while data := source.recv(1 << 16):
                if left[0] is not None:
                    left[0] -= len(data)
                    if left[0] < 0:
                        self.cuts += 1
                        break
                sink.sendall(data)
        except OSError:
            pass
        for connection in (source, sink):
            _cut(connection)
            self._open.discard(connection)


def _cut(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def image(lab, name, small=5, large=0):
    """The layout of an image that shares nothing with others: so many small files, and a large one of so many bytes."""
    content, layout = random.Random(name), images.Layout(lab.dir / "layouts" / name)
    with layout.layer(level=1) as layer:
        layer.directory("opt")
        for number in range(small):
            layer.add(f"opt/{name}-{number}", content=content.randbytes(content.randrange(2, 20_000)))
        if large:
            layer.add(f"opt/{name}-large", content=content.randbytes(large))
    layout.finish("1", Env=["PATH=/usr/bin"])
    return layout.directory


def timed(work):
    """Seconds that it took, and its result."""
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def publish_and_mount(lab, repository, local, image_names):
    """Images through both storages; the mounted trees are equal."""
    repository.create()
    local.create()
    again = lab.run(*repository.publisher, "init", FQRN, ok=None)
    lab.check("a second init over it is refused", again.returncode != 0 and "never made over it" in again.stderr + again.stdout, again.stderr)
    for where in (repository, local):
        where.wish(*image_names)
    in_bucket, report = timed(repository.convert)
    in_directory, _ = timed(local.convert)
    print(f"conversion: {in_bucket:.1f} s into the bucket, {in_directory:.1f} s into a directory", flush=True)
    lab.equal("all wishes are added", [wish["outcome"] for wish in report["wishes"]], ["added"] * len(image_names))
    revision = repository.revision()
    again, report = timed(repository.convert)
    lab.equal("a second run has nothing to do", [wish["outcome"] for wish in report["wishes"]], ["unchanged"] * len(image_names))
    lab.equal("and publishes nothing", repository.revision(), revision)
    seconds, status = timed(repository.check)
    lab.equal("the repository is sound", status, 0)
    print(f"second run {again:.1f} s, check {seconds:.1f} s", flush=True)
    lab.equal("with all its data", repository.check("--data"), 0)
    mount, unmount = repository.mount("mount", "cache", repository.port)
    local_mount, unmount_local = local.mount("local-mount", "local-cache", local.serve())
    expected, found = (images.found_tree(point / ".flat") for point in (local_mount, mount))
    lab.check("the mounted tree is that of the directory", not images.differences(expected, found), "\n    ".join(images.differences(expected, found)))
    lab.check("and it is not empty", sum(1 for entry in found.values() if entry["type"] == "-") > 100)
    unmount()
    unmount_local()


def two_publishers(lab, repository, rounds, bucket):
    """Two at once, again and again, from machines of their own: both succeed, and nothing is lost.

    Leases make them wait for each other. In every other round they are taken away, so that only the condition on the write is left, and
    the server takes its time with a manifest, so that the other one comes in between.
    """
    expected = repository.images()
    before, catalogs = repository.revision(), repository.root_catalogs_in_reflog()
    states = [repository.state, repository.home / "state-of-another-machine"]
    log, races, overtaken = lab.dir / "s3-server.log", 0, 0
    for number in range(rounds):
        names = [f"round-{number}-{which}" for which in "ab"]
        commands = [
            [*repository.command(state), "convert-image", f"oci:{image(lab, name)}", FQRN, "--as", f"rounds/{name}:1"]
            for name, state in zip(names, states)
        ]
        with contextlib.nullcontext() if number % 2 else race(bucket):
            so_far = lost_races(log)
            running = [
                subprocess.Popen([str(w) for w in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                for command in commands
            ]
            for name, process in zip(names, running):
                said, _ = process.communicate(timeout=300)
                lab.check(f"{name} is published", process.returncode == 0, laboratory.tail(said))
        if number % 2 == 0:
            races, overtaken = races + 1, overtaken + (lost_races(log) > so_far)
        expected |= {f"rounds/{name}:1" for name in names}
        found = repository.images()
        lab.check(f"round {number}: nothing is lost", expected <= found, f"missing: {sorted(expected - found)[:5]}")
    print(f"overtaken in {overtaken} of {races} rounds without leases", flush=True)
    lab.check("without leases, one was overtaken at least once", overtaken > 0)
    lab.equal("each made a revision", repository.revision(), before + 2 * rounds)
    lab.check("the reflog has every one of them", repository.root_catalogs_in_reflog() >= catalogs + 2 * rounds)
    lab.equal("after the rounds the repository is sound", repository.check("--data"), 0)


def lost_races(log):
    """Writes of the reflog or the manifest that came too late, as the server says."""
    lines = log.read_text().splitlines()
    return sum(1 for line in lines if line.startswith("overtaken ") and line.endswith((".cvmfspublished", ".cvmfsreflog")))


@contextlib.contextmanager
def race(bucket):
    """Takes the leases away all the time, which doc/COLLECTING.md calls harmless, and slows manifests down."""
    leases, slow, done = bucket / FQRN / ".cvmfsleases", bucket.parent / "slow", threading.Event()

    def take_away():
        while not done.wait(0.002):
            leases.unlink(missing_ok=True)

    slow.touch()
    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        slow.unlink()


def start(repository, arguments, **environment):
    """Starts the publisher in a process group of its own."""
    return subprocess.Popen(
        [str(w) for w in (*repository.publisher, *arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=os.environ | environment,
    )


def killed(lab, repository, reference, whole, kills, dice):
    """kill -9 at random moments; the old or the new revision after each, and the next run completes."""
    old = repository.revision()
    for number in range(kills):
        process = start(repository, ["convert-image", reference, FQRN])
        try:
            process.communicate(timeout=whole * dice.uniform(0.1, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        lab.check(f"kill {number}: the old or the new revision", repository.revision() in (old, old + 1))
        lab.equal(f"kill {number}: the repository is sound", repository.check(), 0)
    lab.run(*repository.publisher, "convert-image", reference, FQRN)
    lab.equal("the run after the last kill publishes", repository.revision(), old + 1)
    lab.equal("and the repository is sound", repository.check("--data"), 0)


def cut_off(lab, repository, images_there, relay, whole, dice):
    """A network that goes while the first image is converted is an error that says so; connections that break during the second are made good."""
    gone, broken = images_there
    through = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.port}"}
    old = repository.revision()

    def half_way():
        relay.die()

    timer = threading.Timer(whole * dice.uniform(0.2, 1), half_way)
    timer.start()
    process = start(repository, ["convert-image", gone, FQRN], **through, CVMFS_S3_MAX_RETRIES="3")
    said, _ = process.communicate(timeout=300)
    timer.join()
    if process.returncode != 0:
        lab.check("a network that is gone is named", "can't be reached" in said or "connection" in said, laboratory.tail(said))
        lab.equal("nothing was published without a network", repository.revision(), old)
    lab.equal("the repository is sound", repository.check(), 0)
    relay.dead, relay.limit, old, cuts = False, 20_000_000, repository.revision(), relay.cuts
    process = start(repository, ["convert-image", broken, FQRN], **through)
    said, _ = process.communicate(timeout=600)
    lab.check("broken connections are made good", process.returncode == 0, laboratory.tail(said))
    lab.check("connections did break", relay.cuts > cuts)
    print(f"published through {relay.cuts - cuts} broken connections", flush=True)
    lab.equal("one publish", repository.revision(), old + 1)
    lab.equal("after broken connections the repository is sound", repository.check("--data"), 0)


def wrong_settings(lab, repository):
    """What is wrong is said."""
    for name, value, words in [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "nobody", "AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}", "can't be reached"),
    ]:
        process = start(repository, ["images", FQRN], **{name: value}, CVMFS_S3_MAX_RETRIES="1")
        said, _ = process.communicate(timeout=60)
        lab.check(f"a wrong {name} is an error that says so", process.returncode != 0 and words in said, said)


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher, cvmfs-client and examples/s3-server")
    parser.add_argument("--rounds", type=int, default=20, help="how often two publishers work at once")
    parser.add_argument("--kills", type=int, default=5, help="how many conversions are killed")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or int(time.time()), help="repeats the moments of a run")
    args = parser.parse_args()
    print(f"seed {args.seed}")
    dice = random.Random(args.seed)

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        server = Path(args.bin).resolve() / "examples" / "s3-server"
        if not server.exists():
            raise Failure(f"{server} is missing: make test-s3 builds it")
        port, root = free_port(), lab.path("s3")
        (root / BUCKET).mkdir()
        lab.serve("s3-server", [server, port, root, NAME_OF["AWS_ACCESS_KEY_ID"], NAME_OF["AWS_SECRET_ACCESS_KEY"]], port)
        os.environ.update(NAME_OF, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        url = registry.serve(lab)
        for name in ("first", "second", "killed", "gone", "broken"):
            registry.push(image(lab, name, small=300, large=6_000_000), url, f"demo/{name}", "1")
        repository, local = InBucket(lab, args.bin, FQRN, port), Repository(lab, args.bin, f"local.{FQRN}")
        publish_and_mount(lab, repository, local, [f"{url}/demo/first:1"])
        whole, _ = timed(lambda: lab.run(*repository.publisher, "convert-image", f"{url}/demo/second:1", FQRN))
        two_publishers(lab, repository, args.rounds, root / BUCKET)
        killed(lab, repository, f"{url}/demo/killed:1", whole, args.kills, dice)
        cut_off(lab, repository, [f"{url}/demo/{name}:1" for name in ("gone", "broken")], Faulty(port, dice), whole, dice)
        wrong_settings(lab, repository)
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
