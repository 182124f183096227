"""What scenarios share whose engines run a directory: published images at their place, what a flat image holds, and steps for a table."""

import json
import os
import signal
from pathlib import Path

import images
import registry
from containerd import processes, within
from lab import Failure
from layers import MOUNTED
from products import Repository

# What the publisher adds to an image, if it isn't there.
ADDED = (".singularity.d", "singularity", ".run", ".exec", ".test", ".shell", "environment")
ADDED_PLACES = ("cvmfs", "dev", "etc", "etc/hosts", "etc/resolv.conf", "home", "proc", "root", "srv", "sys", "tmp", "var", "var/tmp")


class Site:
    """A registry and what is published from it: `repositories` has the options of `convert` for each repository."""

    def __init__(self, lab, binaries, layouts, repositories):
        self.lab = lab
        self.url = registry.serve(lab)
        self.layouts, self.repositories, self.said, self.ports, self._unmount = layouts, {}, {}, {}, {}
        for name, layout in layouts.items():
            registry.push(layout, self.url, f"lab/{name}", "1")
        for fqrn, options in repositories.items():
            self.repositories[fqrn] = repository = Repository(lab, binaries, fqrn)
            repository.create("--ttl", "5")
            repository.wish(*(f"{self.url}/lab/{name}:1" for name in layouts))
            self.publish(fqrn, *options)
            self.ports[fqrn] = repository.serve()

    def publish(self, fqrn, *options):
        """One pass over the wish list; what it says goes to `said`, its report is returned."""
        done = self.lab.run(*self.repositories[fqrn].convert_command(), *options)
        self.said[fqrn] = self.said.get(fqrn, "") + done.stderr
        return json.loads(done.stdout)

    def reference(self, name):
        """An image as engines call it."""
        return f"{self.url.removeprefix('http://')}/lab/{name}:1"

    def mount(self, fqrn, cache="cache"):
        """Mounts a repository below /cvmfs, which has to be the lab's."""
        point = Path("/cvmfs") / fqrn
        point.mkdir(exist_ok=True)
        _, self._unmount[fqrn] = self.repositories[fqrn].mount(None, f"{cache}-{fqrn}", self.ports[fqrn], point)

    def unmount(self, fqrn):
        """Unmounts a repository."""
        self._unmount[fqrn]()

    def kill_client(self, fqrn):
        """Kills what serves the mount of a repository, and takes the dead mount away; whether there was anything."""
        found = [pid for pid, command in processes() if command[0].endswith("cvmfs-client") and fqrn in command]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        self.lab.run("umount", "--lazy", f"/cvmfs/{fqrn}")
        return bool(found)

    def config(self, fqrn, name):
        """The inner config of an image, as the repository records it."""
        return json.loads((Path("/cvmfs") / fqrn / ".metadata" / self.reference(name) / "config.json").read_text())["config"]

    def image(self, fqrn, name):
        """The path by which users name an image."""
        return Path("/cvmfs") / fqrn / self.reference(name)


def differences(layout, root, mounted=(), readable=False, ignored=()):
    """How a running root directory differs from what the layers of its image say, in few lines.

    `mounted` is what the engine puts over it; `readable` if the image was published so that everybody can read all of it; `ignored` are
    parts of the descriptions.
    """
    places = {".", *MOUNTED, *mounted}
    expected = images.merged_tree(layout)
    for path, about in expected.items() if readable else ():
        bits = {"d": 0o555, "-": 0o444}.get(about["type"], 0)
        expected[path] = about | {"mode": about["mode"] and oct(int(about["mode"], 8) | bits)}
    added = lambda path: path not in expected and (path.split("/")[0] in ADDED or path in ADDED_PLACES)
    found = {path: about for path, about in _tree(root, places).items() if not added(path)}
    expected = {path: about for path, about in expected.items() if not places & {path, *map(str, Path(path).parents)} - {"."}}
    said = lambda tree: {path: {key: value for key, value in about.items() if key not in ignored} for path, about in tree.items()}
    return images.differences(said(expected), said(found))


def _tree(root, places):
    """What `images.found_tree` says of a root directory, but for these places and all below them."""
    tree = {}
    for directory, directories, files in os.walk(root):
        name = os.path.relpath(directory, root)
        names = {os.path.normpath(f"{name}/{entry}"): entry for entry in directories + files}
        directories[:] = [entry for path, entry in names.items() if path not in places and entry in directories]
        tree |= {path: images.describe_path(f"{root}/{path}") for path in names if path not in places}
    return tree


def process_of(command):
    """The ID of the process that runs a command, or will in a moment."""
    found = lambda: [pid for pid, words in processes() if words == command]
    within(30, found)
    if len(found()) != 1:
        raise Failure(f"{len(found())} processes run {command}")
    return found()[0]


def end(program):
    """Ends all servers of a program."""
    found = [pid for pid, command in processes() if Path(command[0]).name == program and "serve" in command]
    if not found:
        raise Failure(f"no {program} is running")
    for pid in found:
        os.kill(pid, signal.SIGTERM)
    if not within(30, lambda: not [pid for pid, _ in processes() if pid in found]):
        raise Failure(f"{program} does not end")
