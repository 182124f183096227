#!/usr/bin/env python3
"""A cold start over a long line: seconds and bytes beside what the line needs for the bytes that the start touches.

  make bench-coldstart [REPEAT=3 SUBJECT=learning JSON=file]

An image of bench/subjects.py is published as a flat root file system and mounted with an empty cache behind a line of 20 ms and 100 Mbit/s,
which measures itself first; a program in it imports numpy and scipy, or torch. The same start is measured with nothing fetched ahead, with
read-ahead alone, with what the start before it has taught, and with a start-up list that a recording made. The bytes that it touches are
those of the first way, where nothing is fetched that was not asked for; the line time is what the line needs for them. Needs root.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lab as laboratory
import line
import options
from lab import Failure, Lab, tail
from products import Repository
from subjects import plain_size

FQRN = "cold.example.org"

# Runs a program in a root file system with the devices that some ask for before they print a word.
ENTER = ("unshare", "--mount", "sh", "-c", 'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"')

# Options of the mount.
WAYS = {
    "nothing ahead": ["CVMFS_PREFETCH=no"],
    "read-ahead": ["CVMFS_PREFETCH_LEARN=no"],
    "learned": [],
    "list": ["CVMFS_PREFETCH_LEARN=no"],
}


class Bench:
    """A repository with one image, behind a line."""

    def __init__(self, lab, args):
        self.lab, self.results = lab, {}
        self.subject = args.subject
        layout = self.subject.image(lab.home, args.megabytes)
        self.plain = plain_size(layout)
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create()
        lab.run(*self.repository.publisher, "convert-image", f"oci:{layout}:1", FQRN, "--as", "bench/subject:1")
        self.port = self.repository.serve()
        self.point = lab.path("mount")
        self.mounts = 0
        self.learned, self.list = None, lab.dir / "startup.json"

    def once(self, way, port, cache=None, record=False):
        """One start with an empty cache; returns its figures."""
        self.mounts += 1
        cache = cache or f"cache-{self.mounts}"
        options = [word for option in WAYS[way] for word in ("-o", option)]
        _, unmount = self.repository.mount(None, cache, port, self.point, *options)
        root = (self.point / "bench/subject:1").resolve()
        begin = time.monotonic()
        if record:
            self.lab.run(self.repository.client, "record", self.point, "--start")
        elif way == "list":
            self.lab.run(self.repository.client, "prefetch", self.point, "--base", root, self.list)
        done = subprocess.run([*ENTER, root, *self.subject.command], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        seconds = time.monotonic() - begin
        if done.returncode != 0:
            raise Failure(f"status {done.returncode} from {' '.join(self.subject.command)}\n{tail(done.stderr)}")
        self.lab.equal(f"{way}: the output", done.stdout, self.subject.output)
        if record:
            self.list.write_text(self.lab.run(self.repository.client, "record", self.point, "--stop", "--base", root).stdout)
        status = json.loads(self.lab.run(self.repository.client, "status", "--json", self.point).stdout)
        unmount()
        return {"seconds": seconds, "status": status}

    def measure(self, relay, repeat):
        """Each way in turn, `repeat` times, after one start that teaches and one that records."""
        self.once("nothing ahead", self.port, record=True)
        for number in range(1, repeat + 1):
            for way in WAYS:
                cache = None
                if way == "learned":
                    cache = f"learned-{number}"
                    self.once(way, self.port, cache)
                    self.forget(cache)
                relay.reset()
                result = self.once(way, relay.port, cache)
                result |= {"bytes": relay.received, "requests": relay.requests}
                print(f"  {way}, {number} of {repeat}: {result['seconds']:.1f} s, {result['bytes'] / 1e6:.1f} MB", flush=True)
                self.results.setdefault(way, []).append(result)

    def forget(self, cache):
        """Takes all objects out of a cache; what was learned stays."""
        for bucket in (self.lab.dir / cache).glob("[0-9a-f][0-9a-f]"):
            for file in bucket.iterdir():
                file.unlink()

    def table(self, link):
        """What was measured, with ratios to the line."""
        touched = statistics.median(run["bytes"] for run in self.results["nothing ahead"])
        needs = touched * 8 / link.megabits / 1e6
        yield f"a start of {self.plain / 1e6:.0f} MB touches {touched / 1e6:.1f} MB as they are stored, {needs:.2f} s of {link}"
        yield f"  {'':16}{'seconds':>9}{'of the line':>13}{'MB':>9}{'of touched':>12}{'requests':>10}{'in flight':>11}{'unused MB':>11}"
        for way, runs in self.results.items():
            median = lambda value: statistics.median(value(run) for run in runs)
            seconds, size = median(lambda run: run["seconds"]), median(lambda run: run["bytes"])
            flight = median(lambda run: run["status"].get("transfer_millis", 0) / 1000 / run["seconds"])
            unused = median(lambda run: run["status"].get("prefetch", {}).get("unused_bytes", 0))
            yield (
                f"  {way:16}{seconds:>7.2f} s{seconds / needs:>13.2f}{size / 1e6:>9.1f}{size / touched:>12.2f}"
                f"{median(lambda run: run['requests']):>10.0f}{flight:>11.1f}{unused / 1e6:>11.1f}"
            )


def scenario():
    args = options.parse(__doc__, "cvmfs-publisher and cvmfs-client")
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        bench = Bench(lab, args)
        link = line.Link(args.rtt, args.megabits)
        said, right = line.check(link)
        lab.check("the line is what it should be", right, said)
        print(said, flush=True)
        bench.measure(line.Line(bench.port, link), args.repeat)
        print("\n" + "\n".join(bench.table(link)))
        if args.json:
            args.json.write_text(json.dumps({"line": said, "plain": bench.plain, "starts": bench.results}, indent=1) + "\n")
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
