#!/usr/bin/env python3
"""Warm starts, large files and whole images through a mount, beside the same files on the local disk.

  make bench-warm [REPEAT=9 JSON=file BEFORE=directory]

The science image of bench/subjects.py and a large file are published and mounted. A start mounts an overlay over the image's layers with
an upper directory in memory, as an engine does, and imports numpy and scipy in it, in turn: over the layers on the local disk, over the
layers of the mount, over the flat with its cover, and over these on the mount without extended attributes, which is what containers get
from the snapshotter; with passthrough as well. The requests of a start are counted by the kernel. Then the large file is read from its pages,
in turn as well, and again when the mount's pages were dropped. At last every file of the image is read with an empty cache, in turn with the floor:
verifying, inflating and writing the same objects with one thread. BEFORE is a directory with an older cvmfs-client to compare with. Needs root.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
from lab import Failure, Lab, tail
from products import Repository
from subjects import SCIENCE
from tracing import Requests

FQRN = "warm.example.org"
LARGE = "opt/large"
BLOCK = 1 << 20


def with_large_file(home, science, megabytes):
    """The science image below a layer with one large file."""
    def make(directory):
        print(f"making a layer with a file of {megabytes} MB (once)", flush=True)
        layout = images.Layout(directory)
        layout.begin_with(science)
        with layout.layer(level=1) as layer:
            layer.directory("opt")
            layer.add(LARGE, content=(images.Content(7).read(megabytes * 1_000_000), megabytes * 1_000_000))
        layout.finish("1", Env=["PATH=/usr/bin:/bin"], Cmd=SCIENCE.command)

    return images.cached(home, "warm-image", [megabytes, str(science)], make)


class Stack:
    """Layer directories, and overlays over them."""

    def __init__(self, lab, name, layers):
        self.lab, self.layers, self.starts = lab, layers, 0
        self.scratch = lab.path(f"scratch-{name}")
        lab.mount(self.scratch, "mount", "-t", "tmpfs", "none", self.scratch)

    def start(self):
        """Seconds of one start of a new container."""
        self.starts += 1
        place = self.scratch / str(self.starts)
        upper, work, merged = (place / name for name in ("upper", "work", "merged"))
        for directory in (upper, work, merged):
            directory.mkdir(parents=True)
        lower = ":".join(str(layer) for layer in reversed(self.layers))
        begin = time.monotonic()
        self.lab.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", merged)
        done = subprocess.run(["chroot", merged, *SCIENCE.command], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        seconds = time.monotonic() - begin
        self.lab.run("umount", merged)
        if done.returncode != 0:
            raise Failure(f"status {done.returncode} from {' '.join(SCIENCE.command)}\n{tail(done.stderr)}")
        self.lab.equal("the output", done.stdout, SCIENCE.output)
        return seconds


def read(file, drop=False):
    """Seconds to read a file in order, without the pages that its own file system keeps if they are to be dropped."""
    buffer = bytearray(BLOCK)
    with open(file, "rb", buffering=0) as content:
        if drop:
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.monotonic()
        while content.readinto(buffer):
            pass
        return time.monotonic() - begin


def read_all(directories):
    """(seconds, files, bytes) of reading every regular file below directories, one after another: as a copy does it, the files of
    a directory before the directories in it."""
    begin, files, size = time.monotonic(), 0, 0
    buffers = [bytearray(BLOCK)]
    left = [str(directory) for directory in reversed(directories)]
    while left:
        with os.scandir(left.pop()) as entries:
            entries = list(entries)
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                content = os.open(entry.path, os.O_RDONLY)
                files += 1
                while count := os.readv(content, buffers):
                    size += count
                os.close(content)
        left.extend(entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False))
    return time.monotonic() - begin, files, size


class Bench:
    """A repository with one image."""

    def __init__(self, lab, args):
        self.lab, self.args = lab, args
        science = SCIENCE.image(lab.home, args.megabytes)
        layout = with_large_file(lab.home, science, args.large)
        manifest, _ = images.read_layout(layout)
        digests = [layer["digest"].split(":")[1] for layer in manifest["layers"]]
        self.layers = [f".layers/{digest[:2]}/{digest}/layerfs" for digest in digests]
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create()
        lab.run(*self.repository.publisher, "convert-image", f"oci:{layout}:1", FQRN, "--as", "bench/warm:1")
        self.port = self.repository.serve()
        self.requests = Requests(lab)
        self.mounts = {}

    def mount(self, name, cache, *options, client=None):
        """A mount and the directories of the image's layers in it."""
        repository = self.repository
        used, repository.client = repository.client, client or repository.client
        point, unmount = repository.mount(name, cache, self.port, None, "--cache-limit", "0", *options)
        repository.client = used
        return point, [point / layer for layer in self.layers], unmount

    def bare(self, point):
        """The mount without extended attributes beside another."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(os.getxattr(point, "user.control"))
            control.sendall(b"bare\n")
            return Path(json.loads(control.makefile().readline())["mountpoint"])

    def flat(self, point):
        """The flat and what covers its additions, the lower one first."""
        image = Path(os.path.realpath(point / "bench/warm:1"))
        return [image, image.with_name(f".cover-{image.name}")]

    def ways(self):
        """{name: (mount point, directories, the topmost last)} of everything that is started from."""
        point, layers, _ = self.mount("mount", "cache")
        local = [self.lab.dir / "local" / str(number) for number in range(len(layers))]
        (self.lab.dir / "local").mkdir()
        for source, target in zip(layers, local):
            self.lab.run("cp", "--archive", "--no-target-directory", source, target)
        bare = self.bare(point)
        below = lambda directories, point, other: [other / directory.relative_to(point) for directory in directories]
        flat = self.flat(point)
        ways = {"local disk": (None, local), "layers": (point, layers), "flat": (point, flat)}
        ways["bare layers"] = (bare, below(layers, point, bare))
        ways["bare flat"] = (bare, below(flat, point, bare))
        passed, layers, _ = self.mount("passed", "cache", "-o", "passthrough=auto")
        self.passthrough = json.loads(self.lab.run(self.repository.client, "status", "--json", passed).stdout)["passthrough"]
        bare = self.bare(passed)
        ways["passed flat"] = (bare, below(self.flat(passed), passed, bare))
        if self.args.before:
            point, layers, _ = self.mount("before", "cache-before", client=self.args.before.resolve() / "cvmfs-client")
            ways["before"] = (point, layers)
        return ways

    def starts(self, ways):
        """{way: (median seconds, requests of a start)}."""
        stacks = {name: Stack(self.lab, name.replace(" ", "-"), layers) for name, (_, layers) in ways.items()}
        times, counts = {name: [] for name in ways}, {}
        laboratory.settle()
        for name, (point, _) in ways.items():
            for _ in range(2):
                stacks[name].start()
            if point:
                counts[name], _ = self.requests.counted(point, stacks[name].start)
        for _ in range(self.args.repeat):
            for name in ways:
                times[name].append(stacks[name].start())
        return {name: (statistics.median(times[name]), counts.get(name)) for name in ways}

    def large(self, ways):
        """{way: (seconds from pages, seconds without the mount's own pages)}."""
        files = {name: next(layer / LARGE for layer in layers if (layer / LARGE).exists()) for name, (_, layers) in ways.items()}
        times = {name: [] for name in files}
        for file in files.values():
            read(file)
        for _ in range(self.args.repeat):
            for name, file in files.items():
                times[name].append(read(file))
        dropped = lambda file: min(read(file, drop=True) for _ in range(3))
        return {name: (statistics.median(times[name]), dropped(file) if name != "local disk" else None) for name, file in files.items()}

    def cold(self, number):
        """Reading the whole image with an empty cache: seconds, files, bytes, objects, and the floor."""
        cache = f"cache-cold-{number}"
        point, layers, unmount = self.mount(f"cold-{number}", cache)
        seconds, files, size = read_all(layers[:-1])
        status = json.loads(self.lab.run(self.repository.client, "status", "--json", point).stdout)
        unmount()
        floor, target = Path(self.args.bin) / "examples/fetch", self.lab.path(f"floor-{number}")
        floor = json.loads(self.lab.run(floor, self.repository.storage, self.lab.dir / cache, target).stdout)
        return {"seconds": seconds, "files": files, "bytes": size, "downloads": status["downloads"], "floor": floor}


def table(bench, starts, large, cold):
    """What was measured, with ratios."""
    local, _ = starts["local disk"]
    yield f"a warm start of an image of {len(bench.layers)} layers (passthrough: {bench.passthrough})"
    for name, (seconds, counts) in starts.items():
        kinds = "".join(f", {count} {kind}" for kind, count in sorted((counts or {}).items(), key=lambda item: -item[1]))
        asked = f"{sum(counts.values()):>7} requests{kinds.replace(',', ':', 1)}" if counts is not None else ""
        yield f"  {name:12}{seconds:8.3f} s   of local {seconds / local:5.2f}   {asked}"
    size = bench.args.large
    yield f"a file of {size} MB, read in order"
    pages, _ = large["local disk"]
    for name, (warm, dropped) in large.items():
        again = f"   {size / dropped:7.0f} MB/s when the mount's pages are dropped" if dropped else ""
        yield f"  {name:12}{size / warm:8.0f} MB/s  of local {pages / warm:5.2f}{again}"
    first, floor = cold[0], cold[0]["floor"]
    yield f"all {first['files']} files of the image, {first['bytes'] / 1e6:.0f} MB, with an empty cache, {len(cold)} times in turn"
    seconds, below = (statistics.median(values) for values in ((one["seconds"] for one in cold), (one["floor"]["seconds"] for one in cold)))
    each = ", ".join(f"{one['seconds'] / one['floor']['seconds']:.2f}" for one in cold)
    yield f"  {'mount':12}{seconds:8.2f} s   of floor {seconds / below:5.2f}   {first['downloads']} objects   (each: {each})"
    yield f"  {'floor':12}{below:8.2f} s   verify, inflate, write {floor['objects']} objects, {floor['bytes'] / 1e6:.0f} MB, one thread"


def scenario():
    args = arguments()
    for program in ("examples/fetch",):
        if not (Path(args.bin) / program).exists():
            raise Failure(f"{args.bin}/{program} is missing: cargo build --release -p cvmfs --example fetch")
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        bench = Bench(lab, args)
        ways = bench.ways()
        starts = bench.starts(ways)
        large = bench.large(ways)
        cold = [bench.cold(number) for number in range(args.cold)]
        print("\n" + "\n".join(table(bench, starts, large, cold)))
        if args.json:
            args.json.write_text(json.dumps({"starts": starts, "large": large, "cold": cold}, indent=1) + "\n")
    return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--before", type=Path, help="directory of an older cvmfs-client to compare with")
    parser.add_argument("--megabytes", type=int, default=1600, help="size of the image, plain")
    parser.add_argument("--large", type=int, default=1000, help="size of the large file in MB")
    parser.add_argument("--repeat", type=int, default=9, help="how often each is measured; the median counts")
    parser.add_argument("--cold", type=int, default=3, help="how often the whole image is read with an empty cache; the median counts")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario)
