"""What is started in measurements: programs of scientists, in images of the size that theirs have."""

from dataclasses import dataclass
from pathlib import Path

import images


@dataclass(frozen=True)
class Subject:
    """A program with Debian packages that it needs, what it prints, and how large its image is at least (MB, plain)."""

    name: str
    packages: tuple
    program: str
    output: str
    megabytes: int

    @property
    def command(self):
        """The command line in the image."""
        return ["python3", "-c", self.program]

    def image(self, home, megabytes=None):
        """The demo's Python with the packages, and a layer of generated files that makes it as large as it has to be."""
        size, home = megabytes or self.megabytes, Path(home)

        def make(directory):
            layout, debs = images.Layout(directory), home / "packages"
            layout.begin_with(images.python_image(home))
            print(f"making an image of {size} MB from Debian packages (once, some minutes)", flush=True)
            names, more = images.BASE_PACKAGES + images.PYTHON_PACKAGES, list(self.packages)
            images.fetch_packages(names + more, debs)
            there, everything = (images.list_packages(words, debs) for words in (names, names + more))
            with layout.layer(level=1) as layer:
                layer.add_packages([debs / name for name in everything if name not in there], images.byte_code_version(everything))
            rest, content = max(0, size * 1_000_000 - plain_size(directory)) // 100, images.Content(1)
            with layout.layer(level=1) as layer:
                for number in range(100):
                    layer.directory(f"opt/data/{number % 10}")
                    layer.add(f"opt/data/{number % 10}/{number}", content=(content.read(rest), rest))
            layout.finish("1", Env=["PATH=/usr/bin:/bin"], Cmd=self.command)

        home.mkdir(parents=True, exist_ok=True)
        return images.cached(home, f"{self.name}-image", [size, self.packages, self.program], make)


SCIENCE = Subject(
    "science",
    ("python3-scipy", "python3-pandas", "python3-matplotlib", "python3-sympy", "python3-h5py", "ipython3"),
    "import numpy, scipy.linalg, scipy.stats; print(numpy.arange(10).sum())",
    "45\n",
    1600,
)
LEARNING = Subject(
    "learning",
    ("python3-torch", "python3-scipy", "python3-pandas", "python3-sklearn"),
    "import torch; print(int(torch.ones(9).sum()))",
    "9\n",
    3200,
)
ALL = {subject.name: subject for subject in (SCIENCE, LEARNING)}


def plain_size(layout):
    """Bytes of all layers of a layout as plain tar: gzip keeps it in the last four bytes."""
    return sum(int.from_bytes(blob.read_bytes()[-4:], "little") for blob in (Path(layout) / "blobs/sha256").iterdir() if is_gzip(blob))


def is_gzip(file):
    """Whether a blob is a layer."""
    with open(file, "rb") as content:
        return content.read(2) == b"\x1f\x8b"
