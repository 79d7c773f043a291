#!/usr/bin/env python3
"""Build dist/kb.pyz: kb and everything it needs in one file, bit-for-bit reproducible.

    python3 build_zipapp.py                                       the full file: Python 3.9-3.14 on x86_64 and aarch64
    python3 build_zipapp.py --platform linux_x86_64 --python 3.11 a smaller one
    python3 build_zipapp.py --wheels DIR                          without a network: DIR has the wheels of wheels.lock
    python3 build_zipapp.py --no-bytecode                         the same bytes with any Python
    python3 build_zipapp.py --release                             also write the other files of a release
    python3 build_zipapp.py --update-lock                         write wheels.lock again from PINS

Owns: PINS, wheels.lock, the layout of the archive. Must not: import kb, or put anything from the machine into the
archive except this source tree and the wheels that wheels.lock names by sha256. (The result still depends on the
building Python: each minor has its own bytecode, docs/adr/0008, and zlib-ng instead of zlib compresses the same members
to other bytes.) The counterpart is kubeup/startup/native.py, which finds the compiled modules at run time. Runs on
Python 3.9 without other packages; pip is needed only if a wheel is not yet in build/wheels.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import marshal
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

REPO = Path(__file__).resolve().parent
LOCK_NAME = "wheels.lock"

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("linux_x86_64", "linux_aarch64")

MACHINES = {"x86_64": 62, "aarch64": 183}
"""e_machine in the ELF header, by architecture."""

MAX_GLIBC = (2, 17)
"""The glibc version of manylinux2014; RHEL 8, Ubuntu 20.04 and Debian 11 have newer ones."""

SYSTEM_LIBRARIES = ("libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1")
LOADERS = ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")

SHEBANG = b"#!/usr/bin/env python3\n"
MEMBER_MODE = 0o100644
EPOCH_1980 = 315532800
"""The earliest time that a zip can store; the date of every member unless SOURCE_DATE_EPOCH is set."""

SBOM = "sbom.cdx.json"
NATIVE_INDEX = "_native/index.txt"
RUST = "cryptography/hazmat/bindings/_rust.abi3.so"


Documented = Union[ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef]


class BuildError(Exception):
    """Why kb.pyz could not be built, in one line."""


@dataclass(frozen=True)
class Pin:
    """One version of a distribution, and its targets. kb.pyz uses cryptography's cp39-abi3 wheel for every Python: the
    cp311-abi3 one, which pip prefers on newer versions, needs symbols that 3.9 does not have."""

    name: str
    version: str
    pythons: tuple[str, ...]
    platforms: tuple[str, ...] = PLATFORMS
    one_for_all: bool = False
    """Whether one wheel, the first Python's and platform's, serves all: a stable ABI, or pure Python."""


PINS = (
    Pin("cryptography", "50.0.2", PYTHONS, one_for_all=True),
    Pin("cffi", "2.0.0", ("3.9",)),
    Pin("cffi", "2.1.1", ("3.10", "3.11", "3.12", "3.13", "3.14")),
    # Its compiled half is left out, so the pure half of the first wheel serves every platform.
    Pin("pyyaml", "6.0.3", PYTHONS, platforms=("any",), one_for_all=True),
)


@dataclass(frozen=True)
class Wheel:
    """One line of wheels.lock."""

    file: str
    sha256: str
    platform: str
    """`linux_x86_64`, `linux_aarch64`, or `any` for pure Python."""
    pythons: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.file.split("-")[0]

    @property
    def version(self) -> str:
        return self.file.split("-")[1]

    @property
    def arch(self) -> str:
        return self.platform.partition("_")[2]

    def serves(self, platforms: Sequence[str], pythons: Sequence[str]) -> bool:
        return self.platform in ("any", *platforms) and any(python in pythons for python in self.pythons)


# wheels.lock


def parse_lock(text: str) -> list[Wheel]:
    """Parse lines of `<file> sha256:<hex> <platform>:<first Python>[-<last Python>]`; # starts a comment."""
    wheels = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        match = re.fullmatch(r"(\S+\.whl) sha256:([0-9a-f]{64}) (\w+):(3\.\d+)(?:-(3\.\d+))?", " ".join(words))
        if match is None:
            raise BuildError(f"{LOCK_NAME}:{number}: not `FILE.whl sha256:HEX PLATFORM:PYTHON[-PYTHON]`: {line}")
        file, sha256, platform, first, last = match.groups()
        try:
            pythons = PYTHONS[PYTHONS.index(first) : PYTHONS.index(last or first) + 1]
        except ValueError:
            raise BuildError(f"{LOCK_NAME}:{number}: {first}-{last} is not within {PYTHONS[0]}-{PYTHONS[-1]}") from None
        if platform not in ("any", *PLATFORMS):
            raise BuildError(f"{LOCK_NAME}:{number}: the platform {platform} is none of any, {', '.join(PLATFORMS)}")
        wheels.append(Wheel(file, sha256, platform, pythons))
    return wheels


def render_lock(wheels: Iterable[Wheel]) -> str:
    lines = [
        "# The wheels in kb.pyz: file, sha256, what it is for. Written by `python3 build_zipapp.py --update-lock`.",
    ]
    for wheel in sorted(wheels, key=lambda wheel: (wheel.name, parse_minor(wheel.pythons[0]), wheel.file)):
        first, last = wheel.pythons[0], wheel.pythons[-1]
        span = first if first == last else f"{first}-{last}"
        lines.append(f"{wheel.file} sha256:{wheel.sha256} {wheel.platform}:{span}")
    return "\n".join(lines) + "\n"


def parse_minor(python: str) -> tuple[int, ...]:
    return tuple(int(number) for number in python.split("."))


def select_wheels(lock: Iterable[Wheel], platforms: Sequence[str], pythons: Sequence[str]) -> list[Wheel]:  # noqa: PLR0917
    """The wheels of one build. Raises BuildError if a target lacks one of its three."""
    wheels = [wheel for wheel in lock if wheel.serves(platforms, pythons)]
    for platform in platforms:
        for python in pythons:
            for name in dict.fromkeys(pin.name for pin in PINS):
                if not any(wheel.name == name and wheel.serves((platform,), (python,)) for wheel in wheels):
                    raise BuildError(
                        f"{LOCK_NAME} has no {name} for {platform}, Python {python}: build_zipapp.py --update-lock"
                    )
    return wheels


# fetching


def pip_target_args(platform: str, python: str) -> list[str]:
    """pip's arguments for one target. `--python-version 3.9` would mean 3.9.0, for which pip silently picks an old
    cryptography. pip evaluates markers for the Python that runs it, hence --no-deps."""
    arch = (PLATFORMS[0] if platform == "any" else platform).partition("_")[2]
    tag = "cp" + python.replace(".", "")
    return [
        *("--no-deps", "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", "3.9.2" if python == "3.9" else python, "--abi", tag, "--abi", "abi3"),
        *("--platform", f"manylinux2014_{arch}", "--platform", f"manylinux_2_17_{arch}"),
    ]


def find_pip() -> list[str]:
    """A working pip. It may belong to another Python, since the targets are passed to it."""
    candidates = [[sys.executable, "-m", "pip"]]
    candidates += [[path] for path in (shutil.which("pip3"), shutil.which("pip")) if path]
    for argv in candidates:
        if subprocess.run([*argv, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
            return argv
    raise BuildError("wheels have to be downloaded, but there is no pip: install it, or give --wheels DIR")


def run_pip_download(requirements: Sequence[str], *, target: Sequence[str], folder: Path) -> None:
    """Download `requirements` from wherever pip is configured to look."""
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch, "requirements.txt")
        listed.write_text("".join(f"{line}\n" for line in requirements))
        argv = [*find_pip(), "download", "--quiet", "--no-input", "--dest", str(folder), *target, "-r", str(listed)]
        result = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        named = ", ".join(line.split()[0] for line in requirements)
        if "DO NOT MATCH THE HASHES" in result.stdout:
            raise BuildError(f"what pip fetched for {named} has another sha256 than {LOCK_NAME} says")
        errors = [line for line in result.stdout.splitlines() if line.startswith("ERROR")]
        raise BuildError(f"pip cannot fetch {named}: {errors[-1] if errors else result.stdout[-200:].strip()}")


def ensure_wheels(wheels: Sequence[Wheel], folder: Path, *, may_fetch: bool) -> None:
    """Make sure that each of `wheels` is in `folder`, with the lock's sha256."""
    missing = [wheel for wheel in wheels if not (folder / wheel.file).is_file()]
    if missing and not may_fetch:
        raise BuildError(f"{folder} lacks {', '.join(wheel.file for wheel in missing)}")
    groups: dict[tuple[str, str], list[Wheel]] = {}
    for wheel in missing:
        groups.setdefault((wheel.platform, wheel.pythons[0]), []).append(wheel)
    if groups:
        folder.mkdir(parents=True, exist_ok=True)
    for (platform, python), group in groups.items():
        run_pip_download(
            [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in group],
            target=["--require-hashes", *pip_target_args(platform, python)],
            folder=folder,
        )
    for wheel in wheels:
        path = folder / wheel.file
        if not path.is_file():
            raise BuildError(f"pip fetched something other than {wheel.file} of {LOCK_NAME}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != wheel.sha256:
            raise BuildError(f"{path} has sha256 {digest}, and {LOCK_NAME} says {wheel.sha256}: remove it")


def resolve_pins() -> list[Wheel]:
    """Download every pin without checking hashes, and return the wheels. Only this step trusts the index: review its
    diff."""
    wheels = []
    for pin in PINS:
        for platform in pin.platforms:
            for python in pin.pythons[:1] if pin.one_for_all else pin.pythons:
                with tempfile.TemporaryDirectory() as scratch:
                    target = pip_target_args(platform, python)
                    run_pip_download([f"{pin.name}=={pin.version}"], target=target, folder=Path(scratch))
                    (path,) = Path(scratch).iterdir()
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                pythons = pin.pythons if pin.one_for_all else (python,)
                wheels.append(Wheel(path.name, digest, platform, pythons))
    return wheels


# ELF


@dataclass(frozen=True)
class Elf:
    """The properties that decide whether a shared library loads."""

    machine: int
    glibc: tuple[int, ...]
    """The newest GLIBC_ symbol version that it requires."""
    needed: tuple[str, ...]


def read_elf(data: bytes) -> Elf:
    """Read a 64-bit little-endian ELF file. Raises BuildError for anything else."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (table_at,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table_at + index * size) for index in range(count)]

    def text_at(section: int, offset: int) -> str:
        start = sections[section][4] + offset
        return data[start : data.index(b"\0", start)].decode()

    needed, versions = [], []
    for _, kind, _, _, offset, length, link, entries, _, _ in sections:
        if kind == 6:  # SHT_DYNAMIC
            for tag, value in struct.iter_unpack("<QQ", data[offset : offset + length]):
                if tag == 0:
                    break
                if tag == 1:  # DT_NEEDED
                    needed.append(text_at(link, value))
        if kind == 0x6FFFFFFE:  # SHT_GNU_verneed
            for _ in range(entries):
                _, names, _, first, following = struct.unpack_from("<HHIII", data, offset)
                at = offset + first
                for _ in range(names):
                    _, _, _, name, step = struct.unpack_from("<IHHII", data, at)
                    versions.append(text_at(link, name))
                    at += step
                offset += following
    glibc = [tuple(map(int, found[6:].split("."))) for found in versions if re.fullmatch(r"GLIBC_[\d.]+", found)]
    return Elf(machine, max(glibc, default=(0,)), tuple(sorted(needed)))


def strip_elf(data: bytes) -> bytes:
    """An ELF file without the part after its last segment: section headers and function names, a fifth of
    cryptography's size. The loader uses only program headers. Every start of kb unpacks what is left."""
    (table_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    end = table_at + size * count
    for index in range(count):
        # type, flags, offset, address, physical address, size in the file, size in memory, alignment
        _, _, offset, _, _, length, _, _ = struct.unpack_from("<IIQQQQQQ", data, table_at + index * size)
        end = max(end, offset + length)
    stripped = bytearray(data[:end])
    struct.pack_into("<Q", stripped, 40, 0)  # the offset of the section headers
    struct.pack_into("<HHH", stripped, 58, 0, 0, 0)  # their size, their number, the index of the one with their names
    return bytes(stripped)


def check_elf(elf: Elf, *, arch: str, member: str) -> None:
    """Raise BuildError unless `elf` loads on every node that kb.pyz supports."""
    if elf.machine != MACHINES[arch]:
        raise BuildError(f"{member} is for ELF machine {elf.machine}, not for {arch}")
    if elf.glibc > MAX_GLIBC:
        raise BuildError(f"{member} needs glibc {'.'.join(map(str, elf.glibc))}, more than manylinux2014 may")
    foreign = [name for name in elf.needed if name not in (*SYSTEM_LIBRARIES, *LOADERS)]
    if foreign:
        raise BuildError(f"{member} needs {', '.join(foreign)}, which a node may not have")


# the archive's members


def collect_source(repo: Path) -> dict[str, bytes]:
    """kb.py, the package, configs/ and the text files at the root."""
    paths = [repo / "kb.py"]
    paths += [repo / name for name in ("LICENSE", "NOTICE", "README.md") if (repo / name).is_file()]
    paths += (repo / "kubeup").rglob("*.py")
    paths += (path for path in (repo / "configs").rglob("*") if path.is_file())
    members = {}
    for path in paths:
        name = path.relative_to(repo).as_posix()
        if "__pycache__" in name or name.startswith("configs/zipapp/") or path.name.startswith(".") or name[-1] == "~":
            continue
        members[name] = path.read_bytes()
    members["__main__.py"] = (repo / "configs/zipapp/__main__.py").read_bytes()
    return members


def collect_wheel(wheel: Wheel, data: Mapping[str, bytes]) -> dict[str, bytes]:
    """The members that kb.pyz takes from one wheel, by name in the archive."""
    members = {}
    for name, content in data.items():
        top = name.split("/")[0]
        if top.endswith(".dist-info"):
            target = _place_metadata(name, wheel)
        elif name.endswith(".so"):
            target = f"_native/{wheel.arch}/{name}" if wheel.platform != "any" else None
        elif top in ("cryptography", "yaml") and name.endswith((".py", "/py.typed")):
            target = name
        else:
            target = None  # the cffi package, headers, type stubs: not imported at run time
        if target is not None:
            members[target] = content
    return members


def _place_metadata(name: str, wheel: Wheel) -> Optional[str]:
    """Where to put metadata: licences and METADATA are the same for every architecture; an SBOM is not. RECORD and
    WHEEL are dropped, because they would be wrong."""
    top, _, rest = name.partition("/")
    if rest.startswith("sboms/"):
        return f"{top}/sboms/{wheel.arch or 'any'}/{rest[len('sboms/') :]}"
    return name if rest == "METADATA" or rest.startswith("licenses/") else None


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


def plan_members(repo: Path, wheels: Sequence[Wheel], folder: Path) -> dict[str, bytes]:  # noqa: PLR0917
    """Every member of kb.pyz. Raises BuildError if two sources disagree about one."""
    members = collect_source(repo)
    for wheel in wheels:
        for name, content in collect_wheel(wheel, read_wheel(folder / wheel.file)).items():
            if members.setdefault(name, content) != content:
                raise BuildError(f"{wheel.file} has another {name} than what is in kb.pyz already")
    natives = {name: data for name, data in members.items() if name.endswith(".so")}
    members.update((name, strip_elf(data)) for name, data in natives.items())
    members[NATIVE_INDEX] = render_native_index(natives).encode()
    version = read_version(members["kubeup/__init__.py"].decode())
    members[SBOM] = render_sbom(version, wheels, licences=read_licences(members)).encode()
    return members


# bytecode


class _WithoutTexts(ast.NodeTransformer):
    """Removes what is not needed at run time: docstrings, and annotations of functions (dataclasses need those of
    classes).

    A class with a decorator keeps a one-space docstring: dataclass generates one at each start if there is none."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._drop_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self._drop_docstring(node)
        if node.decorator_list:
            node.body.insert(0, ast.copy_location(ast.Expr(ast.Constant(" ")), node.body[0]))
            ast.fix_missing_locations(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._drop_docstring(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._drop_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _drop_docstring(self, node: Documented) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.copy_location(ast.Pass(), node.body[0])]
        return self.generic_visit(node)


WITHOUT_BYTECODE = tuple(
    f"kubeup/{folder}/{name}"
    for folder, names in {
        "airgap": (
            "bundle_sources",
            "bundle_verify",
            "bundle_write",
            "downloads",
            "mirror_",
            "distro_packages",
            "registry_client",
        ),
        "backup": ("",),
        "cli": ("completion",),
        "commands": (
            "reset",
            "adopt",
            "backup",
            "bundle",
            "certs",
            "closing_look",
            "config_",
            "doctor",
            "drift",
            "etcd",
            "kubeconfig_",
            "mirror",
            "node",
            "readdress",
            "reconfigure",
            "restore",
            "static_pods",
            "upgrade",
        ),
        "drift": ("",),
        "cluster": (
            "health",
            "field_owners",
            "etcd_stop",
            "account_tokens",
            "authority_places",
            "control_flags",
            "departure",
            "dns_service",
            "etcd_snapshot",
            "etcd_upkeep",
            "eviction",
            "node_events",
            "node_state",
            "pending_pods",
            "probe_pods",
            "reach",
            "reboot_turn",
            "request_header",
            "signing_request",
            "rotation",
            "stuck_pods",
            "system_rights",
            "upgrade_turn",
        ),
        "diagnosis": ("container_trouble", "kubelet_trouble", "pod_trouble"),
        "doctor": ("certs_in_use", "foreign_node", "looks/", "metrics", "support_bundle"),
        "engine": ("undo",),
        "kubeadm": ("lines", "program", "upgrade", "reset"),
        "network": ("flannel_traces", "input_rules", "pod_walks", "service_rules", "drain."),
        "node": (
            "runtime_fix",
            "content_trials",
            "etcd_file",
            "control_groups",
            "expired_certs",
            "file_trials",
            "former_certs",
            "image_program",
            "kept_images",
            "pod_trials",
            "program_trials",
            "renewal",
            "rotated_pairs",
            "torn_pairs",
            "unread_certs",
            "user_kubeconfigs",
            "tried_pod",
        ),
        "phases": (
            "cert_names",
            "endpoint",
            "mirror_move",
            "node_re",
            "readdress",
            "reconfigure_",
            "recovered_",
            "renewed_",
            "restart_pods",
            "restore",
            "rotat",
            "static_pods_swap",
            "tried_swap",
            "upgrade_",
        ),
        "swap": (
            "patience",
            "leads",
            "former_pods",
            "etcd_return",
            "kubelet_view",
            "last_member",
            "manifests",
            "order",
            "proof",
            "recovery.",
            "turn",
            "wake",
        ),
        "upgrade": (
            "available",
            "changed_",
            "corefile",
            "kept",
            "lacks",
            "node_config",
            "objection",
            "planning",
            "policy",
            "proxies",
            "survey",
            "target",
            "three_way",
            "usage",
            "v2_content",
        ),
    }.items()
    for name in names
)
"""What no node loads while it is made: the beginnings of members' names. Compiling them takes hundredths of a second in commands that
take seconds, and their bytecode would take room in the file (docs/adr/0008)."""


def compile_source(name: str, source: bytes) -> bytes:
    """The .pyc of one member, of PEP 552's unchecked hash-based kind, because both are in one archive.

    Version 2 of marshal's format has no references between objects, which would depend on what else the process has
    loaded. From 3.14 on, code may contain slices, which version 2 lacks."""
    code = compile(_WithoutTexts().visit(ast.parse(source)), f"kb.pyz/{name}", "exec", dont_inherit=True)
    body = marshal.dumps(code, 2 if sys.version_info < (3, 14) else marshal.version)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source) + body


def compile_members(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytecode of kb and its libraries for the building Python's minor: it saves a third of a second at each start.
    Other minors see the magic number and compile the source, as they would without bytecode.

    It is created in a separate process, because only an interpreter option leaves out column positions in tracebacks (a
    third of the size). Raises BuildError."""
    sources = {
        name: data for name, data in members.items() if name.endswith(".py") and not name.startswith(WITHOUT_BYTECODE)
    }
    argv = [sys.executable, "-I", "-X", "no_debug_ranges", str(Path(__file__).resolve()), "--compile"]
    result = subprocess.run(argv, input=marshal.dumps(sources), stdout=subprocess.PIPE)
    if result.returncode != 0:
        raise BuildError("the sources cannot be compiled: see above")
    compiled: dict[str, bytes] = marshal.loads(result.stdout)  # noqa: S302 (written by this program)
    return compiled


def compile_for_parent() -> None:
    """The child process of compile_members."""
    sources: dict[str, bytes] = marshal.loads(sys.stdin.buffer.read())  # noqa: S302 (written by this program)
    sys.stdout.buffer.write(marshal.dumps({f"{name}c": compile_source(name, data) for name, data in sources.items()}))


def render_native_index(natives: Mapping[str, bytes]) -> str:
    """One line per compiled module, given as in its wheel: import name, required glibc, sha256 after stripping,
    member."""
    lines = []
    for name in sorted(natives):
        _, arch, file = name.split("/", 2)
        elf = read_elf(natives[name])
        check_elf(elf, arch=arch, member=name)
        module = file.split(".")[0].replace("/", ".")
        digest = hashlib.sha256(strip_elf(natives[name])).hexdigest()
        lines.append(f"{module} {'.'.join(map(str, elf.glibc))} {digest} {name}")
    return "\n".join(lines) + "\n"


def read_version(text: str) -> str:
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise BuildError('kubeup/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_licences(members: Mapping[str, bytes]) -> dict[str, str]:
    """The licence of each `name-version`, from its METADATA."""
    licences = {}
    for name, content in members.items():
        top, _, rest = name.partition("/")
        if rest == "METADATA":
            head = content.decode().partition("\n\n")[0]
            match = re.search(r"^License-Expression: (.+)$", head, re.MULTILINE) or re.search(
                r"^License: (.+)$", head, re.MULTILINE
            )
            if match is None:
                raise BuildError(f"{name} has no licence")
            licences[top[: -len(".dist-info")]] = match.group(1).strip()
    return licences


def render_sbom(version: str, wheels: Sequence[Wheel], *, licences: Mapping[str, str]) -> str:
    """CycloneDX 1.5: kb, and each wheel with its sha256. Code compiled into a wheel (OpenSSL, the Rust crates) is
    listed in that wheel's own SBOM, in its .dist-info. No date, and a serial number derived from the content."""
    components = [
        {
            "type": "library",
            "bom-ref": wheel.file,
            "name": wheel.name,
            "version": wheel.version,
            "purl": f"pkg:pypi/{wheel.name}@{wheel.version}?file_name={wheel.file}",
            "licenses": [{"expression": licences[f"{wheel.name}-{wheel.version}"]}],
            "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        }
        for wheel in sorted(wheels, key=lambda wheel: wheel.file)
    ]
    kb = {
        "type": "application",
        "bom-ref": "kb",
        "name": "kb",
        "version": version,
        "licenses": [{"expression": "Apache-2.0"}],
    }
    dependencies = [{"ref": "kb", "dependsOn": [component["bom-ref"] for component in components]}]
    body = json.dumps([kb, components], sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, body)}",
        "version": 1,
        "metadata": {"component": kb},
        "components": components,
        "dependencies": dependencies,
    }
    return json.dumps(document, indent=2) + "\n"


# the file


def read_date(environment: Mapping[str, str]) -> tuple[int, int, int, int, int, int]:
    """The date of every member, in UTC."""
    text = environment.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdigit():
        raise BuildError(f"SOURCE_DATE_EPOCH={text} is not a number of seconds")
    year, month, day, hour, minute, second = time.gmtime(max(int(text or 0), EPOCH_1980))[:6]
    return year, month, day, hour, minute, second


def write_zipapp(members: Mapping[str, bytes], output: Path, *, date: tuple[int, int, int, int, int, int]) -> str:
    """Write the archive, with its .sha256 next to it. A rename replaces the old file, so a kb that runs from it keeps
    it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(SHEBANG)
            with zipfile.ZipFile(file, "w") as archive:
                for member in sorted(members):
                    info = zipfile.ZipInfo(member, date)
                    info.create_system = 3
                    info.external_attr = MEMBER_MODE << 16
                    info.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(info, members[member], compresslevel=9)
        digest = hashlib.sha256(scratch.read_bytes()).hexdigest()
        scratch.chmod(0o755)
        scratch.replace(output)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    checksum = output.with_name(output.name + ".sha256")
    checksum.write_text(f"{digest}  {output.name}\n")
    checksum.chmod(0o644)
    return digest


def render_licences(members: Mapping[str, bytes]) -> str:
    """The licences of kb and everything in kb.pyz, one after the other, each under its name."""
    names = sorted(name for name in members if "/licenses/" in name or name == "LICENSE")
    names.sort(key=lambda name: name != "LICENSE")
    line = "=" * 79
    return "\n".join(f"{line}\n{name}\n{line}\n{members[name].decode('utf-8', 'replace')}" for name in names)


def write_release(members: Mapping[str, bytes], output: Path) -> list[Path]:
    """Write next to the zipapp: its bill of materials (CycloneDX), all licences, and SHA256SUMS of the three for
    sha256sum -c."""
    beside = {SBOM: members[SBOM], "LICENSES.txt": render_licences(members).encode()}
    for name, data in beside.items():
        (output.parent / name).write_bytes(data)
    names = sorted([output.name, *beside])
    sums = [f"{hashlib.sha256((output.parent / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (output.parent / "SHA256SUMS").write_text("".join(sums))
    return [output.parent / name for name in (*beside, "SHA256SUMS")]


def parse_choice(text: str, known: Sequence[str], *, flag: str) -> list[str]:
    """`3.9,3.11` -> the known values among them, in the order of `known`."""
    words = text.split(",")
    unknown = [word for word in words if word not in known]
    if unknown:
        raise BuildError(f"{flag} {','.join(unknown)}: not one of {','.join(known)}")
    return [word for word in known if word in words]


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build_zipapp.py", description="Build kb.pyz.")
    parser.add_argument("--output", type=Path, default=REPO / "dist" / "kb.pyz", help="the file to write (%(default)s)")
    parser.add_argument("--platform", default=",".join(PLATFORMS), help="%(default)s")
    parser.add_argument("--python", default=",".join(PYTHONS), help="%(default)s")
    parser.add_argument("--wheels", type=Path, help="take the wheels only from this folder, download nothing")
    parser.add_argument(
        "--no-bytecode", dest="bytecode", action="store_false", help="no bytecode: the same bytes with every Python"
    )
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--release", action="store_true", help="also write its bill of materials, licences and checksums"
    )
    parser.add_argument("--update-lock", action="store_true", help=f"write {LOCK_NAME} again, build nothing")
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> str:
    """Execute the command line; return the line to print."""
    if args.update_lock:
        wheels = resolve_pins()
        (REPO / LOCK_NAME).write_text(render_lock(wheels))
        return f"{LOCK_NAME}: {len(wheels)} wheels"
    platforms = parse_choice(args.platform, PLATFORMS, flag="--platform")
    pythons = parse_choice(args.python, PYTHONS, flag="--python")
    wheels = select_wheels(parse_lock((REPO / LOCK_NAME).read_text()), platforms, pythons)
    folder = args.wheels or REPO / "build" / "wheels"
    ensure_wheels(wheels, folder, may_fetch=args.wheels is None)
    members = plan_members(REPO, wheels, folder)
    if args.bytecode:
        members.update(compile_members(members))
    digest = write_zipapp(members, args.output, date=read_date(os.environ))
    size_mb = args.output.stat().st_size / 1e6
    beside = [f"\n{path}" for path in write_release(members, args.output)] if args.release else []
    return f"{args.output}: {size_mb:.1f} MB, sha256 {digest}{''.join(beside)}"


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    if args.compile:
        compile_for_parent()
        return 0
    try:
        print(build(args))
    except (BuildError, OSError, zipfile.BadZipFile) as error:
        print(f"build_zipapp.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
