"""kb.pyz as a node sees it: built once, run by every Python of this machine, under what a node may withhold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest

import build_zipapp
from kubeup import __version__

pytestmark = pytest.mark.component

REPO = Path(build_zipapp.__file__).parent
WHEELS = REPO / "build" / "wheels"

# A node's environment at its poorest: no home, no user folders.
BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
ISOLATED = ("-I", "-S")

# What kb does with its two dependencies, and where each of them came from.
PROBE = """
import json, os, sys
if "no-memfd" in sys.argv:
    del os.memfd_create
sys.path.insert(0, sys.argv[1])
import kubeup
from kubeup.errors import KbError
try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
except KbError as error:
    print(json.dumps({"code": error.code, "text": str(error)}))
    sys.exit(error.status)
from cryptography.hazmat.bindings._rust import _openssl
from kubeup.yaml_files import load_yaml, read_resource
import yaml
key = ec.generate_private_key(ec.SECP256R1())
key.public_key().verify(key.sign(b"kb", ec.ECDSA(hashes.SHA256())), b"kb", ec.ECDSA(hashes.SHA256()))
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
print(json.dumps({
    "x509": x509.__file__,
    "yaml": yaml.__file__,
    "document": load_yaml("a: [1, x]"),
    "template": read_resource("manifests/etcd.yaml"),
    "cffi": sys.modules["_cffi_backend"].__spec__.origin,
    "openssl": _openssl.ffi.string(_openssl.lib.OpenSSL_version(0)).decode(),
    "in_memory": "/memfd:kb (deleted)" in maps,
    "on_disk": "native.so (deleted)" in maps,
}))
"""

# The same imports in a process that multiprocessing starts: it sees no __main__.py, only sys.path.
CHILD = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])
import kubeup
if __name__ == "__main__":
    code = "(__import__('kubeup'), __import__('importlib').import_module('cryptography.x509').__file__)[1]"
    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
        print(pool.apply(eval, (code,)))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter of this machine."""

    path: str
    version: tuple[int, int, int]
    suffix: str


def find_pythons() -> list[Python]:
    """Every python3 on PATH and of pyenv, each once."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder and "shims" not in folder]
    folders.append(Path("/usr/bin"))
    pyenv = shutil.which("pyenv")
    if pyenv:
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
        folders += sorted(Path(root).glob("versions/*/bin"))
    names = ["python3", *(f"python3.{minor}" for minor in range(6, 16))]
    code = "import sys, sysconfig; print(*sys.version_info[:3], sysconfig.get_config_var('EXT_SUFFIX'))"
    found: dict[Path, Python] = {}
    for path in (folder / name for folder in folders for name in names):
        real = path.resolve()
        if real in found or not path.is_file():
            continue
        result = subprocess.run([str(real), *ISOLATED, "-c", code], capture_output=True, text=True)
        words = result.stdout.split()
        if result.returncode == 0 and len(words) == 4:
            found[real] = Python(str(real), (int(words[0]), int(words[1]), int(words[2])), words[3])
    return sorted(found.values(), key=lambda python: python.version)


@pytest.fixture(scope="session")
def pythons() -> list[Python]:
    return [python for python in find_pythons() if python.version >= (3, 9, 2)]


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The wheels of the lock."""
    lock = build_zipapp.parse_lock((REPO / "wheels.lock").read_text())
    try:
        build_zipapp.ensure_wheels(lock, WHEELS, may_fetch=True)
    except build_zipapp.BuildError as error:
        if not str(error).startswith(("pip cannot fetch", "wheels have to be downloaded")):
            raise
        pytest.skip(f"the wheels of kb.pyz are not at hand: {error}")
    return WHEELS


@pytest.fixture(scope="session")
def pyz(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist") / "kb.pyz"
    build(sys.executable, "--output", str(output), "--wheels", str(wheels))
    return output


def build(python: str, *args: str, repo: Path = REPO, env: Optional[Mapping[str, str]] = None) -> str:
    """Run build_zipapp.py; the sha256 that it printed."""
    argv = [python, str(repo / "build_zipapp.py"), *args]
    result = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **(env or {})})
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[-1]


def run(argv: Sequence[str], *, env: Optional[Mapping[str, str]] = None, **options: Any) -> Any:
    return subprocess.run(argv, capture_output=True, text=True, env={**BARE, **(env or {})}, timeout=60, **options)


def probe(pyz: Path, *words: str, python: str = sys.executable, flags: Sequence[str] = ISOLATED, **options: Any) -> Any:
    """What PROBE printed."""
    result = run([python, *flags, "-c", PROBE, str(pyz), *words], **options)
    assert result.stdout.startswith("{"), result.stderr
    return json.loads(result.stdout)


# What it is


def test_it_is_one_file_of_at_most_12_mb_with_its_checksum(pyz: Path) -> None:
    assert pyz.stat().st_size <= 12_000_000
    digest = hashlib.sha256(pyz.read_bytes()).hexdigest()
    assert pyz.with_name("kb.pyz.sha256").read_text() == f"{digest}  kb.pyz\n"


def test_what_is_in_it(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        sbom = json.loads(archive.read("sbom.cdx.json"))
    assert names == sorted(set(names))
    for name in (
        "__main__.py",
        "kb.py",
        "kubeup/startup/native.py",
        "configs/manifests/etcd.yaml",
        "cryptography-50.0.2.dist-info/licenses/LICENSE.APACHE",
        "cryptography-50.0.2.dist-info/sboms/x86_64/sbom.json",
        "cryptography-50.0.2.dist-info/sboms/aarch64/cryptography-rust.cyclonedx.json",
        "cffi-2.0.0.dist-info/licenses/LICENSE",
        "cffi-2.1.1.dist-info/licenses/LICENSE",
        "pyyaml-6.0.3.dist-info/licenses/LICENSE",
        "pyyaml-6.0.3.dist-info/METADATA",
    ):
        assert name in names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {"cffi", "pycparser", "_yaml", "tests", "typing_extensions.py", "build", "dist"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyi", "RECORD", "/"))]
    assert {name[:-1] for name in names if name.endswith(".pyc")} == {
        name for name in names if name.endswith(".py") and not name.startswith(build_zipapp.WITHOUT_BYTECODE)
    }
    assert len([name for name in names if name.endswith(".so")]) == 14
    assert {component["name"] for component in sbom["components"]} == {"cffi", "cryptography", "pyyaml"}


def test_the_natives_are_for_their_architecture_and_an_old_glibc(pyz: Path, wheels: Path, tmp_path: Path) -> None:
    """readelf, a second reader, agrees with build_zipapp.read_elf about each file of the wheels; what kb.pyz has of it
    begins with the same bytes, but for where the section headers would be."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not here: apt install binutils")
    in_wheels: dict[str, bytes] = {}
    for wheel in build_zipapp.parse_lock((REPO / "wheels.lock").read_text()):
        if wheel.platform != "any":
            found = build_zipapp.read_wheel(wheels / wheel.file)
            in_wheels.update({f"_native/{wheel.arch}/{name}": found[name] for name in found if name.endswith(".so")})
    with zipfile.ZipFile(pyz) as archive:
        natives = [name for name in archive.namelist() if name.endswith(".so")]
        assert set(natives) == set(in_wheels)
        for name in natives:
            data, stripped = in_wheels[name], archive.read(name)
            assert stripped[64:] == data[64 : len(stripped)] and len(stripped) < len(data)
            path = tmp_path / "native.so"
            path.write_bytes(stripped)
            segments = run(["readelf", "-W", "-h", "-l", "-d", str(path)], env={"LC_ALL": "C"})
            assert "(NEEDED)" in segments.stdout and segments.stderr == "", segments.stderr
            path.write_bytes(data)
            text = run(["readelf", "-W", "-h", "-d", "-V", str(path)], env={"LC_ALL": "C"}).stdout
            machine = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}[name.split("/")[1]]
            assert f"Machine:                           {machine}" in text
            versions = [word[len("GLIBC_") :] for word in text.split() if word.startswith("GLIBC_2")]
            newest = max(tuple(map(int, version.split("."))) for version in versions)
            elf = build_zipapp.read_elf(data)
            assert elf.glibc == newest <= (2, 17), name
            needed = [line.split("[")[1].split("]")[0] for line in text.splitlines() if "(NEEDED)" in line]
            assert list(elf.needed) == sorted(needed)


# How it is built


def test_two_builds_are_one(pythons: list[Python], wheels: Path, tmp_path: Path) -> None:
    """From another folder, in another time zone, with another umask; without bytecode by another Python too."""
    copy = tmp_path / "another folder"
    for name in ("kubeup", "configs"):
        shutil.copytree(REPO / name, copy / name)
    for name in ("kb.py", "build_zipapp.py", "wheels.lock", "README.md", "LICENSE", "NOTICE"):
        if (REPO / name).is_file():
            shutil.copy(REPO / name, copy / name)
    args = ("--wheels", str(wheels), "--platform", "linux_x86_64", "--python", "3.11")
    strange = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    for by, more in (((sys.executable, sys.executable), ()), ((pythons[0].path, pythons[-1].path), ("--no-bytecode",))):
        words = (*args, *more, "--output")
        first = build(by[0], *words, str(tmp_path / "a.pyz"), repo=copy, env={"TZ": "UTC"})
        old = os.umask(0o077)
        try:
            second = build(by[1], *words, str(tmp_path / "b.pyz"), env=strange)
        finally:
            os.umask(old)
        assert first == second, more
        assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    assert (tmp_path / "a.pyz").stat().st_size <= 6_000_000
    with zipfile.ZipFile(tmp_path / "a.pyz") as archive:
        natives = [name for name in archive.namelist() if name.endswith(".so")]
    assert natives == [
        "_native/x86_64/_cffi_backend.cpython-311-x86_64-linux-gnu.so",
        "_native/x86_64/cryptography/hazmat/bindings/_rust.abi3.so",
    ]


def test_a_release_is_what_a_download_page_carries(pyz: Path, tmp_path: Path) -> None:
    members = build_zipapp.plan_members(REPO, build_zipapp.parse_lock((REPO / "wheels.lock").read_text()), WHEELS)
    shutil.copy(pyz, tmp_path / "kb.pyz")
    build_zipapp.write_release(members, tmp_path / "kb.pyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSES.txt", "SHA256SUMS", "kb.pyz", "sbom.cdx.json"]
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 3
    named = {part["name"] for part in json.loads((tmp_path / "sbom.cdx.json").read_text())["components"]}
    licences = (tmp_path / "LICENSES.txt").read_text()
    assert licences.splitlines()[1] == "LICENSE", "kb's own comes first"
    for name in named:
        assert re.search(rf"^{name}-[^/]*/licenses/", licences, re.M | re.I), f"the licence of {name} is not there"


def test_a_wheel_that_is_missing_or_changed_fails_the_build(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    shutil.copytree(wheels, folder)
    (yaml_wheel,) = folder.glob("pyyaml-*.whl")
    output = tmp_path / "kb.pyz"
    argv = [sys.executable, str(REPO / "build_zipapp.py"), "--wheels", str(folder), "--output", str(output)]
    data = bytearray(yaml_wheel.read_bytes())
    data[1000] ^= 1
    yaml_wheel.write_bytes(data)
    result = run(argv)
    assert (result.returncode, output.exists()) == (1, False)
    assert result.stderr.count("\n") == 1 and "and wheels.lock says" in result.stderr
    yaml_wheel.unlink()
    result = run(argv)
    assert (result.returncode, output.exists()) == (1, False)
    assert f"lacks {yaml_wheel.name}" in result.stderr


# Its bytecode


def loaded_sources(pyz: Path, *words: str) -> set[str]:
    """What kb, run with `words`, took from a .py of the archive although it was built by this Python."""
    code = (
        "import os, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, sys.argv[0])\n"
        "import kb\n"
        "kb.main()\n"
        "print()\n"
        "print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)))\n"
    )
    result = run([sys.executable, *ISOLATED, "-c", code, str(pyz), *words])
    loaded = result.stdout.splitlines()[-1].split()
    assert f"{pyz}/kb.pyc" in loaded, result.stderr
    return {name for name in loaded if name.startswith(str(pyz)) and not name.endswith(".pyc")}


def test_a_node_is_made_without_compiling_anything(pyz: Path, tmp_path: Path) -> None:
    join = ("10.0.0.1:6443", "--token", "abcdef.0123456789abcdef", "--discovery-token-unsafe-skip-ca-verification")
    for words in (
        ("init", "--root", str(tmp_path / "root")),
        ("join", *join, "--dry-run"),
        ("join", *join, "--control-plane", "--dry-run"),
        ("token", "generate"),
    ):
        assert loaded_sources(pyz, *words) == set(), words


def test_a_traceback_from_bytecode_shows_the_source(pyz: Path) -> None:
    code = (
        "import sys, traceback; sys.path.insert(0, sys.argv[1])\nfrom kubeup.machine import files as host_files\n"
        "try:\n    host_files.is_leftover(None)\nexcept TypeError:\n    traceback.print_exc()"
    )
    result = run([sys.executable, *ISOLATED, "-c", code, str(pyz)])
    line = [line for line in result.stderr.splitlines() if "files.py" in line][-1]
    number = int(line.split("line ")[1].split(",")[0])
    assert (REPO / "kubeup/machine/files.py").read_text().splitlines()[number - 1].strip() in result.stderr


def test_bytecode_is_the_source_without_its_texts() -> None:
    """Docstrings and function annotations go; what a run can see of them, the fields of a class, stays."""
    source = (
        b'"""Module."""\n'
        b"from __future__ import annotations\n"
        b"from dataclasses import dataclass\n"
        b"@dataclass\nclass A:\n"
        b'    """Class."""\n'
        b"    a: int = 1\n"
        b"def f(x: int, *y: str, z: bool = True) -> list[int]:\n"
        b'    """Function."""\n'
        b"class Empty(Exception):\n"
        b'    """Nothing else."""\n'
    )
    import importlib.util
    import marshal

    data = build_zipapp.compile_source("a/b.py", source)
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert data[4:8] == b"\1\0\0\0", "PEP 552: by hash, not checked"
    assert data[8:16] == importlib.util.source_hash(source)
    names: dict[str, Any] = {"__name__": __name__}
    exec(marshal.loads(data[16:]), names)
    assert names.get("__doc__") is None
    assert names["A"]().a == 1 and names["A"].__annotations__ == {"a": "int"}
    assert names["f"](1, "x", z=False) is None
    assert names["f"].__doc__ is None and names["f"].__annotations__ == {}
    assert names["Empty"].__doc__ is None and issubclass(names["Empty"], Exception)
    assert data == build_zipapp.compile_source("a/b.py", source)


def test_a_source_that_cannot_be_compiled_fails_the_build() -> None:
    with pytest.raises(build_zipapp.BuildError):
        build_zipapp.compile_members({"a.py": b"def"})


# Every Python


def own(name: str, python: Optional[Python] = None) -> str:
    """The file that a module of the archive says it came from: bytecode, where `python` is of the builder's minor."""
    return f"{name}c" if python is None or python.version[:2] == sys.version_info[:2] else name


@pytest.mark.parametrize("flags", [(), ISOLATED], ids=["plain", "isolated"])
def test_every_python_takes_its_own_natives_and_nothing_of_the_machine(
    pyz: Path, pythons: list[Python], flags: Sequence[str], tmp_path: Path
) -> None:
    # A stranger's packages behind the archive's on sys.path, as site-packages are, and named in PYTHONPATH.
    for name in ("yaml", "cryptography", "_cffi_backend", "kubeup"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')")
    for python in pythons:
        seen = probe(pyz, python=python.path, flags=flags, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
        assert seen["x509"] == own(f"{pyz}/cryptography/x509/__init__.py", python), python
        assert seen["yaml"] == own(f"{pyz}/yaml/__init__.py", python)
        assert seen["cffi"] == f"{pyz}/_native/{os.uname().machine}/_cffi_backend{python.suffix}"
        assert seen["document"] == {"a": [1, "x"]}
        assert seen["template"] == (REPO / "configs/manifests/etcd.yaml").read_text()
        assert seen["openssl"].startswith("OpenSSL "), "cffi's half answers"
        assert seen["in_memory"] and not seen["on_disk"]


@pytest.mark.parametrize("flags", [(), ISOLATED], ids=["plain", "isolated"])
def test_every_python_prints_the_version(pyz: Path, pythons: list[Python], flags: Sequence[str]) -> None:
    for python in pythons:
        result = run([python.path, *flags, str(pyz), "version", "-o", "short"])
        assert (result.returncode, result.stdout) == (0, f"{__version__}\n"), (python, result.stderr)


def test_an_older_python_is_told_so_in_one_line(pyz: Path) -> None:
    older = [python for python in find_pythons() if python.version < (3, 9, 2)]
    if not older:
        pytest.skip("no Python older than 3.9.2 is here")
    for python in older:
        result = run([python.path, str(pyz), "version"])
        version = ".".join(map(str, python.version))
        assert (result.returncode, result.stdout) == (3, ""), python
        assert result.stderr == (f"kb: needs Python 3.9.2 or newer, this is {version}: run it with a newer python3\n")


def test_version_imports_neither_cryptography_nor_yaml(pyz: Path) -> None:
    result = run([sys.executable, *ISOLATED, "-X", "importtime", str(pyz), "version"])
    assert result.returncode == 0, result.stderr[-500:]
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "import time:" in line}
    assert {"kubeup", "kubeup.startup.native_hook", "kubeup.startup.version"} <= imported
    assert not {name for name in imported if name.split(".")[0] in ("cryptography", "yaml", "_cffi_backend")}
    assert "kubeup.startup.native" not in imported


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_process_of_multiprocessing_has_the_natives_too(pyz: Path, method: str) -> None:
    result = run([sys.executable, *ISOLATED, "-c", CHILD, str(pyz), method])
    assert result.stdout == own(f"{pyz}/cryptography/x509/__init__.py") + "\n", result.stderr


def test_the_systems_cryptography_can_be_chosen(pyz: Path) -> None:
    seen = probe(pyz, flags=(), env={"KB_CRYPTOGRAPHY": "system"})
    assert seen["yaml"] == own(f"{pyz}/yaml/__init__.py")
    assert "site-packages" in seen["x509"] and not seen["in_memory"]
    seen = probe(pyz, flags=ISOLATED, env={"KB_CRYPTOGRAPHY": "system"})
    assert seen["code"] == "system-cryptography-missing"


def test_twelve_first_runs_at_once(pyz: Path) -> None:
    argv = [sys.executable, *ISOLATED, "-c", PROBE, str(pyz)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=BARE) for _ in range(12)]
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert json.loads(output)["in_memory"]


# Where it lies


def test_it_runs_through_a_link_a_relative_path_and_from_a_folder_with_spaces(pyz: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(pyz, folder / "kb 1.pyz")
    (tmp_path / "kb").symlink_to(Path("a folder", "kb 1.pyz"))
    for argv in (["python3", "kb"], ["python3", "./a folder/kb 1.pyz"], ["./kb"], [str(tmp_path / "kb")]):
        argv = [sys.executable if word == "python3" else word for word in argv]
        result = run([*argv, "version", "-o", "short"], cwd=tmp_path)
        assert (result.returncode, result.stdout) == (0, f"{__version__}\n"), (argv, result.stderr)


def test_a_link_that_is_switched_does_not_change_a_running_kb(tmp_path: Path) -> None:
    """The real __main__.py, with a story that switches the link to another version and imports late."""
    main = (REPO / "configs/zipapp/__main__.py").read_bytes()
    story = (
        b"import os, sys\n"
        b"def main():\n"
        b"    link = sys.argv[1]\n"
        b"    os.unlink(link); os.symlink('new.pyz', link); os.chdir('/')\n"
        b"    import late\n"
        b"    print(late.VERSION)\n"
        b"    return 7\n"
    )
    for version in ("old", "new"):
        members = {"__main__.py": main, "kb.py": story, "late.py": f"VERSION = {version!r}".encode()}
        members["kubeup/__init__.py"] = b""
        members["kubeup/startup/__init__.py"] = b""
        members["kubeup/startup/head_start.py"] = (REPO / "kubeup/startup/head_start.py").read_bytes()
        build_zipapp.write_zipapp(members, tmp_path / f"{version}.pyz", date=(1980, 1, 1, 0, 0, 0))
    (tmp_path / "kb").symlink_to("old.pyz")
    result = run([sys.executable, *ISOLATED, "kb", str(tmp_path / "kb")], cwd=tmp_path)
    assert (result.stdout, result.returncode) == ("old\n", 7), result.stderr
    result = run([sys.executable, *ISOLATED, "kb", str(tmp_path / "kb")], cwd=tmp_path)
    assert result.stdout == "new\n"


# What breaks


def test_a_native_that_is_damaged_is_named(pyz: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kb.pyz"
    member = f"_native/{os.uname().machine}/cryptography/hazmat/bindings/_rust.abi3.so"
    with zipfile.ZipFile(pyz) as archive:
        info = archive.getinfo(member)
    data = bytearray(pyz.read_bytes())
    middle = info.header_offset + info.compress_size // 2
    for index in range(middle, middle + 64):
        data[index] ^= 0x55
    copy.write_bytes(data)
    seen = probe(copy)
    assert seen["code"] == "zipapp-damaged"
    assert member in seen["text"] and "\n" not in seen["text"]
    assert run([sys.executable, *ISOLATED, str(copy), "version"]).returncode == 0, "what needs no native still runs"


def test_a_truncated_file_fails_at_once(pyz: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kb.pyz"
    data = pyz.read_bytes()
    for length in (len(data) - 10, len(data) // 2, 100):
        copy.write_bytes(data[:length])
        result = run([sys.executable, *ISOLATED, str(copy), "version"])
        assert result.returncode != 0 and result.stdout == "", length


# What a node may withhold


def test_without_memfd_a_private_file_serves_and_does_not_stay(pyz: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    seen = probe(pyz, "no-memfd", env={"TMPDIR": str(tmp_path)})
    assert seen["on_disk"] and not seen["in_memory"]
    assert list(tmp_path.iterdir()) == []


def in_namespace(setup: str, pyz: Path, *words: str, env: Optional[Mapping[str, str]] = None) -> Any:
    """PROBE's answer in a mount namespace of its own, after the shell lines of `setup`."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mount namespaces need root and unshare")
    # /mnt is where the archive is seen: the folders that setup covers may hide the real place.
    bind = f"set -e\nmount --bind '{pyz.parent}' /mnt\n"
    script = f'{bind}{setup}\nexec "$@"'
    python = os.path.realpath(sys.executable)
    argv = ["unshare", "-m", "sh", "-c", script, "sh", python, *ISOLATED, "-c", PROBE, "/mnt/kb.pyz", *words]
    result = run(argv, env=env)
    if not result.stdout and "mount:" in result.stderr:
        pytest.skip(f"this machine forbids mounts: {result.stderr.strip()}")
    assert result.stdout.startswith("{"), result.stderr
    return json.loads(result.stdout)


FOLDERS = "/tmp /var/tmp /run /dev/shm"


def test_without_proc_a_file_serves(pyz: Path) -> None:
    seen = in_namespace("mount -t tmpfs none /proc", pyz)
    assert seen["x509"] == own("/mnt/kb.pyz/cryptography/x509/__init__.py")


def test_on_a_read_only_root(pyz: Path) -> None:
    setup = f"""
        for folder in / {FOLDERS} /mnt; do mountpoint -q $folder && mount -o remount,bind,ro $folder; done
        for folder in / {FOLDERS} /mnt; do if touch $folder/kb-test 2>/dev/null; then exit 9; fi; done
    """
    seen = in_namespace(setup, pyz)
    assert seen["in_memory"]


def test_where_every_folder_is_noexec(pyz: Path) -> None:
    setup = f"""
        for folder in {FOLDERS}; do mount -t tmpfs -o noexec none $folder; done
        mount -o remount,bind,noexec /mnt
    """
    assert in_namespace(setup, pyz)["in_memory"]
    seen = in_namespace(setup, pyz, "no-memfd")
    assert seen["code"] == "native-not-loadable"
    for folder in (*FOLDERS.split(), "/mnt"):
        assert f"{folder}: " in seen["text"]


def test_where_one_folder_is_noexec_and_one_is_full(pyz: Path) -> None:
    setup = """
        mount -t tmpfs -o noexec none /tmp
        mount -t tmpfs -o size=1m none /var/tmp
        mount -t tmpfs none /run
    """
    seen = in_namespace(setup, pyz, "no-memfd")
    assert seen["on_disk"]


def test_where_every_disk_is_full(pyz: Path) -> None:
    setup = f"for folder in {FOLDERS}; do mount -t tmpfs -o size=64k none $folder; done; mount -o remount,bind,ro /mnt"
    assert in_namespace(setup, pyz)["in_memory"]
    seen = in_namespace(setup, pyz, "no-memfd")
    assert seen["code"] == "native-not-loadable"
    assert "No space left on device" in seen["text"]


# How it ends


@pytest.mark.parametrize("words", [("version",), ("config", "print", "init-defaults"), ("--help",)])
def test_nobody_reads_the_output(pyz: Path, words: Sequence[str]) -> None:
    """A closed pipe is the reader's wish; a full disk is an error, in one line."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, *ISOLATED, str(pyz), *words]
    ended = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, env=BARE, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=BARE, timeout=60)
    assert ended.returncode == 1 and ended.stderr.count(b"\n") == 1
    assert b"No space left on device" in ended.stderr
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *argv], stderr=subprocess.PIPE, env=BARE, timeout=60)
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize("body", ["raise SystemError('broken')", "open(__file__ + '.ran', 'w').close()"])
def test_what_cryptography_takes_if_it_is_there_is_not_taken_from_outside(pyz: Path, tmp_path: Path, body: str) -> None:
    """A broken bcrypt of the distribution's, or somebody's own: kb neither runs it nor stumbles over it."""
    (tmp_path / "bcrypt.py").write_text(body)
    words = ["init", "--root", str(tmp_path / "node"), "--kubernetes-version", "v1.35.6", "--node-name", "n1"]
    done = run([sys.executable, str(pyz), *words], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "bcrypt.py.ran").exists()
