"""build_zipapp.py: the lock, the choice of wheels, what goes into the archive, and that two builds are one."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import pytest

import build_zipapp
from build_zipapp import PLATFORMS, PYTHONS, BuildError, Elf, Wheel

REPO = Path(build_zipapp.__file__).parent
LOCK = build_zipapp.parse_lock((REPO / "wheels.lock").read_text())
DATE = (1980, 1, 1, 0, 0, 0)


def test_the_lock_is_what_it_would_be_written_as() -> None:
    assert build_zipapp.render_lock(LOCK) == (REPO / "wheels.lock").read_text()
    assert "://" not in (REPO / "wheels.lock").read_text()


def test_the_lock_has_one_wheel_of_each_kind_for_each_target() -> None:
    for platform in PLATFORMS:
        for python in PYTHONS:
            wheels = build_zipapp.select_wheels(LOCK, [platform], [python])
            assert sorted(wheel.name for wheel in wheels) == ["cffi", "cryptography", "pyyaml"], (platform, python)
            tag = "cp" + python.replace(".", "")
            arch = platform.partition("_")[2]
            by_name = {wheel.name: wheel.file for wheel in wheels}
            assert f"-{tag}-{tag}-manylinux2014_{arch}." in by_name["cffi"]
            assert f"-cp39-abi3-manylinux2014_{arch}." in by_name["cryptography"]


def test_the_lock_follows_the_pins() -> None:
    pinned = {(pin.name, pin.version, python) for pin in build_zipapp.PINS for python in pin.pythons}
    assert {(wheel.name, wheel.version, python) for wheel in LOCK for python in wheel.pythons} == pinned


@pytest.mark.parametrize(
    "line",
    [
        "a-1-py3-none-any.whl sha256:abc any:3.9",
        f"a-1-py3-none-any.whl sha256:{'0' * 64}",
        f"a-1-py3-none-any.whl sha256:{'0' * 64} any:3.9-3.99",
        f"a-1-py3-none-any.whl sha256:{'0' * 64} win32:3.9",
        f"a-1.tar.gz sha256:{'0' * 64} any:3.9",
    ],
)
def test_a_line_that_is_wrong_is_named(line: str) -> None:
    with pytest.raises(BuildError, match=r"^wheels\.lock:2: "):
        build_zipapp.parse_lock(f"# a comment\n{line}\n")


def test_a_target_without_its_wheel_fails_the_build() -> None:
    without = [wheel for wheel in LOCK if "cp314-manylinux2014_aarch64" not in wheel.file]
    assert len(without) == len(LOCK) - 1
    with pytest.raises(BuildError, match=r"no cffi for linux_aarch64, Python 3\.14"):
        build_zipapp.select_wheels(without, PLATFORMS, PYTHONS)


def make_wheel(folder: Path, content: bytes = b"wheel") -> Wheel:
    wheel = Wheel("demo-1.0-py3-none-any.whl", hashlib.sha256(content).hexdigest(), "any", PYTHONS)
    (folder / wheel.file).write_bytes(content)
    return wheel


def test_a_wheel_is_checked_against_the_lock(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    build_zipapp.ensure_wheels([wheel], tmp_path, may_fetch=False)
    (tmp_path / wheel.file).write_bytes(b"wheeL")
    with pytest.raises(BuildError, match=f"has sha256 {hashlib.sha256(b'wheeL').hexdigest()}, and wheels.lock says"):
        build_zipapp.ensure_wheels([wheel], tmp_path, may_fetch=False)
    (tmp_path / wheel.file).unlink()
    with pytest.raises(BuildError, match=r"lacks demo-1\.0-py3-none-any\.whl"):
        build_zipapp.ensure_wheels([wheel], tmp_path, may_fetch=False)


def test_pip_is_told_the_target_in_full() -> None:
    words = " ".join(build_zipapp.pip_target_args("linux_aarch64", "3.9"))
    assert "--no-deps --only-binary :all:" in words
    assert "--python-version 3.9.2 " in words, "3.9 would mean 3.9.0, for which pip takes an old cryptography"
    assert "--abi cp39 --abi abi3 --platform manylinux2014_aarch64" in words
    assert "--python-version 3.14 --abi cp314 " in " ".join(build_zipapp.pip_target_args("any", "3.14"))


def test_choices() -> None:
    assert build_zipapp.parse_choice("3.14,3.9", PYTHONS, flag="--python") == ["3.9", "3.14"]
    with pytest.raises(BuildError, match=r"--python 3\.8: not one of 3\.9,"):
        build_zipapp.parse_choice("3.9,3.8", PYTHONS, flag="--python")


@pytest.mark.parametrize(
    ("epoch", "date"), [("", DATE), ("0", DATE), ("1700000000", (2023, 11, 14, 22, 13, 20)), ("315532800", DATE)]
)
def test_the_date_of_every_member(epoch: str, date: tuple[int, ...]) -> None:
    assert build_zipapp.read_date({"SOURCE_DATE_EPOCH": epoch}) == date


def test_a_wrong_epoch_is_refused() -> None:
    with pytest.raises(BuildError, match="SOURCE_DATE_EPOCH=now"):
        build_zipapp.read_date({"SOURCE_DATE_EPOCH": "now"})


def test_what_is_taken_from_a_wheel() -> None:
    names = [
        "_cffi_backend.cpython-39-x86_64-linux-gnu.so",
        "cffi/__init__.py",
        "cffi/_embedding.h",
        "cffi-2.0.0.dist-info/METADATA",
        "cffi-2.0.0.dist-info/RECORD",
        "cffi-2.0.0.dist-info/WHEEL",
        "cffi-2.0.0.dist-info/licenses/LICENSE",
        "cffi-2.0.0.dist-info/sboms/a.json",
        "cryptography/py.typed",
        "cryptography/x509/base.py",
        "cryptography/hazmat/bindings/_rust/x509.pyi",
        "cryptography/__pycache__/utils.cpython-39.pyc",
        "pycparser/__init__.py",
    ]
    wheel = Wheel("cffi-2.0.0-cp39-cp39-manylinux2014_x86_64.whl", "0" * 64, "linux_x86_64", ("3.9",))
    assert sorted(build_zipapp.collect_wheel(wheel, dict.fromkeys(names, b""))) == [
        "_native/x86_64/_cffi_backend.cpython-39-x86_64-linux-gnu.so",
        "cffi-2.0.0.dist-info/METADATA",
        "cffi-2.0.0.dist-info/licenses/LICENSE",
        "cffi-2.0.0.dist-info/sboms/x86_64/a.json",
        "cryptography/py.typed",
        "cryptography/x509/base.py",
    ]
    pure = Wheel("pyyaml-6.0.3-cp39-cp39-manylinux2014_x86_64.whl", "0" * 64, "any", PYTHONS)
    members = ["yaml/__init__.py", "yaml/_yaml.cpython-39-x86_64-linux-gnu.so", "_yaml/__init__.py"]
    assert list(build_zipapp.collect_wheel(pure, dict.fromkeys(members, b""))) == ["yaml/__init__.py"]


def write_tree(root: Path) -> Path:
    for name, text in {
        "kb.py": "",
        "README.md": "",
        "kubeup/__init__.py": '__version__ = "1.2.3"\n',
        "kubeup/__pycache__/x.cpython-39.py": "",
        "kubeup/phases/kubelet_start.py": "",
        "configs/manifests/etcd.yaml": "",
        "configs/manifests/.etcd.yaml.swp": "",
        "configs/manifests/etcd.yaml~": "",
        "configs/zipapp/__main__.py": "first",
        "tests/test_kb.py": "",
        "secret.pem": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_taken_from_the_source_tree(tmp_path: Path) -> None:
    members = build_zipapp.collect_source(write_tree(tmp_path))
    assert sorted(members) == [
        "README.md",
        "__main__.py",
        "configs/manifests/etcd.yaml",
        "kb.py",
        "kubeup/__init__.py",
        "kubeup/phases/kubelet_start.py",
    ]
    assert members["__main__.py"] == b"first"


def test_two_wheels_that_disagree_fail_the_build(tmp_path: Path) -> None:
    wheels = []
    for platform, text in (("linux_x86_64", "a"), ("linux_aarch64", "b")):
        wheel = Wheel(f"cryptography-1.0-cp39-abi3-{platform}.whl", "0" * 64, platform, PYTHONS)
        with zipfile.ZipFile(tmp_path / wheel.file, "w") as archive:
            archive.writestr("cryptography/utils.py", text)
        wheels.append(wheel)
    with pytest.raises(BuildError, match=r"linux_aarch64\.whl has another cryptography/utils\.py"):
        build_zipapp.plan_members(write_tree(tmp_path / "tree"), wheels, tmp_path)


def test_the_archive_does_not_depend_on_order_umask_or_folder(tmp_path: Path) -> None:
    members = {"b.py": b"b = 1\n" * 50, "a.py": b"a = 1\n", "__main__.py": b"print('ran')\n"}
    first = tmp_path / "one" / "kb.pyz"
    second = tmp_path / "other place" / "kb.pyz"
    digest = build_zipapp.write_zipapp(members, first, date=DATE)
    old = os.umask(0o077)
    try:
        again = build_zipapp.write_zipapp(dict(reversed(list(members.items()))), second, date=DATE)
    finally:
        os.umask(old)
    assert digest == again == hashlib.sha256(second.read_bytes()).hexdigest()
    assert first.read_bytes().startswith(b"#!/usr/bin/env python3\nPK\x03\x04")
    assert second.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "one" / "kb.pyz.sha256").read_text() == f"{digest}  kb.pyz\n"
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == ["__main__.py", "a.py", "b.py"]
        assert {info.date_time for info in archive.infolist()} == {DATE}
        assert {(info.create_system, info.external_attr >> 16) for info in archive.infolist()} == {(3, 0o100644)}


def test_a_build_replaces_the_file_and_leaves_the_running_one(tmp_path: Path) -> None:
    output = tmp_path / "kb.pyz"
    build_zipapp.write_zipapp({"a.py": b"1"}, output, date=DATE)
    with output.open("rb") as running:
        before = running.read()
        build_zipapp.write_zipapp({"a.py": b"2"}, output, date=DATE)
        running.seek(0)
        assert running.read() == before != output.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kb.pyz", "kb.pyz.sha256"]


def make_elf(*, machine: int, needed: str, versions: list[str]) -> bytes:
    """A shared library of nothing but what read_elf and strip_elf look at."""
    strings = b"\0" + b"\0".join(text.encode() for text in [needed, *versions]) + b"\0"
    dynamic = struct.pack("<QQQQ", 1, strings.index(needed.encode()), 0, 0)
    verneed = struct.pack("<HHIII", 1, len(versions), 1, 16, 0)
    for index, version in enumerate(versions):
        step = 16 if index + 1 < len(versions) else 0
        verneed += struct.pack("<IHHII", 0, 0, 0, strings.index(version.encode() + b"\0"), step)
    at, offsets = 64 + 56, []
    for part in (strings, dynamic, verneed):
        offsets.append(at)
        at += len(part)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, at, 0, 64, 56, 1, 64, 3, 0)
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, at, at, 4096)  # one segment, up to the section headers
    kinds = ((3, len(strings), 0), (6, len(dynamic), 0), (0x6FFFFFFE, len(verneed), 1))
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, offset, length, 0, entries, 0, 0)
        for (kind, length, entries), offset in zip(kinds, offsets)
    )
    return header + strings + dynamic + verneed + table


def test_an_elf_file_is_read() -> None:
    data = make_elf(machine=183, needed="libc.so.6", versions=["GLIBC_2.9", "GLIBC_2.17", "GCC_3.0", "GLIBC_PRIVATE"])
    assert build_zipapp.read_elf(data) == Elf(machine=183, glibc=(2, 17), needed=("libc.so.6",))
    with pytest.raises(BuildError, match="not a 64-bit little-endian ELF"):
        build_zipapp.read_elf(b"MZ" + data)


@pytest.mark.parametrize(
    ("elf", "words"),
    [
        (Elf(183, (2, 17), ()), "for ELF machine 183, not for x86_64"),
        (Elf(62, (2, 28), ()), r"needs glibc 2\.28"),
        (Elf(62, (2, 17), ("libc.so.6", "libffi.so.8")), r"needs libffi\.so\.8"),
    ],
)
def test_a_native_that_would_not_load_fails_the_build(elf: Elf, words: str) -> None:
    build_zipapp.check_elf(Elf(62, (2, 17), ("libc.so.6",)), arch="x86_64", member="a.so")
    with pytest.raises(BuildError, match=words):
        build_zipapp.check_elf(elf, arch="x86_64", member="a.so")


def test_the_index_names_the_modules() -> None:
    rust = make_elf(machine=62, needed="libc.so.6", versions=["GLIBC_2.17"])
    member = "_native/x86_64/cryptography/hazmat/bindings/_rust.abi3.so"
    stripped = hashlib.sha256(build_zipapp.strip_elf(rust)).hexdigest()
    assert build_zipapp.render_native_index({member: rust}) == (
        f"cryptography.hazmat.bindings._rust 2.17 {stripped} {member}\n"
    )


def test_an_elf_file_ends_with_its_last_segment() -> None:
    data = make_elf(machine=62, needed="libc.so.6", versions=["GLIBC_2.17"])
    (table,) = struct.unpack_from("<Q", data, 40)
    stripped = build_zipapp.strip_elf(data)
    assert stripped[64:] == data[64:table] and stripped[:40] == data[:40]
    assert struct.unpack_from("<Q", stripped, 40) == (0,) and struct.unpack_from("<HHH", stripped, 58) == (0, 0, 0)
    assert build_zipapp.strip_elf(stripped) == stripped


def test_the_sbom_lists_every_wheel_and_nothing_of_the_machine() -> None:
    licences = {f"{wheel.name}-{wheel.version}": "MIT" for wheel in LOCK}
    text = build_zipapp.render_sbom("1.2.3", LOCK, licences=licences)
    assert text == build_zipapp.render_sbom("1.2.3", list(reversed(LOCK)), licences=licences)
    document = json.loads(text)
    assert document["metadata"]["component"]["version"] == "1.2.3"
    hashes = {component["hashes"][0]["content"] for component in document["components"]}
    assert hashes == {wheel.sha256 for wheel in LOCK}
    assert "timestamp" not in text
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", document["serialNumber"])


def test_a_wheel_without_a_licence_fails_the_build() -> None:
    good = {"a-1.dist-info/METADATA": b"Name: a\nLicense-Expression: MIT\n\nText"}
    assert build_zipapp.read_licences(good) == {"a-1": "MIT"}
    with pytest.raises(BuildError, match="has no licence"):
        build_zipapp.read_licences({"a-1.dist-info/METADATA": b"Name: a\n\nLicense: x"})


def test_the_first_file_of_the_archive_parses_on_python_3_6() -> None:
    source = (REPO / "configs/zipapp/__main__.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    top = [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert top == ["sys"], "anything else could fail before the version is known"
