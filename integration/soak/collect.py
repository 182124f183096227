#!/usr/bin/env python3
"""kill -9 at random moments of a garbage collection, under a client that reads. After each: the repository is sound and all that is kept can be read.

  make soak COUNT=50        (SEED=n repeats a run's moments)

A repository has a dozen revisions, one of them with a name, and much that only old ones refer to. Its collection is killed again and again,
each going on from what the killed one left; now and then one is let through and has to leave exactly the objects that an undisturbed one
leaves, and everything starts again. At last a client that is mounted follows a rollback.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lab as laboratory
from lab import Lab
from products import Repository

FQRN = "collect.example.org"
DIRECTORIES, FILES, REVISIONS, NAMED = 12, 25, 12, 4


def archive(dice, tree):
    """A tar with new content for a third of the files; `tree` becomes what the repository holds then, by path."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for directory in range(DIRECTORIES):
            for name in range(FILES):
                path = f"d{directory}/f{name}"
                if path in tree and dice.random() > 0.3:
                    continue
                content = dice.randbytes(dice.randrange(20_000))
                tree[path] = hashlib.sha256(content).hexdigest()
                member = tarfile.TarInfo(path)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


class Soak:
    """The repository under fire, and a copy of it with all its garbage."""

    def __init__(self, lab, repository, dice):
        self.lab, self.repository, self.dice = lab, repository, dice
        tree, self.named = {}, {}
        for revision in range(1, REVISIONS + 1):
            tar = lab.dir / "revision.tar"
            tar.write_bytes(archive(dice, tree))
            lab.run(*repository.publisher, "ingest", FQRN, "--tar", tar, "--base", "data", "--catalog")
            if revision == NAMED:
                lab.run(*repository.publisher, "tag", FQRN, "add", "named", "--message", "this one stays")
                self.named = dict(tree)
        self.head = tree
        self.revision = repository.revision()
        self.copy = lab.dir / "with-garbage"
        shutil.copytree(repository.home, self.copy, symlinks=True)
        self.gc = [*repository.publisher, "--json", "gc", FQRN, "--objects", "--keep-revisions", "1", "--min-age", "0"]

    def start_again(self):
        """Back to the state with all garbage."""
        for name in ("storage", "state"):
            shutil.rmtree(self.repository.home / name)
            shutil.copytree(self.copy / name, self.repository.home / name, symlinks=True)

    def objects(self):
        data = self.repository.storage / "data"
        return {str(path.relative_to(data)) for path in data.glob("??/*")}

    def read(self, mount, tree):
        """The paths of a tree that cannot be read, or have other content."""
        def right(path, digest):
            try:
                return hashlib.sha256((mount / "data" / path).read_bytes()).hexdigest() == digest
            except OSError:
                return False
        return [path for path, digest in tree.items() if not right(path, digest)]

    def collect(self, what, port, kill_after=None):
        """One collection under a client that reads with an empty cache, killed after some seconds unless it ends before.
        Returns the seconds it ran and its status, None if killed."""
        mount, unmount = self.repository.mount("mount", "cache", port)
        start = time.monotonic()
        with open(self.lab.dir / "gc.log", "wb") as log, subprocess.Popen(
            self.gc, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ) as process:
            wrong = []
            if kill_after is None:
                wrong = self.read(mount, self.head)
            try:
                status = process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
        seconds = time.monotonic() - start
        wrong += self.read(mount, self.head)
        self.lab.equal(f"{what}: a client that was mounted before reads everything", wrong, [])
        unmount()
        mount.rmdir()
        shutil.rmtree(self.lab.dir / "cache", ignore_errors=True)
        return seconds, status

    def inspect(self, what, port):
        """Checks the repository on disk, and the present and the named revision through fresh mounts."""
        self.lab.equal(f"{what}: the revision is the same", self.repository.revision(), self.revision)
        self.lab.equal(f"{what}: the repository is sound", self.repository.check("--data"), 0)
        mount, unmount = self.repository.mount("mount", "cache", port)
        self.lab.equal(f"{what}: the present revision is complete", self.read(mount, self.head), [])
        unmount()
        mount.rmdir()
        shutil.rmtree(self.lab.dir / "cache", ignore_errors=True)

    def roll_back(self, port):
        """Back to the name under a mounted client."""
        lab = self.lab
        mount, unmount = self.repository.mount("mount", "cache", port)
        lab.equal("before the rollback the client shows the present revision", self.read(mount, self.head), [])
        done = json.loads(lab.run(*self.repository.publisher, "--json", "rollback", FQRN, "named").stdout)
        lab.equal("a rollback is a new revision", done["revision"], self.revision + 1)
        lab.equal("after the rollback the repository is sound", self.repository.check("--data"), 0)
        deadline = time.monotonic() + 60
        while self.read(mount, self.named) and time.monotonic() < deadline:
            time.sleep(1)
        lab.equal("the mounted client follows the rollback", self.read(mount, self.named), [])
        unmount()


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--count", type=int, default=50, help="how many collections are killed")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or int(time.time()), help="repeats the moments of a run")
    args = parser.parse_args()
    dice = random.Random(args.seed)

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        repository = Repository(lab, args.bin, FQRN)
        repository.create("--ttl", "5")
        soak = Soak(lab, repository, dice)
        port = repository.serve()
        everything = soak.objects()
        start = time.monotonic()
        lab.run(*soak.gc)
        whole = time.monotonic() - start
        clean = soak.objects()
        soak.inspect("undisturbed", port)
        soak.start_again()
        print(f"a collection takes {whole:.2f} s and leaves {len(clean)} of {len(everything)} objects; killing {args.count}, seed {args.seed}", flush=True)

        killed = 0
        while killed < args.count:
            seconds, status = soak.collect(f"kill {killed + 1}", port, whole * dice.uniform(0, 1))
            if status is None:
                killed += 1
                left = soak.objects()
                soak.inspect(f"kill {killed} after {seconds:.2f} s", port)
                lab.check(f"kill {killed}: nothing that is kept is gone", clean <= left, sorted(clean - left)[:3])
                print(f"  {killed:3} killed after {seconds:5.2f} s: {len(everything) - len(left)} of {len(everything) - len(clean)} removed", flush=True)
            else:
                lab.equal("a collection that is let through succeeds", status, 0)
            if status is not None or dice.random() < 0.3:
                _, status = soak.collect(f"after kill {killed}", port)
                lab.equal(f"after kill {killed}: the next collection completes", status, 0)
                # Tag databases and the like are new when the reflog was signed in between.
                left = {name for name in soak.objects() if name[-1] not in "HXM"}
                lab.equal(f"after kill {killed}: what is left is what an undisturbed one leaves", left, {name for name in clean if name[-1] not in "HXM"})
                soak.inspect(f"completed after kill {killed}", port)
                soak.start_again()
        _, status = soak.collect("at the end", port)
        lab.equal("the last collection completes", status, 0)
        soak.roll_back(port)
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
