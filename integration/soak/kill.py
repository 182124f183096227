#!/usr/bin/env python3
"""kill -9 at random moments of a conversion. After each: the repository is sound and shows the old or the new revision, nothing else.

  make soak COUNT=50        (SEED=n repeats a run's moments)

One image is published; the conversion of a second one is killed again and again. Each conversion goes on from what the killed one left; now
and then one is let through, its program runs from the mount, and everything starts again from the state with one image.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import images
import lab as laboratory
import registry
from container import Container
from lab import Lab
from products import Repository

FQRN = "soak.example.org"


class Soak:
    """The repository under fire, and a copy of it with the first image only."""

    def __init__(self, lab, repository, url, image):
        self.lab, self.repository, self.image = lab, repository, image
        self.old_name, self.new_name = (f"{url.removeprefix('http://')}/demo/{name}:1" for name in ("old", "new"))
        self.copy = lab.dir / "with-one-image"
        self.old_revision = repository.revision()
        shutil.copytree(repository.home, self.copy, symlinks=True)

    def start_again(self):
        """Back to the state with one image, without moving what a server has open."""
        for name in ("storage", "state"):
            shutil.rmtree(self.repository.home / name)
            shutil.copytree(self.copy / name, self.repository.home / name, symlinks=True)

    def convert(self, kill_after=None, publishing=False):
        """One conversion, killed after some seconds (of its publishing, if asked for) unless it ends before.
        Returns the seconds it ran and its status, None if killed."""
        start = time.monotonic()
        command = [*self.repository.convert_command(), "--progress", "json"]
        with open(self.lab.dir / "convert.log", "wb") as log, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.PIPE if publishing else log, start_new_session=True
        ) as process:
            if publishing:
                for line in process.stderr:
                    if b'"stage":"publishing"' in line:
                        break
            # The pipe has room for the little that is said after that.
            try:
                status = process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = None
        return time.monotonic() - start, status

    def inspect(self, what, port, completed):
        """Checks the repository on disk and through a fresh mount."""
        lab, revision = self.lab, self.repository.revision()
        allowed = [self.old_revision + 1] if completed else [self.old_revision, self.old_revision + 1]
        lab.check(f"{what}: the revision is the old or the new one", revision in allowed, f"{revision}, not one of {allowed}")
        lab.equal(f"{what}: the repository is sound", self.repository.check(), 0)
        mount, unmount = self.repository.mount("mount", "cache", port)
        lab.check(f"{what}: the first image is there", (mount / self.old_name / "opt/large").is_file())
        lab.equal(f"{what}: the second image is there if the revision is new", os.path.exists(mount / self.new_name), revision > self.old_revision)
        if completed:
            program = Container(mount / self.new_name, self.image.environment()).run(*self.image.command())
            lab.check(f"{what}: the program runs", program.returncode == 0, program.stdout)
        unmount()
        mount.rmdir()
        shutil.rmtree(lab.dir / "cache", ignore_errors=True)
        return revision


def scenario():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="directory of cvmfs-publisher and cvmfs-client")
    parser.add_argument("--count", type=int, default=50, help="how many conversions are killed")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")) or int(time.time()), help="repeats the moments of a run")
    args = parser.parse_args()
    dice = random.Random(args.seed)

    with Lab(os.environ.get("DEMO_DIR", "target/demo")) as lab:
        url = registry.serve(lab)
        registry.push(images.generated_image(lab.home, megabytes=10, largest=4, files=200), url, "demo/old", "1")
        registry.push(images.python_image(lab.home), url, "demo/new", "1")
        repository = Repository(lab, args.bin, FQRN)
        repository.create()
        repository.wish(f"{url}/demo/old:1")
        repository.convert()
        repository.wish(f"{url}/demo/old:1", f"{url}/demo/new:1")
        soak = Soak(lab, repository, url, registry.Image(f"{url}/demo/new:1"))
        port = repository.serve()

        whole, status = soak.convert()
        lab.equal("an undisturbed conversion succeeds", status, 0)
        soak.inspect("undisturbed", port, completed=True)
        soak.start_again()
        print(f"a conversion takes {whole:.1f} s; killing {args.count}, seed {args.seed}", flush=True)

        killed = 0
        while killed < args.count:
            # Publishing is short and comes last: every other kill falls into it, or just after.
            publishing = dice.random() < 0.5
            moment = dice.uniform(0, 1.2) if publishing else whole * dice.uniform(0, 1)
            seconds, status = soak.convert(moment, publishing)
            if status is None:
                killed += 1
                revision = soak.inspect(f"kill {killed} after {seconds:.2f} s", port, completed=False)
                print(f"  {killed:3} killed after {seconds:6.2f} s: revision {revision}, {'new' if revision > soak.old_revision else 'old'}", flush=True)
            else:
                lab.equal("a conversion that is let through succeeds", status, 0)
            if status is not None or dice.random() < 0.3:
                _, status = soak.convert()
                lab.equal(f"after kill {killed}: the next conversion completes", status, 0)
                soak.inspect(f"completed after kill {killed}", port, completed=True)
                soak.start_again()
        _, status = soak.convert()
        lab.equal("the last conversion completes", status, 0)
        soak.inspect("at the end", port, completed=True)
    return lab.verdict()


if __name__ == "__main__":
    laboratory.main(scenario)
