#!/usr/bin/env python3
"""A container on the layers of its image beside one on its flat root: seconds of a start, for images of 1, 12 and 60 layers.

  make bench-flat [REPEAT=3]

The same files in images of 1, 12 and 60 layers. A start is an overlay of the layer directories, or of the flat alone, and a program in it
that looks for names which are not there and reads 120 files in 12 directories: with an empty cache behind a line of 20 ms and 100 Mbit/s, and
again, mounted anew with what the cache has then. This is what a snapshotter would gain that gives containers the flat (`prefer_flat`); what
speaks against it is in doc/SNAPSHOTTER.md. Needs root.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import line
from containerd import ENGINES
from lab import Failure, Lab, tail
from products import Repository

FQRN = "flat.example.org"
LAYERS = (1, 12, 60)
FILES, DIRECTORIES = 120, 12
FORMS = ("layers", "flat")
COMMAND = "for n in 0 1 2 3 4 5 6 7 8 9; do for d in bin lib usr/lib opt/lib data; do [ -e /$d/none$n ] && echo found; done; done; cat /data/*/* | wc -c"


def write_image(directory, count):
    """An image of `count` layers; the files are dealt to them."""
    layout, content = images.Layout(directory), random.Random(5)
    files = [(f"data/{number % DIRECTORIES}/{number}", content.randbytes(4000)) for number in range(FILES)]
    for number in range(count):
        with layout.layer() as layer:
            if number == 0:
                for name in ("bin", "dev", "etc", "lib", "proc", "tmp", "usr", "usr/lib"):
                    layer.directory(name)
                layer.add("bin/busybox", content=(ENGINES / "bookworm/bin/busybox").read_bytes(), mode=0o755)
                for applet in ("sh", "cat", "wc"):
                    layer.add(f"bin/{applet}", images.tarfile.SYMTYPE, link="busybox")
            mine = files[number::count]
            for name in sorted({"data", *(str(Path(path).parent) for path, _ in mine)}):
                layer.directory(name)
            for path, data in mine:
                layer.add(path, content=data)
            layer.add(f"etc/layer-{number}", content=b"")
    layout.finish("1", Env=["PATH=/bin"], Cmd=["sh"], WorkingDir="/")


class Bench:
    """A repository with the images, behind a line."""

    def __init__(self, lab, args):
        self.lab = lab
        self.repository = Repository(lab, args.bin, FQRN)
        self.repository.create()
        self.layers = {}
        for count in LAYERS:
            layout = lab.dir / f"image-{count}"
            write_image(layout, count)
            lab.run(*self.repository.publisher, "convert-image", f"oci:{layout}:1", FQRN, "--as", f"bench/layers:{count}")
            manifest, _ = images.read_layout(layout)
            self.layers[count] = [layer["digest"].removeprefix("sha256:") for layer in reversed(manifest["layers"])]
        self.port, self.point, self.mounts = self.repository.serve(), lab.path("mount"), 0
        self.root = lab.path("root")

    def lowers(self, form, count):
        """The directories of an overlay, the top one first."""
        if form == "flat":
            return [(self.point / f"bench/layers:{count}").resolve()]
        return [self.point / ".layers" / digest[:2] / digest / "layerfs" for digest in self.layers[count]]

    def start(self, form, count, port, cache):
        """Seconds of one start."""
        _, unmount = self.repository.mount(None, cache, port, self.point, "-o", "CVMFS_PREFETCH_LEARN=no")
        changes = self.lab.path(f"changes-{self.mounts}")
        self.mounts += 1
        self.lab.run("mount", "-t", "tmpfs", "none", changes)
        begin = time.monotonic()
        # As containerd does with many layers: links with short names.
        for name in ("upper", "work", "l"):
            (changes / name).mkdir()
        lowers = self.lowers(form, count)
        for number, lower in enumerate(lowers):
            (changes / "l" / str(number)).symlink_to(lower)
        options = f"lowerdir={':'.join(f'l/{number}' for number in range(len(lowers)))},upperdir=upper,workdir=work"
        self.lab.run("mount", "-t", "overlay", "overlay", "-o", options, self.root, cwd=changes)
        command = ["chroot", self.root, "/bin/sh", "-c", COMMAND]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={"PATH": "/bin:/usr/sbin:/usr/bin:/sbin"})
        seconds = time.monotonic() - begin
        self.lab.run("umount", self.root)
        self.lab.run("umount", changes)
        unmount()
        if done.returncode != 0 or done.stdout.strip() != str(FILES * 4000):
            raise Failure(f"status {done.returncode}\n{tail(done.stdout)}{tail(done.stderr)}")
        return seconds

    def measure(self, relay, repeat):
        """{(layers, form): ([cold], [again])}, each in turn."""
        results = {(count, form): ([], []) for count in LAYERS for form in FORMS}
        for number in range(repeat):
            for (count, form), (cold, again) in results.items():
                cache = f"cache-{count}-{form}-{number}"
                cold.append(self.start(form, count, relay.port, cache))
                again.append(self.start(form, count, relay.port, cache))
        return results


def scenario():
    args = arguments()
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        bench = Bench(lab, args)
        link = line.Link(args.rtt, args.megabits)
        print(line.check(link)[0], flush=True)
        results = bench.measure(line.Line(bench.port, link), args.repeat)
        median = {key: [statistics.median(runs) for runs in both] for key, both in results.items()}
        print(f"  {'':10}{'layers, cold':>14}{'flat, cold':>12}{'ratio':>8}{'layers, again':>15}{'flat, again':>13}{'ratio':>8}")
        for count in LAYERS:
            (cold, again), (flat_cold, flat_again) = median[count, "layers"], median[count, "flat"]
            print(
                f"  {count:>3} layers{cold:>12.2f} s{flat_cold:>10.2f} s{cold / flat_cold:>8.2f}"
                f"{again:>13.2f} s{flat_again:>11.2f} s{again / flat_again:>8.2f}"
            )
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--rtt", type=float, default=20, help="round-trip time of the line in ms")
    parser.add_argument("--megabits", type=float, default=100, help="its bandwidth in Mbit/s")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario)
