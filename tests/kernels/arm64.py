"""The files of a small arm64 machine, for kernels that boot.py boots: Debian's packages and Python's, downloaded once.

They come by an apt that has its own lists and takes nothing for installed, so that this machine's own packages stay as
they are. Packages are unpacked, their scripts are not run; what those would have made and the tests want is made here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Sequence

PACKAGES = (
    *("busybox-static", "libc-bin", "dash", "bash", "coreutils", "util-linux", "bsdutils", "procps", "findutils"),
    *("grep", "sed", "hostname", "mount", "gcc", "g++", "libc6-dev", "python3", "python3-bpfcc"),
)
"""Debian's: ktap's own, what the tests call, and what calls ktap."""
PYTHON_PACKAGES = ("lark>=1.1", "llvmlite>=0.50", "pyelftools>=0.31", "rich>=13", "pytest>=8", "hypothesis")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
MERGED = ("bin", "sbin", "lib")
"""Links to the directories of that name in /usr."""
EMPTY = ("proc", "sys", "dev", "run", "tmp", "root", "var/tmp")
LINKS = {"usr/bin/cc": "gcc", "usr/bin/c++": "g++"}
"""What scripts of packages would have made."""
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "arm64\n",
}
APT = ("apt-get", "--quiet=2", "--yes", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1")
CONFIGURATION = """
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root"; APT::Install-Recommends "false";
Dir::State "@PLACE@/state"; Dir::State::lists "@PLACE@/lists"; Dir::State::status "@PLACE@/status";
Dir::Cache "@PLACE@/cache";
#clear APT::Update::Post-Invoke-Success; #clear APT::Update::Post-Invoke; #clear DPkg::Post-Invoke;
"""


class Failed(Exception):
    """Something cannot be had; the message says what."""


def files(directory: Path) -> Path:
    """The machine's root directory, made below a directory if it is not there yet, or of other packages. Raises Failed."""
    root, complete, packages = directory / "root", directory / "complete", " ".join((*PACKAGES, *PYTHON_PACKAGES))
    if complete.exists() and complete.read_text() == packages:
        return root
    shutil.rmtree(directory, ignore_errors=True)
    _run([*APT, "--download-only", "install", *PACKAGES], configured(directory))
    for path in (*(f"usr/{name}" for name in MERGED), *EMPTY):
        (root / path).mkdir(parents=True, exist_ok=True)
    for name in MERGED:
        _link(root / name, f"usr/{name}")
    for archive in sorted((directory / "cache" / "archives").glob("*.deb")):
        unpack(archive, root)
    for name, target in LINKS.items():
        _link(root / name, target)
    for name, text in FILES.items():
        (root / name).write_text(text)
    _python_packages(directory, root)
    shutil.rmtree(directory / "cache")
    complete.write_text(packages)
    return root


def configured(directory: Path) -> dict[str, str]:
    """The environment of an apt for arm64 that keeps all it has below a directory; it asks what there is the first time.
    Raises Failed."""
    for name in ("state", "lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    configuration = directory / "apt.conf"
    configuration.write_text(CONFIGURATION.replace("@PLACE@", str(directory)))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    if not any((directory / "lists").glob("*_Packages*")):
        _run([*APT, "update"], environment)
    return environment


def unpack(archive: Path, root: Path) -> None:
    """The files of a Debian package. Raises Failed."""
    into = ["tar", "--extract", "--keep-directory-symlink", "--directory", str(root)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as packed:
        if subprocess.run(into, stdin=packed.stdout).returncode:
            raise Failed(f"{archive.name} cannot be unpacked")


def _python_packages(directory: Path, root: Path) -> None:
    """Wheels are archives of what is to lie among the modules."""
    version = os.readlink(root / "usr/bin/python3").replace("python", "")
    wheels, modules = directory / "wheels", root / "usr/lib/python3/dist-packages"
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    _run([*pip, *platforms, "--python-version", version, "--dest", str(wheels), *PYTHON_PACKAGES], dict(os.environ))
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(modules)
    # byte code, which takes an emulated processor long to make; where Python is of another version it is not used
    compiled = [sys.executable, "-m", "compileall", "-q", str(root / "usr/lib"), str(modules)]
    subprocess.run(compiled, stdout=subprocess.DEVNULL)  # packages have files that are no Python, on purpose


def _link(path: Path, target: str) -> None:
    if not path.is_symlink():
        path.symlink_to(target)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Failed(f"{' '.join(command[:3])}: {(done.stderr or done.stdout).strip()[-300:]}")
