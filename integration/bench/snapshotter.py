#!/usr/bin/env python3
"""From pull to first output, lazily and with overlayfs, on this machine and over a long line; and what the snapshotter itself takes.

  make bench-snapshotter [REPEAT=3 JSON=file]

One image with Python, numpy, scipy and much that a start does not need, in one registry and one repository. containerd 2 pulls it by
`ctr images pull`, and a container imports numpy and scipy: with our snapshotter over our client with an empty cache, and with containerd's own
overlayfs, in turn; and lazily again when the repository has a start-up list of the image. The line has 20 ms and 100 Mbit/s and lies in front of
registry and repository both; it measures itself first. Page caches are left alone, all servers are on this machine. Then both snapshotters have
the image, and new containers of it are started in turn. Before all that, `examples/load` asks a daemon directly, with 64 clients at a time.
Needs root.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import line
import options
import registry
import subjects
from containerd import FQRN, SNAPSHOTTER, Node, within
from lab import Failure, Lab, Relay, tail
from products import Repository
from subjects import plain_size

WAYS = {"overlayfs": "overlayfs", "lazy": SNAPSHOTTER, "with list": SNAPSHOTTER}
NOTHING = ["/bin/true"]


class Bench:
    """A node, and what it pulls from."""

    def __init__(self, lab, args):
        self.lab, self.results = lab, {}
        self.subject = args.subject
        layout = self.subject.image(lab.home, args.megabytes)
        self.plain = plain_size(layout)
        manifest, _ = images.read_layout(layout)
        self.layers, self.size = len(manifest["layers"]), sum(layer["size"] for layer in manifest["layers"])
        url = registry.serve(lab)
        self.registry = int(url.rsplit(":", 1)[1])
        registry.push(layout, url, "bench/science", "1")
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create()
        self.image = f"{url}/bench/science:1"
        self.repository.wish(self.image)
        start = time.monotonic()
        self.repository.convert()
        self.published = time.monotonic() - start
        self.server = self.repository.serve()
        self.mounts, self.has_list = 0, False
        self.node = Node(lab, "2", args.bin, "none")
        self.point = Path("/cvmfs") / FQRN
        self.point.mkdir()
        self.node.snapshotter.start()
        self.node.containerd.start()

    def measure(self, place, relays, repeat):
        """Pulls and starts in each way in turn, `repeat` times each."""
        for number in range(1, repeat + 1):
            for way in WAYS:
                self.record(way == "with list")
                result = self.once(way, *relays)
                print(f"  {place}, {way}, {number} of {repeat}: {result['total']:.1f} s", flush=True)
                self.results.setdefault((place, way), []).append(result)

    def record(self, wanted):
        """Publishes a start-up list of the image, or takes it away."""
        if wanted != self.has_list:
            what = ["--client", self.repository.client, "--", *self.subject.command] if wanted else ["--remove"]
            self.lab.run(*self.repository.publisher, "record", self.image, FQRN, *what)
            self.has_list = wanted

    def once(self, way, front, back):
        """One pull and start with nothing of the image on the node."""
        node, name = self.node, f"127.0.0.1:{front.port}/bench/science:1"
        self.mounts += 1
        _, unmount = self.repository.mount(None, f"cache-{self.mounts}", back.port, self.point)
        front.reset()
        back.reset()
        start = time.monotonic()
        node.pull(name, snapshotter=WAYS[way])
        pull = time.monotonic() - start
        downloaded = front.received
        cold, output = self.first_output(name, way, self.subject.command)
        result = {"pull": pull, "start": cold, "total": pull + cold, "downloaded": downloaded}
        result |= {"repository": back.received, "requests": front.requests + back.requests}
        result["warm"] = statistics.median(self.first_output(name, way, self.subject.command)[0] for _ in range(3))
        self.lab.equal(f"{way}: the output", output, self.subject.output)
        if way != "overlayfs":
            self.lab.check(f"{way}: no layer is downloaded", downloaded < 1_000_000, f"{downloaded} bytes")
        else:
            self.lab.check("overlayfs: everything is downloaded", downloaded > self.size, f"{downloaded} of {self.size} bytes")
        node.remove(name)
        left = lambda: node.blobs() or node.snapshots(snapshotter=WAYS[way])
        self.lab.check(f"{way}: nothing is left for the next one", within(60, lambda: not left()), left())
        unmount()
        return result

    def warm(self, repeat):
        """{(program, way): seconds to the first output of one new container after another}, in turn, of an image that is there."""
        name, ways = f"127.0.0.1:{self.registry}/bench/science:1", ("overlayfs", "lazy")
        self.record(False)
        _, unmount = self.repository.mount(None, "cache-warm", self.server, self.point)
        for way in ways:
            self.node.pull(name, snapshotter=WAYS[way])
        programs = {"nothing": (NOTHING, ""), "the import": (self.subject.command, self.subject.output)}
        laboratory.settle()
        found = {}
        for number in range(-2, repeat):
            for program, (command, expected) in programs.items():
                for way in ways:
                    seconds, output = self.first_output(name, way, command)
                    self.lab.equal(f"{program}, {way}, again: the output", output, expected)
                    # The first two bring everything into memory.
                    found.setdefault((program, way), []).extend([seconds] if number >= 0 else [])
        self.node.remove(name)
        unmount()
        return {key: statistics.median(times) for key, times in found.items()}

    def first_output(self, name, way, program):
        """(seconds to the first output of a new container, all of its output)."""
        command = ["env", self.node.path, "ctr", "run", "--rm", "--snapshotter", WAYS[way], name, "bench", *program]
        start = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            first = os.read(process.stdout.fileno(), 1 << 16)
            seconds = time.monotonic() - start
            output = (first + process.stdout.read()).decode(errors="replace")
        if process.returncode != 0:
            raise Failure(f"status {process.returncode} from {' '.join(command)}\n{tail(output)}")
        return seconds, output

    def medians(self):
        """{(place, way): figures}."""
        return {key: {what: statistics.median(run[what] for run in runs) for what in runs[0]} for key, runs in self.results.items()}

    def table(self):
        """What was measured, with ratios."""
        yield f"image: {self.layers} layers, {self.size / 1e6:.0f} MB compressed, {self.plain / 1e6:.0f} MB plain; published in {self.published:.0f} s"
        yield f"  {'':22}{'':10}{'downloaded':>12}{'repository':>12}{'requests':>10}{'pull':>9}{'start':>9}{'total':>9}{'again':>9}"
        medians = self.medians()
        for place in dict.fromkeys(place for place, _ in medians):
            for way in WAYS:
                found = medians[place, way]
                sizes = "".join(f"{found[what] / 1e6:>9.3f} MB" for what in ("downloaded", "repository"))
                times = "".join(f"{found[what]:>7.2f} s" for what in ("pull", "start", "total", "warm"))
                yield f"  {place:22}{way:10}{sizes}{found['requests']:>10.0f}{times}"
            ordinary, *others = (medians[place, way] for way in WAYS)
            for way, lazy in zip(list(WAYS)[1:], others):
                moved = ordinary["downloaded"] / (lazy["downloaded"] + lazy["repository"])
                times = "".join(f"{ordinary[what] / lazy[what]:>9.2f}" for what in ("pull", "start", "total", "warm"))
                yield f"  {f'ratio, {way}':32}{ordinary['downloaded'] / lazy['downloaded']:>12.0f}{moved:>12.1f}{'':10}{times}"
        yield "  (repository: what the client fetched; its ratio is of all bytes)"


def warm_table(warm, repeat):
    """What new containers of an image that is there take."""
    yield f"  new containers of an image that is there, in turn, {repeat} of each"
    for program in dict.fromkeys(program for program, _ in warm):
        ordinary, lazy = warm[program, "overlayfs"], warm[program, "lazy"]
        yield f"  {program:22}overlayfs {ordinary:.3f} s   lazy {lazy:.3f} s   ratio {lazy / ordinary:.2f}"


def load(lab, args):
    """What a daemon of its own takes under load, in the words of `examples/load`."""
    program = Path(args.bin) / "examples/load"
    if not program.exists():
        raise Failure(f"{program} is missing: cargo build --release -p snapshotter --example load")
    return json.loads(lab.run(program, "--program", Path(args.bin).resolve() / "cvmfs-snapshotter").stdout)


def load_table(found):
    """The same as text."""
    yield f"snapshotter, {found['clients']} clients at a time, {found['count']} layers"
    rows = {"present": "Prepare of a present layer", "existing": "… that is prepared already", "container": "Prepare of a container"}
    for name, text in rows.items():
        times = found[f"prepare_{name}_ms"]
        allowed = f"     of 5 ms allowed: {times['p99'] / 5:.2f}" if name == "present" else ""
        yield f"  {text:30}p50 {times['p50']:8.2f} ms   p99 {times['p99']:8.2f} ms{allowed}"
    one = found["list_filtered_ms"]
    yield f"  {'List of ' + format(found['snapshots'], ',') + ' snapshots':30}    {found['list_ms']:8.2f} ms"
    yield f"  {'… of the one of a layer':30}p50 {one['p50']:8.2f} ms   p99 {one['p99']:8.2f} ms"
    yield f"  {'memory':30}    {found['rss_before_mb']:8.1f} MB at first, {found['rss_after_mb']:.1f} MB with them, {found['rss_peak_mb']:.1f} MB at most"
    yield f"  {'start with them':30}    {found['restart_ms']:8.2f} ms"


def scenario():
    args = options.parse(__doc__, "cvmfs-publisher, cvmfs-client and cvmfs-snapshotter")
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        figures = load(lab, args)
        print("\n".join(load_table(figures)), flush=True)
        bench = Bench(lab, args)
        link = line.Link(args.rtt, args.megabits)
        said, right = line.check(link)
        lab.check("the line is what it should be", right, said)
        print(said, flush=True)
        bench.measure("loopback", (Relay(bench.registry), Relay(bench.server)), args.repeat)
        bench.measure(str(link), (line.Line(bench.registry, link), line.Line(bench.server, link)), args.repeat)
        repeat = 5 * args.repeat
        warm = bench.warm(repeat)
        print("\n" + "\n".join([*bench.table(), *warm_table(warm, repeat)]))
        if args.json:
            runs = [{"place": place, "way": way, "runs": runs} for (place, way), runs in bench.results.items()]
            again = [{"program": program, "way": way, "seconds": seconds} for (program, way), seconds in warm.items()]
            image = {"layers": bench.layers, "compressed": bench.size, "plain": bench.plain, "published_seconds": bench.published}
            args.json.write_text(json.dumps({"image": image, "line": said, "starts": runs, "warm": again, "load": figures}, indent=1) + "\n")
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
