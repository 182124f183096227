#!/usr/bin/env python3
"""containerd 1.6, 1.7 and 2 with images from a repository: pull, run, commit, remove, restart, and what the kubelet does.

  make test-containerd
  integration/containerd/containerd.py --bin target/debug --version 2 --smoke

Images of 1, 12 and 60 layers go from a real registry into a repository, the repository is mounted below /cvmfs, and engines start containers
whose layers are not downloaded: that is counted, at the registry and in containerd's own store. What a container sees is compared with
what the engine's own overlayfs snapshotter makes of the same image, and with the layers themselves. The configuration files beside this one
are those that an admin would install. Needs root; prints a line for each step and a table at the end.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "integration"))
import hostile
import images
import lab as laboratory
import mirrored
import registry
from case import Case, Site
from containerd import FQRN, SNAPSHOTTER, STATE, VERSIONS, processes, within
from lab import Lab
from layers import container_tree
from table import Table

HOME = ROOT / "target/containerd"

# Lines of the configuration files that are comments there.
ANNOTATIONS = "disable_snapshot_annotations = false"
MORE_ANNOTATIONS = 'enable_remote_snapshot_annotations = "true"'
FILL_MISSING = 'fill_missing = "registry"'


# The steps


def overlayfs(case):
    """The engine's own snapshotter: what the others are compared with."""
    with case.step("overlayfs, to compare with") as cell:
        cell.text = "downloads"
        for name in ("one", "twelve", "sixty"):
            case.node.pull(case.reference(name), snapshotter="overlayfs")
            container = case.container(name, "overlayfs")
            case.reference_trees[name] = container_tree(container.root())
            container.remove()
            case.local(name)


def ctr_pull(case):
    """`ctr images pull` at default settings: lazy since containerd 2, an ordinary pull before."""
    with case.step("ctr images pull") as cell:
        case.pull("twelve", "ctr")
        if case.version == "2":
            cell.text = "lazy"
            case.lazy("twelve")
        else:
            cell.text = "downloads"
            case.local("twelve")
        container = case.container("twelve")
        case.right("twelve", container)
        case.rights(container)


def ctr_pull_local(case):
    """`ctr images pull --local` of containerd 2: the client does it and tells the snapshotter nothing."""
    if case.version == "2":
        with case.step("ctr images pull --local") as cell:
            cell.text = "downloads"
            case.pull("twelve", "local")
            case.local("twelve")
            case.right("twelve", case.container("twelve"))


def own_pull(case):
    """`cvmfs-snapshotter pull` is lazy with any version."""
    with case.step("cvmfs-snapshotter pull") as cell:
        cell.text = "lazy"
        for name in ("one", "twelve"):
            case.pull(name, "ours")
            case.lazy(name)
            case.equal(f"{name}: runs", case.run(name, "cat", "/etc/passwd").count("\n"), 2)


def run_and_exec(case):
    """A container of an image that is not downloaded."""
    with case.step("run, exec"):
        case.pull("twelve")
        case.lazy("twelve")
        case.equal("the image's own command", case.node.run(case.reference("twelve"), "own").stdout, images.GREETING + "\n")
        case.equal("a status", case.node.run(case.reference("twelve"), "status", "sh", "-c", "exit 7", ok=None).returncode, 7)
        container = case.container("twelve")
        case.right("twelve", container)
        case.rights(container)
        changes = "cd /opt/odd && echo more >> link-a && rm symlink && mv owned moved && cat link-a moved"
        case.equal("files can be changed", container.exec("sh", "-c", changes).stdout, "two names, one file\nmore\nby user 1000\n")
        case.equal("exec in a second process", container.exec("cat", "/opt/odd/moved").stdout, "by user 1000\n")
        case.right("twelve", case.container("twelve"))


def many_layers(case):
    """One, twelve and sixty layers; what two images have in common is there once."""
    with case.step("1, 12, 60 layers; shared ones once"):
        for name, count in (("one", 1), ("twelve", 12), ("sixty", 60)):
            case.pull(name)
            case.lazy(name)
            committed = [key for key, (_, kind) in case.node.snapshots().items() if kind == "Committed"]
            case.equal(f"{name}: committed snapshots", len(committed), count)
            case.right(name, case.container(name))
        case.check("all committed snapshots lead to the repository", sum(case.node.directories().values()) == 60, case.node.directories())
        case.node.remove(case.reference("twelve"))
        case.equal("what only the other image has stays", case.run("sixty", "cat", "/opt/layers/last"), "59\n")


def two_namespaces(case):
    """A chain that one namespace has from the repository and another one on a base that it downloaded."""
    with case.step("two namespaces, one with a local base"):
        case.pull("one", "local" if case.version == "2" else "ctr", "other")
        case.pull("twelve")
        case.lazy("twelve")
        case.pull("twelve", namespace="other")
        case.equal("what is downloaded in the other", case.downloaded("twelve", "other"), case.stack.layers("one"))
        case.right("twelve", case.container("twelve"))
        words = ["run", "--rm", "--snapshotter", SNAPSHOTTER, case.reference("twelve"), "elsewhere", "cat", "/opt/layers/last"]
        case.equal("runs in the other", case.node.ctr(*words, namespace="other").stdout, "11\n")


def not_mounted(case):
    """Without the repository images are downloaded, and who has it already keeps it; with it they are lazy again."""
    with case.step("repository is not mounted") as cell:
        cell.text = "downloads"
        case.pull("sixty")
        container = case.container("sixty")
        case.unmount()
        try:
            case.equal("a container that runs goes on reading", container.exec("cat", "/opt/layers/last").stdout, "59\n")
            case.sweep()
            case.pull("twelve")
            case.local("twelve")
            case.right("twelve", case.container("twelve"))
            case.sweep()
        finally:
            case.mount_repository("mounted-again")
        case.pull("twelve")
        case.lazy("twelve")


def usage(case):
    """A layer in the repository takes no space of the node's; a container's own files do."""
    with case.step("ctr snapshots usage"):
        case.pull("twelve")
        container = case.container("twelve")
        container.exec("dd", "if=/dev/zero", "of=/opt/megabyte", "bs=1024", "count=1024")
        lines = case.node.ctr("snapshots", "--snapshotter", SNAPSHOTTER, "usage", "-b").stdout.splitlines()[1:]
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
        active = sizes.pop(container.name, 0)
        case.equal("of the layers", set(sizes.values()), {0})
        case.check("of the container", 1 << 20 <= active < 1 << 21, active)


def commit(case):
    """An image made of a container whose changes lie over opaque directories and whiteouts; pushed, pulled again, and right."""
    with case.step("commit, push, pull again"):
        case.pull("twelve")
        container = case.container("twelve")
        changes = (
            "cd /opt/stack; rm -r merged; mkdir merged; echo fresh > merged/fresh; echo inside > replaced/added; rm replaced/new; "
            "rm -r becomes-directory; mkdir -p new/tree; echo x > new/tree/file; echo changed >> mode; echo again > deleted; "
            "cd ../odd; rm owned; chmod 4711 set-user-id; rm -r attributes-of-a-directory; ln link-a link-d"
        )
        container.exec("sh", "-euc", changes)
        expected = container_tree(container.root())
        container.stop()
        archive = case.lab.dir / "difference.tar.gz"
        case.node.difference(archive, container.name)
        case.node.ctr("containers", "rm", container.name)
        directory = case.lab.path("committed") / "layout"
        layout = images.Layout(directory)
        layout.begin_with(case.stack.layout("twelve"))
        top = layout.add_archive(archive)
        layout.finish("1", Env=["PATH=/bin"], Cmd=["/bin/sh"])
        registry.push(directory, case.site.url, f"lab/committed-{case.version}", "1")
        case.sweep()
        name = f"committed-{case.version}"
        case.pull(name)
        case.check("the new layer is downloaded", top in case.node.blobs())
        case.equal("the others are not", case.downloaded("twelve"), [])
        found = container_tree(case.container(name).root())
        case.same("the new image shows what the container showed", without_links(expected), without_links(found))


def without_links(tree):
    """A tree without what a layer can't say of a link to a file of a layer below."""
    return {path: {key: value for key, value in about.items() if key != "links"} for path, about in tree.items()}


def gap(case):
    """An image of which the repository lacks a layer in the middle."""
    with case.step("a layer that is not published") as cell:
        case.pull("gap")
        base, missing, top = case.stack.layers("gap")
        downloaded = case.downloaded("gap")
        case.check("the layer below it is not downloaded", base not in downloaded, downloaded)
        case.check("the layer itself is", missing in downloaded, downloaded)
        lazy = sum(case.node.directories().values())
        cell.text = f"{lazy} of 3 lazy, {len(downloaded)} downloaded"
        case.check("the layer below it leads to the repository", lazy >= 1, case.node.directories())
        case.right("gap", case.container("gap"))


def gap_filled(case):
    """The same if the snapshotter may fetch the one layer: then the others stay where they are."""
    with case.step("the same, filled in by the snapshotter") as cell:
        cell.text = "2 of 3 lazy, 1 downloaded"
        case.configure(ANNOTATIONS, FILL_MISSING)
        base, missing, top = case.stack.layers("gap")
        case.pods.call("pull", case.reference("gap"))
        case.equal("layers that are downloaded", set(case.downloaded("gap", "k8s.io")) - {missing}, set())
        case.equal("layers that lead to the repository", sum(case.node.directories().values()), 2)
        words = ["run", "--rm", "--snapshotter", SNAPSHOTTER, case.reference("gap"), "gap", "sh", "-c", "wc -c < /opt/gap/file; cat /opt/layers/5"]
        case.equal("runs", case.node.ctr(*words, namespace="k8s.io").stdout, "99000\n5\n")
    case.configure()


def cri(case, title, *uncommented):
    """What the kubelet does: pull, sandbox, container, log, exec, remove."""
    with case.step(title) as cell:
        if uncommented:
            case.configure(*uncommented)
        cell.text = "lazy"
        pods, image = case.pods, case.reference("twelve")
        case.relay.reset()
        pods.call("pull", image)
        case.lazy("twelve", "k8s.io")
        pod = pods.call("sandbox", "pod")["sandbox"]
        case.lazy("pause", "k8s.io")
        container = pods.call("run", pod, "main", image, "sh", "-c", "echo to the log; exec sleep 100000")
        case.equal("exec", pods.call("exec", container["container"], "cat", "/opt/stack/back")["stdout"], "here again\n")
        log = Path(container["log"])
        case.check("log", within(30, lambda: log.read_text().endswith("stdout F to the log\n")), log.read_text())
        case.equal("container", pods.call("state", container["container"])["state"], "CONTAINER_RUNNING")
        case.equal("sandbox", pods.call("sandbox-state", pod)["state"], "SANDBOX_READY")
        second = pods.call("run", pod, "second", image, "sh", "-c", "exit 3")
        ended = within(30, lambda: (state := pods.call("state", second["container"]))["state"] == "CONTAINER_EXITED" and state)
        case.check("a container that ends has a status", ended and ended["exit_code"] == 3, ended)
        if case.version != "1.6":
            places = [about["mountpoint"] for about in pods.call("image-fs")["filesystems"]]
            case.check("the kubelet is told where images lie", str(STATE) in places, places)
        pods.call("remove", pod)
        for name in [tag for about in pods.call("images")["images"] for tag in about["tags"]]:
            pods.call("remove-image", name)
    if uncommented:
        case.configure()


def thin(case):
    """A thin image from a file: no registry is asked for anything, and the container is the same."""
    with case.step("thin image, no registry") as cell:
        archive = case.lab.path("thin") / "twelve.tar"
        case.lab.run(case.binary("thin-image"), "build", f"http://{case.reference('twelve')}", "--repo", FQRN, "--output", archive)
        case.check("it is a few KB", archive.stat().st_size < 100_000, f"{archive.stat().st_size} bytes")
        cell.text = case.thin_size("twelve", archive)
        case.relay.reset()
        before = len(case.node.snapshotter.log())
        case.node.ctr("images", "import", "--snapshotter", SNAPSHOTTER, archive)
        container = case.container("twelve")
        case.right("twelve", container)
        case.equal("no layer is in containerd's store", case.downloaded("twelve"), [])
        case.equal("the registry was asked for nothing", case.relay.requests, 0)
        case.equal("layers from repositories", len([1 for lazy in case.node.directories().values() if lazy]), 1)
        said = case.node.snapshotter.log()[before:]
        case.check("it stands on the flat root of the image", "containers get the flat root" in said, said)


def restarts(case):
    """The snapshotter ends, in either way, under a running container."""
    node = case.node
    with case.step("snapshotter: kill -9, SIGTERM") as cell:
        case.pull("twelve")
        container = case.container("twelve")
        before = node.snapshots()
        for end in (node.snapshotter.kill, node.snapshotter.stop):
            status = end()
            case.check("ends with status 0 after SIGTERM", status in (None, 0), status)
            case.equal("the container goes on without it", container.exec("cat", "/opt/odd/link-a").stdout, "two names, one file\n")
            node.snapshotter.start()
            start = time.monotonic()
            case.check("new containers start", within(30, lambda: starts(case, "twelve")))
            cell.text = f"new container after {time.monotonic() - start:.1f} s"
            case.equal("all snapshots are there", node.snapshots(), before)
            case.right("twelve", container)
            container.exec("sh", "-c", "touch /opt/after && rm /opt/after")
        case.pull("sixty")
        case.lazy("sixty")


def restarts_in_pulls(case):
    """The snapshotter is killed while it is asked for layers."""
    with case.step("snapshotter: kill -9 in a pull"):
        for delay in (0.05, 0.15, 0.3, 0.5):
            pull = threading.Thread(target=case.attempt, args=["sixty"])
            pull.start()
            time.sleep(delay)
            case.node.snapshotter.kill()
            case.node.snapshotter.start()
            pull.join()
        # containerd waits a while before it dials again.
        case.check("a pull succeeds afterwards", within(30, lambda: case.attempt("sixty")))
        case.lazy("sixty")
        case.right("sixty", case.container("sixty"))
        # Our own pull keeps what it has for a day when it fails, so that the next one goes on from there.
        case.end_leases()


def starts(case, name):
    """Whether a container starts and runs."""
    container = case.next()
    done = case.node.run(case.reference(name), container, "cat", "/opt/odd/link-b", ok=None)
    if done.returncode != 0:
        case.node.ctr("containers", "rm", container, ok=None)
        case.node.ctr("snapshots", "--snapshotter", SNAPSHOTTER, "rm", container, ok=None)
    return done.stdout == "two names, one file\n"


def containerd_restarts(case):
    """containerd itself ends under a running container."""
    with case.step("containerd: kill -9"):
        case.pull("twelve")
        container = case.container("twelve")
        case.node.containerd.kill()
        case.node.containerd.start()
        case.equal("the container is still there", container.exec("cat", "/opt/odd/link-a").stdout, "two names, one file\n")
        case.check("new containers start", starts(case, "twelve"))


def client_dies(case):
    """The repository's client is killed under a running container: what the container sees then, and that the node recovers."""
    with case.step("cvmfs-client: kill -9, mounted again") as cell:
        case.pull("twelve")
        container = case.container("twelve")
        container.exec("cat", "/opt/odd/link-a")
        clients = [pid for pid, command in processes() if command[0].endswith("cvmfs-client")]
        for pid in clients:
            os.kill(pid, signal.SIGKILL)
        case.check("there was a client", clients)
        time.sleep(0.5)
        answer = lambda done: "works" if done.returncode == 0 else "… " + done.stderr.strip()[-70:]
        for file in ("/opt/odd/link-a", "/opt/stack/mode"):
            print(f"     after kill -9 of the client: exec cat {file}: {answer(container.exec('cat', file, ok=None))}")
        print(f"     after kill -9 of the client: new container: {answer(case.node.run(case.reference('twelve'), 'refused', 'true', ok=None))}")
        case.lab.run("umount", "--lazy", case.mount)
        case.mount_repository("again")
        case.node.ctr("containers", "rm", "refused", ok=None)
        start = time.monotonic()
        case.check("new containers start after it is mounted again", within(40, lambda: starts(case, "twelve")))
        cell.text = f"new container after {time.monotonic() - start:.1f} s"
        # The kernel remembers files of the mount that died: a container on it would have some of them.
        case.right("twelve", case.container("twelve"))
        print(f"     mounted again: the old container: exec cat: {answer(container.exec('cat', '/opt/stack/mode', ok=None))}")


def plain_directory(case):
    """The same from a copy of the repository in a plain directory: nothing of ours but the layout, as with any other client."""
    with case.step("repository is a plain directory") as cell:
        copy = case.lab.dir / "copy"
        case.lab.run("cp", "--archive", case.mount, copy)
        case.unmount()
        unmount = case.lab.mount(case.mount, "mount", "--bind", "-o", "ro", copy, case.mount)
        try:
            case.pull("twelve")
            case.lazy("twelve")
            container = case.container("twelve")
            case.right("twelve", container)
            case.rights(container)
            container.remove()
        finally:
            unmount()
            case.mount_repository("after-copy")
        cell.text = "lazy"


def start_up_list(case):
    """The start of a container makes the client fetch what the list of its image names, before anybody asks for it."""
    with case.step("start-up list") as cell:
        repository, wish = case.site.repository, f"http://{case.reference('twelve')}"
        command = ["record", wish, FQRN, "--client", repository.client, "--", "cat", "/opt/layers/11", "/etc/group"]
        said = json.loads(case.lab.run(*repository.publisher, "--json", *command).stdout)["startup"]
        case.unmount()
        case.mount_repository("startup")
        case.configure()  # the snapshotter tells a client once a minute, and does not know that this one is new
        case.pull("twelve")
        case.lazy("twelve")
        digest = case.stack.layers("twelve")[-1].removeprefix("sha256:")
        listed = case.mount / ".layers" / digest[:2] / digest / "layerfs/opt/layers/11"
        cached = lambda: os.getxattr(listed, "user.lhash") != b"Not in cache"
        case.check("the file is not in the cache", not cached())
        case.run("twelve", "true")
        case.check("a start that does not read it brings it into the cache", within(30, cached), case.node.snapshotter.log()[-1000:])
        status = json.loads(case.lab.run(repository.client, "status", case.mount, "--json").stdout)
        status = status[0] if isinstance(status, list) else status
        case.check("the client counts it", status["prefetch"]["fetched"] > 0, status["prefetch"])
        _, metrics = case.node.ask("/metrics")
        case.check("the snapshotter counts it", 'cvmfs_snapshotter_announced_total{result="fetching"}' in metrics, metrics)
        cell.text = f"{said['files']} files"


def downloads_are_visible(case):
    """What had to be downloaded is counted, with its size and the reason."""
    with case.step("downloads are visible"):
        case.node.pull_ourselves(case.reference("gap"))
        status = json.loads(case.node.ask("/status")[1])
        shown = [image for image in status["downloads"] if image["image"].endswith("/lab/gap:1")]
        case.check("status shows image, layers, bytes and why", shown and shown[0]["layers"] and shown[0]["bytes"] and shown[0]["reason"], status)
        _, metrics = case.node.ask("/metrics")
        case.check("metrics count the bytes", "cvmfs_snapshotter_downloaded_bytes_total{reason=" in metrics, metrics)
        case.check("the log has a line", "a layer was downloaded in full" in case.node.snapshotter.log())


def collected(case):
    """After all of that, nothing is left; the snapshotter says so as well."""
    with case.step("remove, garbage collection"):
        case.pull("sixty")
        case.run("sixty", "true")
        case.node.remove(case.reference("sixty"))
        case.sweep()
        case.equal("healthy", case.node.ask("/healthz")[0], 200)
        case.equal("ready", case.node.ask("/readyz")[0], 200)
        status = json.loads(case.node.ask("/status")[1])
        case.equal("snapshots by the snapshotter's own count", set(status["snapshots"].values()), {0})
        _, metrics = case.node.ask("/metrics")
        case.check("metrics count layers of the repository", any('result="remote"' in line for line in metrics.splitlines()), metrics)


def both(case):
    """All pods of a version, with containerd's default settings and with the digests of layers told."""
    cri(case, "CRI")
    if case.version == "2":
        cri(case, "CRI, transfer service with annotations", MORE_ANNOTATIONS)
    cri(case, "CRI, annotations enabled", ANNOTATIONS)


def first_output(case):
    """Seconds from an empty cache to the first output, beside the engine's ordinary way."""
    with case.step("seconds to first output") as cell:
        image = case.reference("twelve")
        start = time.monotonic()
        case.node.pull(image, snapshotter="overlayfs")
        ordinary = time.monotonic() - start + case.node.first_output(image, case.next(), "cat", "/opt/odd/link-a", snapshotter="overlayfs")
        case.sweep()
        case.unmount()
        start = time.monotonic()
        case.mount_repository("cold")
        case.pull("twelve")
        mine = time.monotonic() - start + case.node.first_output(image, case.next(), "cat", "/opt/odd/link-a")
        cell.text = f"{mine:.2f} s; overlayfs {ordinary:.2f} s"


SMOKE = (ctr_pull, own_pull, run_and_exec, start_up_list, downloads_are_visible, thin, lambda case: cri(case, "CRI"), mirrored.registry_is_down, client_dies, collected)
ALL = (
    *(overlayfs, ctr_pull, ctr_pull_local, own_pull, run_and_exec, start_up_list, downloads_are_visible, many_layers, two_namespaces, usage, commit, gap, gap_filled, thin, both),
    *mirrored.ALL,
    *hostile.ALL,
    *(first_output, restarts, restarts_in_pulls, containerd_restarts, not_mounted, plain_directory, client_dies, collected),
)


def scenario():
    args = arguments()
    table = Table(args.table)
    with Lab(HOME) as lab:
        start = time.monotonic()
        site = Site(lab, args)
        print(f"     images published in {time.monotonic() - start:.1f} s", flush=True)
        for version in args.version:
            with lab.part(version) as inner:
                case = Case(inner, version, site, table)
                print(f"\n{case.node.ctr('version').stdout.split('Server:')[1].split()[1]} of {case.node.release}", flush=True)
                for step in SMOKE if args.smoke else ALL:
                    step(case)
        print(f"\n{table.text()}")
        return lab.verdict()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=ROOT / "target/release", help="directory of cvmfs-publisher, cvmfs-client and cvmfs-snapshotter")
    parser.add_argument("--cri", default=ROOT / "target/cri/debug/cri", help="the program of integration/cri")
    parser.add_argument("--version", nargs="+", choices=VERSIONS, default=list(VERSIONS), help="versions of containerd; all by default")
    parser.add_argument("--smoke", action="store_true", help="the shortest pass that has every kind of thing in it")
    parser.add_argument("--table", help="a file to which the table's cells are added")
    return parser.parse_args()


if __name__ == "__main__":
    laboratory.main(scenario, network=False)
