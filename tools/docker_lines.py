"""Run the lines of docker/Dockerfile without Docker, in a fresh Debian: python tools/docker_lines.py ROOTFS (as root)

debootstrap (Debian's package) fills the folder ROOTFS if it is not there. Every RUN, COPY, ENV, ARG, USER and WORKDIR
is carried out in it with chroot. Then ENTRYPOINT is started with --cpu, HEALTHCHECK is asked until it is content, and
the server for its nodes. FROM is replaced: Debian instead of NVIDIA's image on Ubuntu. What is not run is printed so.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent.parent
HERE = CONTEXT / "docker"
SUITE = "bookworm"
# The release of Python and the C library are Debian's: what differs from the image.
_NOT_RUN = {"FROM": "Debian instead", "EXPOSE": "describes the image", "VOLUME": "describes the image"}
# What this machine needs to reach package registries, inside as outside; its certificates under a name of their own,
# as the package ca-certificates writes the usual one anew.
_RESOLVER = "/etc/resolv.conf"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_CERTIFICATES_INSIDE = "/etc/this-machine.crt"
_NETWORK_VARIABLES = re.compile(r"(?i)(https?|no|all)_proxy|pip_(index_url|default_timeout)")
_CERTIFICATE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "GIT_SSL_CAINFO")
# What the build argument TORCH chooses.
_TORCH = re.compile(r"torch(vision|audio)?=|triton=|nvidia-|cuda-")
_FREEZE_NOTE = "# What docker/Dockerfile installs beside torch: written by tools/docker_lines.py --freeze."
_START_SECONDS = 300


@dataclass(frozen=True)
class Line:
    """An instruction of a Dockerfile."""

    number: int
    instruction: str
    argument: str


@dataclass
class Image:
    """What the lines so far have made."""

    rootfs: Path
    context: Path
    binds: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    """ENV."""
    arguments: dict[str, str] = field(default_factory=dict)
    """ARG."""
    user: str = "root"
    folder: str = "/"

    def start(self, words: list[str], *, is_build: bool = True, **options: object) -> subprocess.Popen:
        """Start a command inside, in namespaces of its own for mounts and processes; ARG counts while building."""
        mounts = [f"mount --bind {shlex.quote(source)} {self.rootfs}{target}" for source, target in self.binds.items()]
        mounts.append(f"mount --rbind /dev {self.rootfs}/dev")
        enter = [
            "chroot",
            f"--userspec={self.user}",
            str(self.rootfs),
            "/bin/sh",
            "-c",
            'cd "$0" && exec "$@"',
            self.folder,
        ]
        script = " && ".join([*mounts, f"exec {shlex.join([*enter, *words])}"])
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home}
        network = {name: value for name, value in os.environ.items() if _NETWORK_VARIABLES.fullmatch(name)}
        network |= dict.fromkeys(_CERTIFICATE_VARIABLES, _CERTIFICATES_INSIDE)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.rootfs}/proc"]
        environment = base | network | (self.arguments if is_build else {}) | self.variables
        return subprocess.Popen([*command, "sh", "-c", script], env=environment, **options)


def read_lines(text: str) -> Iterator[Line]:
    """Yield the instructions of a Dockerfile; a line that ends in a backslash goes on."""
    words, first = [], 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or (not words and not line.strip()):
            continue
        first = first if words else number
        words.append(line.rstrip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            instruction, _, argument = " ".join(words).partition(" ")
            yield Line(first, instruction, argument.strip())
            words = []


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Say whether a .dockerignore leaves a path of the context out, by itself or with a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatch(name.rpartition("/")[2] if pattern.startswith("**/") else name, pattern.removeprefix("**/"))
        for pattern in patterns
        for name in above
    )


def list_context(context: Path, patterns: list[str]) -> list[str]:
    """Return the files that docker build would send, as paths in the context."""
    found = []
    for folder, names, files in os.walk(context):
        relative = Path(folder).relative_to(context)
        names[:] = [name for name in names if not is_ignored((relative / name).as_posix(), patterns)]
        found += [path for name in files if not is_ignored(path := (relative / name).as_posix(), patterns)]
    return sorted(found)


def run_line(line: Line, image: Image) -> str:
    """Carry out an instruction; returns what was done. A command that fails ends the program."""
    words = shlex.split(line.argument) if line.instruction in ("ENV", "ARG", "COPY") else []
    if line.instruction == "ARG":
        name, _, value = words[0].partition("=")
        image.arguments.setdefault(name, value)
    elif line.instruction == "ENV":
        for word in words:
            name, _, value = word.partition("=")
            image.variables[name] = value.replace(
                "$PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            )
    elif line.instruction == "USER":
        image.user = line.argument
    elif line.instruction == "WORKDIR":
        image.folder = line.argument
        Path(f"{image.rootfs}{line.argument}").mkdir(parents=True, exist_ok=True)
    elif line.instruction == "COPY":
        return copy(words, image)
    elif line.instruction == "RUN":
        start = time.monotonic()
        if image.start(["/bin/sh", "-c", line.argument]).wait():
            sys.exit(f"line {line.number} failed: {line.argument}")
        return f"{time.monotonic() - start:.0f} s as {image.user}"
    else:
        return f"not run: {_NOT_RUN.get(line.instruction, 'at the end')}"
    return "done"


def copy(words: list[str], image: Image) -> str:
    """Carry out COPY: files into a folder, or the whole context."""
    owner = next((word.partition("=")[2] for word in words if word.startswith("--chown=")), "root:root")
    *sources, target = [word for word in words if not word.startswith("--")]
    patterns = [line for line in (HERE / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    there = list_context(image.context, patterns)
    place = image.rootfs / os.path.join(image.folder, target).lstrip("/")
    pairs = (
        [(path, place / path) for path in there] if sources == ["."] else [(s, place / Path(s).name) for s in sources]
    )
    for source, goal in pairs:
        if source not in there:
            sys.exit(f"COPY {source}: it is not in the build context")
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image.context / source, goal)
    inside = os.path.join(image.folder, target)
    root = Image(image.rootfs, image.context)
    if root.start(
        ["chown", "-R", owner, inside]
        if sources == ["."]
        else ["chown", owner, *(f"{inside}{goal.name}" for _, goal in pairs)]
    ).wait():
        sys.exit(f"COPY to {target}: no owner {owner}")
    return f"{len(pairs)} files"


def check_server(lines: list[Line], image: Image) -> None:
    """Start ENTRYPOINT and CMD on the CPU, ask HEALTHCHECK and the server's list of nodes, and end it."""
    argument = {line.instruction: line.argument for line in lines}
    command = [*json.loads(argument["ENTRYPOINT"]), *json.loads(argument["CMD"]), "--cpu"]
    health = json.loads(argument["HEALTHCHECK"].partition("CMD ")[2])
    print(f"starting as {image.user}: {shlex.join(command)}", flush=True)
    with Path(f"{image.rootfs}/tmp/server.log").open("w") as log:
        server = image.start(command, is_build=False, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while image.start(health, is_build=False, stderr=subprocess.DEVNULL).wait():
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start; see {image.rootfs}/tmp/server.log")
            time.sleep(2)
        print("HEALTHCHECK is content", flush=True)
        with urllib.request.urlopen("http://127.0.0.1:8188/object_info", timeout=60) as answer:
            nodes = [name for name in json.load(answer) if name.startswith("LightX2V")]
        print(f"{len(nodes)} nodes of the pack: {', '.join(nodes)}")
        listed = subprocess.run(["ps", "-eo", "uid,args"], capture_output=True, text=True, check=True).stdout
        users = {line.split()[0] for line in listed.splitlines() if line.split(None, 1)[1] == shlex.join(command)}
        print(f"number of the user that the server runs as: {', '.join(users)}")
        if not nodes or users != {image.arguments["UID"]}:
            sys.exit("the pack has no nodes, or the server runs as another user")
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path, metavar="ROOTFS")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as of docker build")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="SOURCE=TARGET", help="show a folder of this machine inside"
    )
    parser.add_argument("--freeze", type=Path, metavar="FILE", help="write the versions that pip installed")
    options = parser.parse_args()
    rootfs = options.rootfs.resolve()
    if (rootfs / "opt" / "venv").exists():
        sys.exit(f"{rootfs} was used before; expected a fresh Debian, or a folder that is not there.")
    if not rootfs.exists():
        subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(rootfs)], check=True, stdout=subprocess.DEVNULL)
    shutil.copy(_RESOLVER, f"{rootfs}{_RESOLVER}")
    shutil.copy(_CERTIFICATES, f"{rootfs}{_CERTIFICATES_INSIDE}")
    image = Image(rootfs, CONTEXT, dict(each.split("=", 1) for each in options.bind))
    image.arguments.update(each.split("=", 1) for each in options.build_arg)
    for target in image.binds.values():
        Path(f"{rootfs}{target}").mkdir(parents=True, exist_ok=True)
    lines = list(read_lines((HERE / "Dockerfile").read_text()))
    for line in lines:
        print(f"{line.number:3} {line.instruction} {line.argument[:90]}", flush=True)
        print(f"    {run_line(line, image)}", flush=True)
    if options.freeze:
        listed = image.start(["pip", "freeze"], stdout=subprocess.PIPE, text=True).communicate()[0]
        pins = [pin for pin in listed.splitlines() if not _TORCH.match(pin)]
        options.freeze.write_text("\n".join([_FREEZE_NOTE, *pins]) + "\n", encoding="utf-8")
    check_server(lines, image)


if __name__ == "__main__":
    main()
