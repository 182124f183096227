#!/usr/bin/env python3
"""Our repositories through a reader that is not ours: the crate `cvmfs` of crates.io, beside our own client.

  make test-second-reader

Publishes an image full of oddities (flat and layers), mounts the repository with both readers and compares path, type, mode, owner, time,
link target, size and content. The other reader verifies no signature, knows no extended attributes, lists markers that are hidden, fails on
names that are not UTF-8 and reads SHA-1 manifests only; the image and the comparison leave that out. Repositories of the other two hash
algorithms are compared with the first one through our client. Needs root.
"""

import argparse
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
from lab import Lab
from products import Repository

IMAGE = "local/odd:1"


def odd_image(directory):
    """An OCI layout of two layers with names, sizes, owners, modes and links of every kind that both readers know."""
    noise = random.Random(1)
    layout = images.Layout(directory)
    with layout.layer() as layer:
        layer.directory("sizes")
        for size in (0, 1, 511, 4096, 65537, 1 << 20, 4 << 20, 24_000_000):
            layer.add(f"sizes/noise-{size}", content=noise.randbytes(size))
        layer.add("sizes/zeros", content=bytes(9_000_000))
        layer.directory("names")
        for name in ("a b", "new\nline", "tab\t", "quote\"'", "*?[", "-rf", "$HOME", "d\u00e9j\u00e0", "de\u0301ja\u0300", "\U0001f427", "x" * 255, "..."):
            layer.add(f"names/{name}", content=name.encode())
        layer.add("modes", tarfile.DIRTYPE, mode=0o1777)
        for mode in (0o000, 0o400, 0o644, 0o755, 0o2755, 0o4755, 0o6711):
            layer.add(f"modes/{mode:04o}", content=b"x", mode=mode)
        layer.add("owned", tarfile.DIRTYPE, mode=0o750, owner=(1000, 100))
        layer.add("owned/large", content=b"y", owner=(4_000_000_000, 3_000_000_000))
        layer.add("early", content=b"", mtime=1)
        layer.directory("links")
        layer.add("links/file", content=b"one file\n")
        for name in ("same", "same-too"):
            layer.add(f"links/{name}", tarfile.LNKTYPE, link="links/file")
        for name, target in (("relative", "file"), ("absolute", "/links/file"), ("dangling", "no/where"), ("long", "t" * 1000)):
            layer.add(f"links/{name}", tarfile.SYMTYPE, link=target)
        layer.add("links/pipe", tarfile.FIFOTYPE)
        layer.directory("a/b/c/d/e")
        layer.add("a/b/c/d/e/deep", content=b"deep\n")
        layer.directory("many")
        for number in range(100):
            layer.add(f"many/{number}", content=b"%d\n" % number)
    with layout.layer() as layer:
        layer.directory("sizes")
        layer.add("sizes/.wh.zeros")
        layer.add("sizes/noise-1", content=b"replaced")
        layer.directory("a/b")
        layer.add("a/b/.wh..wh..opq")
        layer.add("a/b/new", content=b"alone\n")
    layout.finish("1", Cmd=["/none"])
    return directory


def tree(root, ours):
    """What a reader shows; of ours that which the other one knows."""
    found = images.found_tree(root)
    for about in found.values():
        about.pop("capability")
    return {path: about for path, about in found.items() if ours or os.path.basename(path) != ".cvmfscatalog"}


def without_records(tree):
    """What an image brought, and not when and how it was published."""
    return {path: about for path, about in tree.items() if path.startswith((".flat", ".layers")) and "/.metadata" not in path}


def compare(lab, name, expected, found):
    differences = images.differences(expected, found)
    lab.check(name, not differences, "\n    ".join(differences))


def publish(lab, binaries, algorithm, layout):
    """A sound repository with the image."""
    repository = Repository(lab, binaries, f"{algorithm}.example.org")
    repository.create("--hash", algorithm)
    lab.run(*repository.publisher, "convert-image", f"oci:{layout}:1", repository.fqrn)
    lab.equal(f"the {algorithm} repository is sound", repository.check("--data"), 0)
    return repository


def scenario():
    args = arguments()
    with Lab("target/second-reader") as lab:
        layout = odd_image(lab.path("odd"))
        trees = {}
        for algorithm in ("sha1", "rmd160", "shake128"):
            repository = publish(lab, args.bin, algorithm, layout)
            port = repository.serve()
            mount, _ = repository.mount(f"{algorithm}-ours", f"{algorithm}-cache", port)
            trees[algorithm] = tree(mount, ours=True)
            lab.check(f"the image is in the {algorithm} repository", os.path.islink(mount / IMAGE), IMAGE)
            names = {path.name for path in (repository.storage / "data").glob("??/*")}
            suffix = "" if algorithm == "sha1" else f"-{algorithm}"
            lab.check(f"objects of the {algorithm} repository are named by it", all(("-" in name, suffix in name) == (bool(suffix), True) for name in names))
            lab.check(f"the {algorithm} repository has chunks", any(name.endswith("P") for name in names))
            if algorithm == "sha1":
                other = read_with_other(lab, args.reader, repository, port)
                compare(lab, "the other reader shows what our client shows", trees["sha1"], other)
                kinds = {kind: sum(about["type"] == kind for about in other.values()) for kind in "-dlpc"}
        for algorithm in ("rmd160", "shake128"):
            compare(lab, f"the {algorithm} repository shows the same tree", without_records(trees["sha1"]), without_records(trees[algorithm]))
        what = ", ".join(f"{number} {name}" for number, name in zip(kinds.values(), ("files", "directories", "links", "pipes", "devices")))
        print(f"compared {len(other)} paths through both readers: {what}")
    return lab.verdict()


def read_with_other(lab, reader, repository, port):
    """The tree that the other reader shows."""
    point, cache = lab.path("theirs"), lab.path("cache-theirs")
    started = time.monotonic()
    # It asks for the dates of a replica, and again with growing pauses, three quarters of a minute in all, when there are none; and it reads
    # all certificates of the system for every request unless told of one.
    for date in (".cvmfs_last_snapshot", ".cvmfs_is_snapshotting"):
        (repository.storage / date).write_text("never\n")
    url = f"http://127.0.0.1:{port}/cvmfs/{repository.fqrn}"
    command = ["env", f"SSL_CERT_FILE={repository.keys / repository.fqrn}.crt", reader, url, point, cache]
    process = lab.start("second-reader", command, lambda: laboratory.is_mounted(point), "does not mount")
    ready = time.monotonic() - started
    found = tree(point, ours=False)
    print(f"the other reader was ready after {ready:.1f} s and was read in {time.monotonic() - started - ready:.1f} s")
    subprocess.run(["umount", "--lazy", point], check=True)
    process.wait(15)
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--reader", default="target/second-reader/debug/second-reader", help="the other reader's program")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario)
