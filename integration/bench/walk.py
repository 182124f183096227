#!/usr/bin/env python3
"""Catalogs opened and paths walked a second, through the library and through a mount, beside `find` on the same tree on the local disk.

  make bench                                    the last table
  integration/bench/walk.py --layers 80 --files 500

One image of many small layers becomes a directory a layer and a flat root file system: some hundred catalogs. `find` asks for the size of
every path, so that each costs a `stat`. The mount is walked with an empty cache, again after it was mounted anew with the cache as it is,
and once more without a break. Content is not read. Needs root.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
from lab import Failure, Lab, tail
from products import Repository

FQRN = "walk.example.org"


def image(home, layers, files):
    """An OCI layout of `layers` layers with `files` small files each."""
    def make(directory):
        print(f"making an image of {layers} layers with {files} files each (once)", flush=True)
        layout = images.Layout(directory)
        for number in range(layers):
            with layout.layer(level=1) as layer:
                for file in range(files):
                    place = f"opt/{number}/{file % 20}"
                    layer.directory(place)
                    layer.add(f"{place}/file-{file}", content=b"%d %d\n" % (number % 4, file))
        layout.finish("1", Cmd=["/none"])

    return images.cached(home, "walk-image", [layers, files], make)


def find(root):
    """Seconds and paths of one walk over a directory tree."""
    start = time.monotonic()
    done = subprocess.run(["find", root, "-printf", "%s\n"], stdin=subprocess.DEVNULL, capture_output=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise Failure(f"find {root}\n{tail(done.stderr.decode(errors='replace'))}")
    return seconds, done.stdout.count(b"\n")


def copy_names(source, target):
    """The same directories and files below `target`, of the same sizes."""
    subprocess.run(["cp", "--archive", "--no-target-directory", source, target], check=True)


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--layers", type=int, default=80, help="layers of the image")
    parser.add_argument("--files", type=int, default=500, help="files of each layer")
    args = parser.parse_args()
    program = Path(args.bin) / "examples/walk"
    if not program.exists():
        raise Failure(f"{program} is missing: cargo build --release -p cvmfs --example walk")

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        layout = image(lab.home, args.layers, args.files)
        repository = Repository(lab, args.bin, FQRN)
        repository.create()
        lab.run(*repository.publisher, "convert-image", f"oci:{layout}:1", FQRN)
        port = repository.serve()

        library = json.loads(lab.run(program, repository.storage).stdout)
        again = json.loads(lab.run(program, repository.storage).stdout)
        rows = [("library, first time", library["seconds"], library["rows"]), ("library, again", again["seconds"], again["rows"])]

        mount, unmount = repository.mount("mount", "cache", port)
        rows.append(("mount, empty cache", *find(mount)))
        rows.append(("mount, again", *find(mount)))
        unmount()
        mount, unmount = repository.mount("mount-again", "cache", port)
        rows.append(("mount, kept cache", *find(mount)))
        local = lab.path("local")
        copy_names(mount, local)
        unmount()
        find(local)
        floor, paths = find(local)
        lab.equal("the mount shows as many paths as the copy", {count for name, _, count in rows if name.startswith("mount")}, {paths})

    print(f"\nwalk {library['catalogs']} catalogs with {library['rows']} rows, {paths} paths")
    print(f"  {'find, local disk':<22}{floor:8.2f} s{'':22}{paths / floor:>10.0f} paths/s")
    for name, seconds, count in rows:
        print(f"  {name:<22}{seconds:8.2f} s{library['catalogs'] / seconds:>9.0f} catalogs/s{count / seconds:>11.0f} paths/s   of find: {count / seconds / (paths / floor):.2f}")
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
