"""The volume driver, with whichever Docker: containers get a repository by its name."""

import socket
import tarfile
import time
from pathlib import Path

import images
import registry
from containerd import ENGINES, FQRN, mounts

OWN = "/var/lib/thin-image/volumes/"
SOCKET = "/run/docker/plugins/cvmfs.sock"


def plugin_answers():
    """Whether somebody listens where Docker looks for the plugin."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(SOCKET) == 0


def plain_image(case):
    """An image that needs no repository; returns its reference."""
    layout = images.Layout(case.lab.path("plain") / "layout")
    with layout.layer() as layer:
        layer.directory("bin")
        layer.add("bin/busybox", content=(ENGINES / "bookworm/bin/busybox").read_bytes(), mode=0o755)
        layer.add("not-published", content=b"")
        for applet in ("ls", "sh", "sleep"):
            layer.add(f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
    layout.finish("1", Env=["PATH=/bin"], Cmd=["/bin/sh"])
    registry.push(layout.directory, case.site.url, "lab/plain", "1")
    return case.reference("plain")


def volumes(case):
    """What the host has mounted; a snapshot, which the plugin mounts; both over restarts of plugin and daemon."""
    with case.step("volumes"):
        repository = case.site.repository
        image = plain_image(case)
        case.docker.docker("pull", image)
        published = sorted(name for name in case.lab.run("ls", "-A", case.mount).stdout.split())
        own = lambda: [line.split()[4] for line in mounts() if line.split()[4].startswith(OWN)]

        def listing(*options):
            words = ("run", "--rm", "--network", "none", *options, image, "ls", "-A", "/cvmfs/x")
            return sorted(case.docker.docker(*words).stdout.split())

        by_flag = ("--volume-driver", "cvmfs", "--volume", f"{FQRN}:/cvmfs/x:ro")
        by_mount = ("--mount", f"type=volume,volume-driver=cvmfs,source={FQRN},target=/cvmfs/x,readonly")
        case.equal("--volume-driver", listing(*by_flag), published)
        case.equal("--mount", listing(*by_mount), published)
        case.equal("the host's own mount is used", own(), [])
        for name in ("other.example.org", "..", f"{FQRN}@no/tag"):
            refused = case.docker.docker("volume", "create", "--driver", "cvmfs", name, ok=None)
            case.check(f"{name} is refused", refused.returncode != 0 and "repository" in refused.stderr or "tag" in refused.stderr, refused.stderr)

        # With the client's configuration in its usual place, the plugin can mount.
        settings = Path("/etc/cvmfs/config.d")
        settings.mkdir(parents=True, exist_ok=True)
        lines = {
            "CVMFS_SERVER_URL": f"http://127.0.0.1:{case.site.port}/cvmfs/@fqrn@",
            "CVMFS_PUBLIC_KEY": repository.keys / f"{FQRN}.pub",
            "CVMFS_CACHE_BASE": case.lab.dir / f"volume-cache-{case.version}",
            "CVMFS_HTTP_PROXY": "DIRECT",
        }
        (settings / f"{FQRN}.conf").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        case.docker.docker("volume", "create", "--driver", "cvmfs", "--opt", f"repository={FQRN}", "--opt", "tag=trunk", "software")
        case.equal("a snapshot", listing("--volume", "software:/cvmfs/x:ro"), published)
        case.equal("its mount goes with the last container", own(), [])
        container = case.docker.docker("run", "--detach", "--network", "none", "--stop-timeout", "0", "--volume", "software:/cvmfs/x:ro", image, "sleep", "100000").stdout.strip()
        root = case.docker.docker("inspect", "--format", "/proc/{{.State.Pid}}/root", container).stdout.strip()
        look = lambda: sorted(case.docker.docker("exec", container, "ls", "-A", "/cvmfs/x").stdout.split())
        for end in (case.plugin.kill, case.plugin.stop):
            end()
            case.equal("a container has it while the plugin is down", sorted(entry.name for entry in Path(f"{root}/cvmfs/x").iterdir()), published)
            case.plugin.start()
            case.equal("the mount is there", len(own()), 1)
            case.equal("another container shares it", listing("--volume", "software:/cvmfs/x:ro"), published)
            case.equal("the first one still has it", look(), published)
        case.docker.daemon.stop()
        case.docker.daemon.start()
        case.docker.docker("start", container)
        case.equal("over a restart of dockerd", look(), published)
        used = case.docker.docker("volume", "rm", "software", ok=None)
        case.check("a volume in use is not removed", used.returncode != 0, used.stdout)
        case.docker.docker("rm", "--force", container)
        time.sleep(0.2)
        case.equal("the mount goes with the container", own(), [])

        case.unmount()
        try:
            case.equal("a repository that the host has not mounted", listing(*by_flag), published)
            case.equal("its mount goes as well", own(), [])
        finally:
            case.mount_repository("after-volumes")
        case.docker.docker("volume", "rm", "software", FQRN)
        case.equal("volumes", case.docker.list("volume", "ls", "--quiet"), [])


