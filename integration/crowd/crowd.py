#!/usr/bin/env python3
"""Many at once: containers of one image on a node, and nodes behind one cache.

  make test-crowd
  integration/crowd/crowd.py --bin target/debug --containers 1 10 --nodes 4

One containerd with the snapshotter starts 1, 10 and 100 containers of an image at the same moment, each time with an empty cache: each
object of the repository leaves the server at most once. Then nodes with an empty cache each, in a network of their own, read the image at
the same moment through one real Squid: no node asks for an object twice, and the server is asked once for all of them. The configuration
files are those of `containerd/` and `proxies/`. Prints seconds beside those of one container and one node. Needs root.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for place in ("integration", "integration/proxies"):
    sys.path.insert(0, str(ROOT / place))
import images
import lab as laboratory
import registry
from containerd import ENGINES, FQRN, Node, within
from lab import Failure, Lab, is_mounted
from products import Repository
from proxies import OBJECT, nginx, squid

HOME = ROOT / "target/crowd"
APPLETS = ("cat", "sh", "wc", "true")

# Files of the image, in three directories of a layer each, and how large they are.
FILES, LARGEST = 120, 40_000
COMMAND = "cat /data/*/* | wc -c"

# The network of the site: the cache, and nodes behind it.
NETWORK = "10.77.0"


def write_image(directory, busybox):
    """An image of four layers: programs, and files that a container reads all of."""
    layout, content = images.Layout(directory), random.Random(7)
    with layout.layer() as layer:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            layer.directory(name)
        layer.add("bin/busybox", content=busybox.read_bytes(), mode=0o755)
        for applet in APPLETS:
            layer.add(f"bin/{applet}", images.tarfile.SYMTYPE, link="busybox")
        layer.add("etc/passwd", content=b"root:x:0:0:root:/root:/bin/sh\n")
    size = 0
    for part in range(3):
        with layout.layer() as layer:
            layer.directory("data")
            layer.directory(f"data/{part}")
            for number in range(FILES // 3):
                data = content.randbytes(content.randrange(1000, LARGEST))
                layer.add(f"data/{part}/{number}", content=data)
                size += len(data)
    layout.finish("1", Env=["PATH=/bin"], Cmd=["/bin/sh", "-c", COMMAND], WorkingDir="/")
    (directory / "size").write_text(str(size))


class Site:
    """The image in a registry and in a repository, and the server of the repository."""

    def __init__(self, lab, args):
        busybox = ENGINES / "bookworm/bin/busybox"
        if not busybox.exists():
            raise Failure(f"{busybox} is missing: integration/setup engines brings it")
        layout = images.cached(lab.home, "image", Path(__file__).read_text(), lambda directory: write_image(directory, busybox))
        self.lab, self.size = lab, (layout / "size").read_text().strip()
        url = registry.serve(lab)
        registry.push(layout, url, "lab/crowd", "1")
        self.image = f"{url.removeprefix('http://')}/lab/crowd:1"
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create()
        lab.run(*self.repository.publisher, "convert-image", f"{url}/lab/crowd:1", FQRN)
        root = lab.path("server")
        (root / "cvmfs").mkdir()
        (root / "cvmfs" / FQRN).symlink_to(self.repository.storage)
        self.server = nginx(lab, "nginx", root).start()

    def requests(self):
        """{object: how often the server was asked for it} since the last call."""
        lines = (line.split() for line in self.server.log.new())
        return collections.Counter(line[1] for line in lines if len(line) > 2 and line[0] == "GET" and OBJECT.search(line[1]))


def repeated(counts):
    """What was asked for more than once, for a message."""
    return [f"{count} times {what}" for what, count in counts.items() if count > 1]


def at_once(count, work):
    """`work(number)` in as many threads as there are numbers; the seconds that all took, and the results."""
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        results = list(pool.map(work, range(count)))
    return time.monotonic() - start, results


def containers(site, node, point, count):
    """Starts containers on a node that has nothing of the image; returns the seconds until the last one has ended."""
    lab = site.lab
    site.requests()
    _, unmount = site.repository.mount(None, f"cache-{count}", site.server.port, point)
    node.pull(site.image)
    # What is started is the work of containerd and the machine; what is counted is what the repository is asked for.
    seconds, outputs = at_once(count, lambda number: node.run(site.image, f"c{count}-{number}", "sh", "-c", COMMAND).stdout.strip())
    lab.equal(f"{count} containers: each has read everything", collections.Counter(outputs), {site.size: count})
    requests = site.requests()
    lab.check(f"{count} containers: objects of all files were fetched", len(requests) > FILES, f"{len(requests)} objects")
    lab.check(f"{count} containers: no object was fetched twice", not repeated(requests), "\n    ".join(repeated(requests)))
    status = json.loads(lab.run(site.repository.client, "status", "--json", point).stdout)
    asked = status["requests"].get("getxattr", 0)
    lab.check(f"{count} containers: they stand on the mount that is asked for no attributes", status["bare"] and asked < FILES, f"{asked} questions, bare mount {status['bare']}")
    node.remove(site.image)
    lab.check(f"{count} containers: nothing is left", within(60, lambda: not node.snapshots() and not node.leftovers()), node.leftovers())
    unmount()
    return seconds, len(requests)


class Network:
    """Networks for nodes, joined by a bridge; the cache listens there."""

    def __init__(self, lab, count):
        self.lab = lab
        run = lambda *words: lab.run("ip", *words)
        run("link", "add", "crowd", "type", "bridge")
        run("address", "add", f"{NETWORK}.1/24", "dev", "crowd")
        run("link", "set", "crowd", "up")
        for number in range(count):
            name = f"crowd-{number}"
            run("netns", "add", name)
            lab.undo(lab.run, "ip", "netns", "delete", name)
            run("link", "add", f"out-{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("link", "set", f"out-{number}", "master", "crowd", "up")
            run("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            run("-n", name, "link", "set", "eth0", "up")
            run("-n", name, "link", "set", "lo", "up")

    def address(self, number):
        return f"{NETWORK}.{number + 10}"

    def inside(self, number, *command):
        """A command line in the network of a node, and with the mounts of all."""
        return ["nsenter", f"--net=/run/netns/crowd-{number}", *command]


def nodes(site, network, count):
    """Nodes with empty caches read the image through an empty Squid; returns the seconds until the last one has."""
    lab, repository = site.lab, site.repository
    cache = squid(lab, f"squid-{count}", address="0.0.0.0", workers=None).start()
    site.requests()
    points = [lab.path(f"node-{count}-{number}") for number in range(count)]
    for number, point in enumerate(points):
        # The server is where the cache is: a node by itself does not reach it.
        url, proxy = f"http://127.0.0.1:{site.server.port}/cvmfs/@fqrn@", f"http://{NETWORK}.1:{cache.port}"
        options = ["--server-url", url, "--proxy", proxy, "--public-key", repository.keys / f"{FQRN}.pub"]
        options += ["--cache", lab.dir / f"cache-{count}-{number}"]
        lab.mount(point, *network.inside(number, repository.client, "mount", FQRN, point, *options))
    flat = next(points[0].glob("127.0.0.1:*/lab/crowd:1")).relative_to(points[0])
    read = lambda number: lab.run("sh", "-c", f'cat "$0"/data/*/* | wc -c', points[number] / flat).stdout.strip()
    seconds, outputs = at_once(count, read)
    lab.equal(f"{count} nodes: each has read everything", collections.Counter(outputs), {site.size: count})
    lines = (line.split() for line in cache.log.new())
    asked = collections.Counter((line[2], line[6]) for line in lines if len(line) > 6 and OBJECT.search(line[6]))
    by_node = collections.Counter(node for node, _ in asked)
    lab.equal(f"{count} nodes: all came through the cache", set(by_node), {network.address(number) for number in range(count)})
    lab.check(f"{count} nodes: each has fetched all files", min(by_node.values()) > FILES, by_node)
    lab.check(f"{count} nodes: none asked twice for an object", not repeated(asked), "\n    ".join(repeated(asked)[:5]))
    requests = site.requests()
    lab.check(f"{count} nodes: the server was asked once for each object", not repeated(requests), "\n    ".join(repeated(requests)[:5]))
    for point in points:
        lab.run(repository.client, "umount", point)
        lab.check(f"{count} nodes: {point.name} is unmounted", within(30, lambda: not is_mounted(point)))
    cache.stop()
    return seconds, sum(asked.values()), sum(requests.values())


def scenario():
    args = arguments()
    with Lab(HOME) as lab:
        site = Site(lab, args)
        node, point = Node(lab, "2", args.bin, "none"), Path("/cvmfs") / FQRN
        point.mkdir()
        node.snapshotter.start()
        node.containerd.start()
        lab.mount("/var/spool/squid", "mount", "-t", "tmpfs", "-o", "mode=755", "none", "/var/spool/squid")
        figures = {count: containers(site, node, point, count) for count in args.containers}
        network = Network(lab, args.nodes)
        sites = {count: nodes(site, network, count) for count in sorted({1, args.nodes})}
        first = figures[args.containers[0]][0]
        for count, (seconds, objects) in figures.items():
            # What they would take one after another, divided by the cores.
            share = first * count / args.containers[0] / os.cpu_count()
            of_share = f", {seconds / share:4.2f} of the cores' share" if count > args.containers[0] else ""
            print(f"{count:4} containers at once  {seconds:7.2f} s  {seconds / first:6.1f} times {args.containers[0]}{of_share}  {objects} objects, each once")
        for count, (seconds, asked, requests) in sites.items():
            print(f"{count:4} nodes at once       {seconds:7.2f} s  {seconds / sites[1][0]:6.1f} times 1  {asked} requests to the cache, {requests} to the server")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release", help="directory of cvmfs-publisher, cvmfs-client and cvmfs-snapshotter")
    parser.add_argument("--containers", type=int, nargs="+", default=[1, 10, 100], help="how many containers start at the same moment")
    parser.add_argument("--nodes", type=int, default=20, help="nodes behind the cache")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
