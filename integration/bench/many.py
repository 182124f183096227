#!/usr/bin/env python3
"""What thousands of images cost: the first pass, a pass with nothing new, and one more large image beside them and alone.

  make bench-many [IMAGES=5000 MEGABYTES=400]

A real docker-registry holds synthetic images that share their lower layers; some have three platforms. Requests are counted by a relay before
it, catalogs and bytes in the storage, and what a client fetches again by a relay before the repository's server.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import registry
from convert import measured
from lab import Lab, Relay
from products import Repository

OCI = "application/vnd.oci.image"
TAGS = 10  # of each name
BASES, MIDDLES, PLATFORMS = 40, 200, ["amd64", "arm64", "ppc64le"]


class Shelf:
    """Images put where docker-registry keeps them, without asking it: thousands in seconds."""

    def __init__(self, directory):
        self.top, self.written = directory / "data/docker/registry/v2", set()

    def blob(self, content):
        """Stores bytes; returns their digest."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self.written:
            place = self.top / "blobs/sha256" / digest[:2] / digest
            place.mkdir(parents=True)
            (place / "data").write_bytes(content)
            self.written.add(digest)
        return f"sha256:{digest}"

    def link(self, *place, digest):
        """Says that a repository has something."""
        place = self.top.joinpath("repositories", *place)
        place.mkdir(parents=True, exist_ok=True)
        (place / "link").write_text(digest)

    def document(self, name, content, tag=None):
        """Stores a manifest or an index; returns its descriptor."""
        body = json.dumps(content).encode()
        digest = self.blob(body)
        bare = digest.removeprefix("sha256:")
        self.link(name, "_manifests/revisions/sha256", bare, digest=digest)
        if tag:
            self.link(name, "_manifests/tags", tag, "current", digest=digest)
            self.link(name, "_manifests/tags", tag, "index/sha256", bare, digest=digest)
        return {"mediaType": content["mediaType"], "digest": digest, "size": len(body)}

    def layer(self, name, directory, files, size, dice):
        """A layer with so many files of about so many bytes; returns its descriptor and diff ID."""
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in (directory.split("/")[0], directory):
                member = tarfile.TarInfo(path)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            for number in range(files):
                content = dice.randbytes(dice.randrange(size // 2, size * 3 // 2))
                member = tarfile.TarInfo(f"{directory}/{number:03}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        packed = gzip.compress(plain.getvalue(), 1, mtime=0)
        digest = self.blob(packed)
        diff_id = f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"
        return {"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": digest, "size": len(packed)}, diff_id

    def image(self, name, layers, architecture, tag=None):
        """An image of layers; returns its descriptor."""
        config = {"architecture": architecture, "os": "linux", "config": {"Cmd": ["/none"], "Env": [f"NAME={name}"]}}
        config["rootfs"] = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
        body = json.dumps(config).encode()
        descriptor = {"mediaType": f"{OCI}.config.v1+json", "digest": self.blob(body), "size": len(body)}
        descriptors = [descriptor for descriptor, _ in layers]
        for digest in [descriptor["digest"], *(one["digest"] for one in descriptors)]:
            self.link(name, "_layers/sha256", digest.removeprefix("sha256:"), digest=digest)
        manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": descriptor, "layers": descriptors}
        return self.document(name, manifest, tag) | {"platform": {"os": "linux", "architecture": architecture}}


def fill(shelf, count, several):
    """So many images below lab/, every `several`th for three platforms; returns their names with tags."""
    dice, names = random.Random(1), []
    bases = [shelf.layer("", f"base/{n}", 50, 2000, dice) for n in range(BASES)]
    middles = [shelf.layer("", f"usr/{n}", 20, 2000, dice) for n in range(MIDDLES)]
    for number in range(count):
        name, tag = f"lab/group-{number % 40:02}/tool-{number // TAGS:04}", str(number % TAGS)
        below = [dice.choice(bases), dice.choice(middles)]
        if number % several == 0:
            entries = [shelf.image(name, [*below, shelf.layer(name, "opt/own", 5, 1000, dice)], a) for a in PLATFORMS]
            shelf.document(name, {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": entries}, tag)
        else:
            shelf.image(name, [*below, shelf.layer(name, "opt/own", 5, 1000, dice)], "amd64", tag)
        names.append(f"{name}:{tag}")
    return names


def catalogs(storage):
    """Stored catalogs and their bytes."""
    return {path: path.stat().st_size for path in (storage / "data").glob("??/*C")}


def everything(storage):
    """Bytes of all objects."""
    return sum(path.stat().st_size for path in (storage / "data").glob("??/*"))


class Reader:
    """A client that keeps its cache between mounts; what it fetches is counted."""

    def __init__(self, lab, repository, name):
        self.lab, self.repository, self.name = lab, repository, name
        self.relay = Relay(repository.serve())

    def reads(self, path):
        """Mounts, lists an image's directory and unmounts; returns (requests, bytes)."""
        self.relay.reset()
        point, unmount = self.repository.mount(self.name, f"{self.name}-cache", self.relay.port)
        listed = sorted(os.listdir(point / path))
        unmount()
        point.rmdir()
        self.lab.check(f"{path} is there", "opt" in listed, listed)
        return self.relay.requests, self.relay.received


def one_more(lab, repository, reference, old):
    """Publishes one more image; what that took, wrote, and made a client of the image `old` fetch again."""
    reader = Reader(lab, repository, f"reader-{repository.fqrn}") if old else None
    if reader:
        reader.reads(old)
    before, bytes_before = catalogs(repository.storage), everything(repository.storage)
    wall, _, peak = measured([*repository.publisher, "convert-image", reference, repository.fqrn], lab.dir / "one.log")
    after = catalogs(repository.storage)
    new = {path: size for path, size in after.items() if path not in before}
    figures = {"seconds": wall, "peak": peak, "catalogs": len(new), "catalog_bytes": sum(new.values())}
    figures["stored"] = everything(repository.storage) - bytes_before
    figures["again"] = reader.reads(old) if reader else (0, 0)
    return figures


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--images", type=int, default=5000, help="how many images")
    parser.add_argument("--megabytes", type=int, default=400, help="plain size of the one more image")
    parser.add_argument("--several", type=int, default=20, help="every so many have three platforms")
    args = parser.parse_args()
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        large = images.generated_image(lab.home, args.megabytes, args.megabytes // 4, files=8000)
        server = registry.Registry(lab)
        begun = time.monotonic()
        names = fill(Shelf(lab.dir / "registry"), args.images, args.several)
        print(f"{args.images} images made in {time.monotonic() - begun:.0f} s", flush=True)
        registry.push(large, server.url, "lab/large", "1")
        relay = Relay(int(server.url.rsplit(":", 1)[1]))
        url = f"http://127.0.0.1:{relay.port}"

        full, empty = (Repository(lab, args.bin, f"{name}.example.org") for name in ("full", "empty"))
        for repository in (full, empty):
            repository.create()
        full.wish(*(f"{url}/{name}" for name in names))
        first, _, first_peak = measured(full.convert_command(), lab.dir / "first.log")
        first_requests, revisions = relay.requests, full.revision()
        published = json.loads(lab.run(*full.publisher, "--json", "images", full.fqrn).stdout)
        lab.equal("all images are published", len(published), args.images)

        relay.reset()
        steady, _, steady_peak = measured(full.convert_command(), lab.dir / "steady.log")
        steady_requests = relay.requests
        lab.equal("nothing new is nothing published", full.revision(), revisions)

        old = f"{url.removeprefix('http://')}/{names[0]}"
        beside, alone = one_more(lab, full, f"{url}/lab/large:1", old), one_more(lab, empty, f"{url}/lab/large:1", None)
        began = time.monotonic()
        lab.equal("the repository is sound", full.check(), 0)
        checked = time.monotonic() - began
        root = full.storage / "data" / next(
            f"{line[1:3]}/{line[3:]}C" for line in (full.storage / ".cvmfspublished").read_text(errors="replace").splitlines() if line.startswith("C")
        )

        print(f"\n{args.images} images, {BASES + MIDDLES + len(names)} layers and more for several platforms")
        print(f"  first pass   {first:8.1f} s  {first_requests:6} requests  {revisions - 1} publishes  {first_peak / 1e6:.0f} MB  {1000 * first / args.images:.1f} ms an image")
        print(f"  steady pass  {steady:8.1f} s  {steady_requests:6} requests  {steady_requests / args.images:.2f} an image  {steady_peak / 1e6:.0f} MB")
        print(f"  check        {checked:8.1f} s;  root catalog {root.stat().st_size / 1e3:.1f} kB stored")
        print(f"one more image of {args.megabytes} MB, beside them and alone")
        for word, unit, scale in (("seconds", "s", 1), ("catalogs", "", 1), ("catalog_bytes", "kB", 1e3), ("stored", "MB", 1e6), ("peak", "MB", 1e6)):
            print(f"  {word:14} {beside[word] / scale:10.1f} {unit:2} {alone[word] / scale:10.1f} {unit:2}   ratio {beside[word] / alone[word]:.2f}")
        print(f"  a client of another image fetches again {beside['again'][1] / 1e3:.1f} kB in {beside['again'][0]} requests")
        shutil.rmtree(lab.dir / "registry", ignore_errors=True)
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
