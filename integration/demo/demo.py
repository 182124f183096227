#!/usr/bin/env python3
"""From a wish list to a running container: publishes an image from a real registry and runs it from the mounted repository, in two ways.

  make demo                                                        Debian's Python with numpy, made here
  make demo IMAGE=docker.io/library/python:3.12-slim CMD='python3 -c "print(1)"'
  make smoke-engines                                               the first one with every result checked

The program runs from the flat image through chroot, and from a kernel overlay of the layer directories with a writable upper one. Times
and bytes stand beside those of a plain pull of the same image from the same registry. Needs root; leaves nothing but a cache in $DEMO_DIR.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import registry
from container import NOBODY, ROOT, Container
from lab import Lab, Relay
from products import Repository

FQRN = "demo.example.org"

# What Apptainer expects in a root file system, added by the publisher to flat images only.
ADDED_TO_FLAT = ["singularity", ".run", ".exec", ".test", ".shell", "environment", ".singularity.d"]
ADDED_DIRECTORIES = ["cvmfs", "dev", "etc", "home", "proc", "root", "srv", "sys", "tmp", "var", "var/tmp"]
EMPTIED_IN_FLAT = ["etc/hosts", "etc/resolv.conf"]


class Demo:
    """One run: an image, the repository it is published in, and what was measured."""

    def __init__(self, lab, repository, image, reference, command):
        self.lab, self.repository, self.image, self.reference, self.command = lab, repository, image, reference, command
        self.relay = None
        self.rows = []

    def serve(self):
        """Starts the repository's server, with a relay in front of it that counts."""
        self.relay = Relay(self.repository.serve())

    def mount(self, name, cache):
        """Mounts the repository through the relay; returns the mount point and what unmounts it."""
        self.relay.reset()
        return self.repository.mount(name, cache, self.relay.port)

    def flat(self, mount):
        """The flat image in a mounted repository."""
        config = self.image.manifest["config"]["digest"].removeprefix("sha256:")
        return Container(mount / ".flat" / config[:2] / config, self.image.environment())

    def overlay(self, mount, name):
        """A kernel overlay of the layer directories, the top one first, with an empty writable directory above them."""
        upper, merged = self.lab.path(f"{name}-upper"), self.lab.path(name)
        self.lab.mount(upper, "mount", "-t", "tmpfs", "none", upper)
        for directory in (upper / "changes", upper / "work"):
            directory.mkdir()
        digests = [layer["digest"].removeprefix("sha256:") for layer in reversed(self.image.layers)]
        lower = ":".join(f".layers/{hex[:2]}/{hex}/layerfs" for hex in dict.fromkeys(digests))  # overlayfs takes no directory twice
        options = f"lowerdir={lower},upperdir={upper}/changes,workdir={upper}/work"
        # From the mount point, so that the names are short: the kernel takes one page of options.
        self.lab.mount(merged, "env", "-C", mount, "mount", "-t", "overlay", "overlay", "-o", options, merged)
        return Container(merged, self.image.environment())

    def measure(self, name, container, start, fetched=None):
        """Times the program to its first output, from `start` with all that it took to get there, and once more; returns its output.

        `fetched` is (bytes, requests); what passed the relay until the program's end if it is None.
        """
        cold, output = container.first_output(self.command, start)
        fetched = fetched or (self.relay.received, self.relay.requests)
        warm, _ = container.first_output(self.command, time.monotonic())
        self.rows.append((name, *fetched, cold, warm))
        return output

    def table(self, unpacked, publish_seconds):
        """Prints what was measured."""
        objects = [file.stat().st_size for file in (self.repository.storage / "data").rglob("*") if file.is_file()]
        print(f"\nimage       {len(self.image.layers)} layers, {megabytes(self.image.size())} compressed, {megabytes(unpacked)} unpacked")
        print(f"repository  {len(objects)} objects, {megabytes(sum(objects))}, published in {publish_seconds:.1f} s\n")
        print(f"{'':24}{'fetched':>12}{'requests':>10}{'first output':>15}{'again':>10}")
        for name, size, requests, cold, warm in self.rows:
            print(f"{name:24}{megabytes(size):>12}{requests:>10}{cold:>13.2f} s{warm:>8.2f} s")
        print("\nFirst output counts from an empty cache and includes the mount; all servers are on this machine.")


def megabytes(size):
    """A size as text."""
    return f"{size / 1e6:.1f} MB"


def say(what):
    """A line of progress, at once."""
    print(what, flush=True)


def scenario():
    args = arguments()
    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        layout, reference = None, args.image
        if not args.image:
            layout = images.python_image(lab.home)
            url = registry.serve(lab)
            registry.push(layout, url, "demo/python", "1")
            reference = f"{url}/demo/python:1"
        image = registry.Image(reference)
        repository = Repository(lab, args.bin, FQRN)
        demo = Demo(lab, repository, image, reference, shlex.split(args.cmd) if args.cmd else image.command())

        say("running from a plain pull")
        start = time.monotonic()
        plain = Container(image.pull_and_unpack(lab.path("plain")), image.environment())
        output = demo.measure("pull and unpack", plain, start, (image.size(), len(image.layers)))
        unpacked = sum(os.lstat(os.path.join(d, f)).st_size for d, _, files in os.walk(plain.root) for f in files)

        say("publishing")
        start = time.monotonic()
        repository.create()
        repository.wish(reference)
        report = repository.convert()
        publish_seconds = time.monotonic() - start
        demo.serve()

        say("running from the flat image")
        start = time.monotonic()
        mount, unmount = demo.mount("mount-flat", "cache-flat")
        flat_output = demo.measure("flat image, chroot", demo.flat(mount), start)
        unmount()

        say("running from the layers")
        start = time.monotonic()
        mount, _ = demo.mount("mount-layers", "cache-layers")
        overlay = demo.overlay(mount, "overlay")
        overlay_output = demo.measure("layers, overlayfs", overlay, start)

        if layout:
            lab.equal("the flat image's program prints what the plain copy's does", flat_output, output)
            lab.equal("the overlay's program prints what the plain copy's does", overlay_output, output)
        if args.check:
            say("checking")
            check_repository(demo, report)
            check_mount(demo, mount)
            check_containers(demo, demo.flat(mount), overlay, images.merged_tree(layout))
        print(f"\n{output.rstrip()}")
        demo.table(unpacked, publish_seconds)
    return lab.verdict() if args.check or lab.failed else 0


def check_repository(demo, report):
    """The report, a sound repository, and a second pass that has nothing to do."""
    lab, repository = demo.lab, demo.repository
    revision = repository.revision()
    lab.equal("the report counts the wish as added", [wish["outcome"] for wish in report["wishes"]], ["added"])
    lab.equal("the report names the published revision", report["revision"], revision)
    lab.equal("one image is one publish", report["revision"] - report["revision_before"], 1)
    lab.equal("the repository is sound", repository.check("--data"), 0)
    start = time.monotonic()
    again = repository.convert()
    seconds = time.monotonic() - start
    lab.equal("a second pass finds the image unchanged", [wish["outcome"] for wish in again["wishes"]], ["unchanged"])
    lab.equal("a second pass publishes nothing", repository.revision(), revision)
    lab.check("a second pass takes little time", seconds < 5, f"{seconds:.1f} s")
    lab.check("the image is listed", "demo/python" in lab.run(*repository.publisher, "images", FQRN).stdout)


def check_mount(demo, mount):
    """The mount as such, the public link, and a client that starts again with its cache."""
    lab = demo.lab
    options = laboratory.mount_options(mount)
    lab.check("the mount is read-only, without set-id programs and devices", {"ro", "nosuid", "nodev"} <= set(options), options)
    public = mount / demo.reference.removeprefix("http://")
    lab.check("the public link is relative", not os.readlink(public).startswith("/"), os.readlink(public))
    lab.equal("the public link leads to the flat image", public.resolve(), demo.flat(mount).root)

    again, unmount = demo.mount("mount-again", "cache-flat")
    demo.flat(again).first_output(demo.command, time.monotonic())
    lab.check("a client that starts again takes all content from its cache", demo.relay.received < 50_000, f"{demo.relay.received} bytes fetched")
    lab.run(demo.repository.client, "umount", again)
    lab.check("cvmfs-client umount unmounts", not laboratory.is_mounted(again))
    unmount()


def check_containers(demo, flat, overlay, expected):
    """What the image says, seen from inside and outside, as root and as an ordinary user."""
    lab = demo.lab
    without = {path: about for path, about in expected.items() if path not in EMPTIED_IN_FLAT}
    compare(lab, "the overlay holds the image's tree", expected, images.found_tree(overlay.root))
    found = images.found_tree(flat.root)
    added = [p for p in found if p not in expected and (p.split("/")[0] in ADDED_TO_FLAT or p in ADDED_DIRECTORIES)]
    lab.check("the flat image holds Apptainer's files", {".singularity.d/actions/run", ".run", "singularity"} <= set(added), added)
    for path in EMPTIED_IN_FLAT:
        lab.equal(f"{path} of the flat image is an empty file", (found.get(path) or {}).get("content", "").split(" ")[0], "0")
    compare(lab, "the flat image holds the image's tree", without, {p: a for p, a in found.items() if p not in added and p not in EMPTIED_IN_FLAT})

    for name, container in (("flat image", flat), ("overlay", overlay)):
        place = container.root / "opt/demo"
        lab.check(f"{name}: a whiteout deletes", not os.path.lexists(place / "deleted") and not os.path.lexists(container.root / "etc/issue"))
        lab.equal(f"{name}: an opaque directory hides what is below", os.listdir(place / "replaced"), ["new"])
        links = [os.stat(place / link) for link in ("link-a", "link-b")]
        lab.equal(f"{name}: hard links share an inode", links[0].st_ino == links[1].st_ino, True)
        lab.equal(f"{name}: hard links are counted", [link.st_nlink for link in links], [2, 2])
        for user, uid in ((ROOT, 0), (NOBODY, 65534)):
            who = f"{name} as user {uid}"
            lines = container.run(*demo.command, user=user).stdout.splitlines()
            lab.equal(f"{who}: the program runs", lines[1:], [f"{images.GREETING} {uid}"])
            look = "import os; print(oct(os.stat('set-user-id').st_mode), os.getxattr('read-any-file', 'security.capability').hex())"
            seen = container.run("python3", "-c", f"import os; os.chdir('/opt/demo'); {look}", user=user).stdout.strip()
            lab.equal(f"{who}: set-user-id bit and capability are seen", seen, f"0o104755 {images.READ_ANY_FILE.hex()}")
        lab.check(f"{name}: modes are enforced", container.run("cat", "/opt/demo/secret", user=NOBODY).returncode != 0)

    lab.equal("the overlay honours a set-user-id program", overlay.run("/opt/demo/set-user-id", "-u", user=NOBODY).stdout, "0\n")
    lab.equal("the overlay honours a file capability", overlay.run("/opt/demo/read-any-file", "/opt/demo/secret", user=NOBODY).stdout, "for root only\n")
    lab.equal("the mount itself honours neither", flat.run("/opt/demo/set-user-id", "-u", user=NOBODY).stdout, "65534\n")
    lines = flat.run("/.singularity.d/actions/run").stdout.splitlines()
    lab.equal("Apptainer's start script runs the program", lines[1:], [f"{images.GREETING} 0"])

    changes = "echo more >> /opt/demo/link-a && rm /opt/demo/symlink && mv /opt/demo/owned /opt/demo/moved && cat /opt/demo/link-a /opt/demo/moved"
    lab.equal("files of the overlay can be changed", overlay.run("bash", "-c", changes).stdout, "two names, one file\nmore\nby user 1000\n")
    lab.check("the published files are as before", (flat.root / "opt/demo/link-a").read_text() == "two names, one file\n")


def compare(lab, name, expected, found):
    """Checks that two trees are equal and shows how they differ."""
    differences = images.differences(expected, found)
    lab.check(name, not differences, "\n    ".join(differences))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--image", help="an image of a registry instead of the one made here")
    parser.add_argument("--cmd", help="what to run instead of the image's own command")
    parser.add_argument("--check", action="store_true", help="check every result; status 1 if one is wrong")
    args = parser.parse_args()
    if args.check and args.image:
        parser.error("--check knows what to expect of its own image only: leave out --image")
    return args


if __name__ == "__main__":
    laboratory.main(scenario)
