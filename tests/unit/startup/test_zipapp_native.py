"""kubeup/startup/native.py: which compiled module fits which interpreter, and what is said when none does."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import zipfile
import zipimport
from pathlib import Path
from typing import Optional

import pytest

from kubeup.errors import HostError, KbError, PreflightError, UsageError
from kubeup.startup import native as _native
from kubeup.startup import native_hook
from kubeup.startup.native import CFFI, RUST, Interpreter, Native, NativeFinder, pick_native
from kubeup.startup.native_hook import NativeHook

NATIVES = [
    Native(RUST, (2, 17), "0" * 64, f"_native/{arch}/cryptography/hazmat/bindings/_rust.abi3.so")
    for arch in ("aarch64", "x86_64")
] + [
    Native(CFFI, (2, 17), "0" * 64, f"_native/{arch}/_cffi_backend.cpython-3{minor}-{arch}-linux-gnu.so")
    for arch in ("aarch64", "x86_64")
    for minor in range(9, 15)
]


def interpreter(
    tag: str = "cpython-311-x86_64-linux-gnu",
    *,
    name: str = "cpython",
    version: tuple[int, int] = (3, 11),
    glibc: tuple[int, ...] = (2, 36),
) -> Interpreter:
    return Interpreter(name, version, (f".{tag}.so", ".abi3.so", ".so"), glibc)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize("minor", range(9, 15))
def test_every_supported_python_gets_its_own_file(arch: str, minor: int) -> None:
    running = interpreter(f"cpython-3{minor}-{arch}-linux-gnu", version=(3, minor), glibc=(2, 17))
    assert pick_native(NATIVES, CFFI, interpreter=running).member == (
        f"_native/{arch}/_cffi_backend.cpython-3{minor}-{arch}-linux-gnu.so"
    )
    assert (
        pick_native(NATIVES, RUST, interpreter=running).member
        == f"_native/{arch}/cryptography/hazmat/bindings/_rust.abi3.so"
    )


def test_a_debug_build_takes_the_ordinary_file() -> None:
    running = Interpreter(
        "cpython",
        (3, 12),
        (".cpython-312d-x86_64-linux-gnu.so", ".cpython-312-x86_64-linux-gnu.so", ".abi3.so", ".so"),
        (2, 28),
    )
    assert pick_native(NATIVES, CFFI, interpreter=running).suffix == ".cpython-312-x86_64-linux-gnu.so"


@pytest.mark.parametrize(
    ("running", "code", "words"),
    [
        (interpreter("cpython-313t-x86_64-linux-gnu", version=(3, 13)), "python-free-threaded", "ordinary python3.13"),
        (interpreter("cpython-312-x86_64-linux-musl", version=(3, 12), glibc=()), "python-without-glibc", "musl"),
        # An Alpine of old calls itself gnu in the suffix; the C library does not.
        (interpreter("cpython-39-x86_64-linux-gnu", version=(3, 9), glibc=()), "python-without-glibc", "musl"),
        (interpreter("cpython-311-s390x-linux-gnu"), "python-architecture", "aarch64, x86_64, not for s390x"),
        (interpreter("cpython-311-i386-linux-gnu"), "python-architecture", "not for i386"),
        (interpreter("cpython-311-darwin"), "python-architecture", "not for .cpython-311-darwin.so"),
        (interpreter("cpython-315-x86_64-linux-gnu", version=(3, 15)), "python-minor", "3.9, 3.10, 3.11, 3.12, 3.13"),
        (interpreter("pypy39-pp73-x86_64-linux-gnu", name="pypy"), "python-not-cpython", "/usr/bin/python3"),
        (interpreter(glibc=(2, 12)), "glibc-too-old", "it needs glibc 2.17, this system has 2.12"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(running: Interpreter, code: str, words: str) -> None:
    with pytest.raises(PreflightError) as caught:
        pick_native(NATIVES, CFFI, interpreter=running)
    error = caught.value
    assert error.code == code
    assert words in f"{error.cause} {error.remedy}"
    assert running.suffixes[0] in error.what
    assert "\n" not in f"{error} {error.remedy}"


def test_a_slim_archive_says_what_it_has() -> None:
    slim = [native for native in NATIVES if native.arch == "x86_64" and "-311-" in native.member]
    with pytest.raises(PreflightError, match=r"compiled modules for Python 3\.11$"):
        pick_native(slim, CFFI, interpreter=interpreter("cpython-312-x86_64-linux-gnu", version=(3, 12)))
    with pytest.raises(PreflightError, match=r"for x86_64, not for aarch64$"):
        pick_native(slim, CFFI, interpreter=interpreter("cpython-311-aarch64-linux-gnu"))


def test_the_running_interpreter_is_read() -> None:
    running = _native.read_interpreter()
    assert running.version == sys.version_info[:2]
    assert running.suffixes[0].startswith(f".cpython-3{sys.version_info[1]}")


def test_glibc_versions_compare_as_numbers() -> None:
    assert _native.parse_version("2.9") < _native.parse_version("2.17")


@pytest.mark.parametrize(
    ("answer", "version"), [("glibc 2.36", (2, 36)), ("", ()), (None, ()), ("NPTL 2.36", ()), (ValueError(), ())]
)
def test_another_c_library_has_no_glibc_version(
    monkeypatch: pytest.MonkeyPatch, answer: object, version: tuple[int, ...]
) -> None:
    def confstr(name: str) -> Optional[str]:
        assert name == "CS_GNU_LIBC_VERSION"
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    monkeypatch.setattr(os, "confstr", confstr)
    assert _native.read_glibc() == version


def test_a_checkout_has_no_hook() -> None:
    before = list(sys.meta_path)
    native_hook.install()
    assert sys.meta_path == before
    assert not any(isinstance(finder, NativeHook) for finder in before)


def test_the_hook_asks_for_what_the_finder_finds() -> None:
    assert {"cryptography", *_native.MODULES} == set(native_hook.NAMES)
    hook = NativeHook("/opt/kb.pyz", FakeZip({}))
    assert hook.find_spec("yaml") is None
    assert hook.find_spec("cryptography.x509") is None
    with pytest.raises(HostError, match="damaged"):
        hook.find_spec(CFFI)


class FakeZip:
    """The archive's members; an exception among them is raised."""

    def __init__(self, members: dict[str, object]) -> None:
        self._members = members

    def get_data(self, path: str) -> bytes:
        member = self._members.get(path[len("/opt/kb.pyz/") :], OSError(0, "", path))
        if isinstance(member, Exception):
            raise member
        assert isinstance(member, bytes)
        return member


def finder_of(members: dict[str, object]) -> NativeFinder:
    return NativeFinder("/opt/kb.pyz", FakeZip(members))


def test_only_the_two_modules_are_found() -> None:
    finder = finder_of({})
    assert finder.find_spec("yaml") is None
    assert finder.find_spec("cryptography") is None
    assert finder.find_spec("cryptography.x509") is None


def test_a_native_with_another_sha256_is_not_loaded() -> None:
    good = Native(CFFI, (2, 17), hashlib.sha256(b"good").hexdigest(), "_native/x86_64/a.so")
    assert b"".join(finder_of({good.member: b"good"}).stream_native(good)) == b"good"
    with pytest.raises(HostError) as caught:
        list(finder_of({good.member: b"evil"}).stream_native(good))
    assert caught.value.code == "zipapp-damaged"
    assert "sha256sum -c kb.pyz.sha256" in caught.value.remedy
    assert hashlib.sha256(b"evil").hexdigest() in caught.value.cause


def real_zip(path: Path, data: bytes, extra: bytes = b"") -> NativeFinder:
    info = zipfile.ZipInfo("_native/a.so")
    info.compress_type, info.extra = zipfile.ZIP_DEFLATED, extra
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("first.py", "x = 1\n")
        archive.writestr(info, data)
    return NativeFinder(str(path), zipimport.zipimporter(str(path)))


@pytest.mark.parametrize("extra", [b"", b"\x0a\x00\x04\x00kbkb"])
def test_a_member_comes_in_pieces(tmp_path: Path, extra: bytes) -> None:
    data = random.Random(1).randbytes(4_000_000)
    finder = real_zip(tmp_path / "kb.pyz", data, extra)
    native = Native(CFFI, (2, 17), hashlib.sha256(data).hexdigest(), "_native/a.so")
    pieces = list(finder.stream_native(native))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) < len(data) / 2


def test_a_member_that_ends_too_early_is_damage(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(4_000_000)
    finder = real_zip(tmp_path / "kb.pyz", data)
    native = Native(CFFI, (2, 17), hashlib.sha256(data).hexdigest(), "_native/a.so")
    os.truncate(tmp_path / "kb.pyz", 200_000)
    with pytest.raises(HostError, match=r"_native/a\.so cannot be read: the file ends too early"):
        list(finder.stream_native(native))


def test_a_member_that_is_no_deflate_stream_is_damage(tmp_path: Path) -> None:
    path, data = tmp_path / "kb.pyz", b"kb" * 100_000
    finder = real_zip(path, data)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"_native/a.so") + len(b"_native/a.so")
    whole[at : at + 8] = b"\xff" * 8
    path.write_bytes(whole)
    native = Native(CFFI, (2, 17), hashlib.sha256(data).hexdigest(), "_native/a.so")
    with pytest.raises(HostError, match=r"_native/a\.so cannot be read"):
        list(finder.stream_native(native))


@pytest.mark.parametrize("members", [{}, {_native.INDEX: b"a b"}, {_native.INDEX: EOFError("short")}])
def test_an_index_that_cannot_be_read_is_damage(members: dict[str, object]) -> None:
    with pytest.raises(HostError, match=r"/opt/kb\.pyz is damaged: _native/index\.txt cannot be read"):
        finder_of(members).find_spec(RUST)


def test_the_choice_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_native.CHOICE, "distro")
    with pytest.raises(UsageError, match="KB_CRYPTOGRAPHY=distro is not known"):
        finder_of({}).find_spec("cryptography")
    monkeypatch.setenv(_native.CHOICE, "system")
    assert finder_of({}).find_spec(RUST) is None
    monkeypatch.setattr(sys, "path", ["/opt/kb.pyz"])
    with pytest.raises(PreflightError) as caught:
        finder_of({}).find_spec("cryptography")
    assert caught.value.code == "system-cryptography-missing"


def test_a_file_on_disk_is_private_and_does_not_stay(tmp_path: Path) -> None:
    with _native._InFolder(str(tmp_path), [b"co", b"de"]) as path:
        assert Path(path).read_bytes() == b"code"
        assert Path(path).stat().st_mode & 0o777 == 0o600
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        assert Path(path).parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_anyone_may_rename_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="not sticky"), _native._InFolder(str(tmp_path), [b"co", b"de"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_memory_comes_first_then_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch")
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: 0, raising=False)
    places = [place for place, _ in _native.unpackers("/opt/kb.pyz")]
    assert places == ["memory", "/scratch", "/tmp", "/var/tmp", "/run", "/dev/shm", "/opt"]
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delenv("TMPDIR")
    assert [place for place, _ in _native.unpackers("/tmp/kb.pyz")] == ["/tmp", "/var/tmp", "/run", "/dev/shm"]


def test_when_nothing_loads_every_place_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    native = Native(CFFI, (2, 17), hashlib.sha256(b"no ELF").hexdigest(), "_native/x86_64/_cffi_backend.so")
    monkeypatch.setattr(
        _native,
        "unpackers",
        lambda archive: [
            (str(tmp_path), lambda data: _native._InFolder(str(tmp_path), data)),
            ("/nowhere", lambda data: _native._InFolder("/nowhere", data)),
        ],
    )
    from importlib.machinery import ModuleSpec

    loader = _native.NativeLoader(finder_of({native.member: b"no ELF"}), native)
    with pytest.raises(KbError) as caught:
        loader.create_module(ModuleSpec(CFFI, loader))
    assert caught.value.code == "native-not-loadable"
    assert f"{tmp_path}: " in caught.value.cause and "/nowhere: " in caught.value.cause
    assert list(tmp_path.iterdir()) == []
