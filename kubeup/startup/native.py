"""The compiled modules of kb.pyz: how Python finds and loads them.

Python cannot load a shared library from inside a zip. This finder handles the two that cryptography needs. At the first import it
unpacks the one that fits this interpreter into memory (memfd), or else into a private temporary file that is removed once it is
loaded. Nothing stays on disk, so nothing can be stale, shared or tampered with.

This module chooses among the files in _native/ of the archive, and implements KB_CRYPTOGRAPHY. It works below Host, so it opens
files itself and imports nothing of kb but its errors. native_hook.py calls it, and only in kb.pyz. kubeadm has no counterpart, since
it is a static binary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from kubeup.errors import HostError, PreflightError
else:
    Loader = object  # importlib.abc takes longer to import than this whole module

INDEX = "_native/index.txt"
"""One line per file: module, required glibc, sha256, member. Written by build_zipapp.py."""

RUST = "cryptography.hazmat.bindings._rust"
CFFI = "_cffi_backend"
MODULES = (RUST, CFFI)

CHOICE = "KB_CRYPTOGRAPHY"
"""An environment variable: `bundled`, the default, or `system` for the distribution's python3-cryptography."""

_DEFLATED = 8
_NAME_LENGTH_AT = 26
"""The offset, in a member's local header, of the lengths of its name and its extra field, with which the header ends (PKWARE's
APPNOTE.TXT, 4.3.7)."""

_PIECE = 1 << 20
"""How many bytes of the archive are read at a time. After each piece the thread needs the GIL, which the other thread holds."""

_SYSTEM_REMEDY = f"install python3-cryptography of the distribution, then run kb with {CHOICE}=system"
_COPY_REMEDY = "copy kb.pyz to the node again and check it: sha256sum -c kb.pyz.sha256"


class Native(NamedTuple):
    """One compiled module in the archive."""

    module: str
    glibc: tuple[int, ...]
    sha256: str
    member: str

    @property
    def arch(self) -> str:
        return self.member.split("/")[1]

    @property
    def suffix(self) -> str:
        """The file name without the module's name: `.abi3.so`, `.cpython-311-x86_64-linux-gnu.so`."""
        return "." + self.member.rpartition("/")[2].partition(".")[2]


class Interpreter(NamedTuple):
    """What decides which file fits. The suffixes contain the interpreter's architecture, minor version, libc and threading;
    os.uname() describes the kernel, which may differ (a 32-bit Python on a 64-bit kernel)."""

    implementation: str
    version: tuple[int, int]
    suffixes: tuple[str, ...]
    glibc: tuple[int, ...]

    def describe(self) -> str:
        return f"{self.implementation} {self.version[0]}.{self.version[1]} ({self.suffixes[0]})"


def read_interpreter() -> Interpreter:
    """The running interpreter."""
    from importlib.machinery import EXTENSION_SUFFIXES

    return Interpreter(
        sys.implementation.name, (sys.version_info[0], sys.version_info[1]), tuple(EXTENSION_SUFFIXES), read_glibc()
    )


def read_glibc() -> tuple[int, ...]:
    """The version of the running glibc; () if the C library is another one."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ()
    name, _, version = text.partition(" ")
    return parse_version(version) if name == "glibc" else ()


def parse_version(text: str) -> tuple[int, ...]:
    """`2.17` -> (2, 17)."""
    return tuple(int(number) for number in text.split(".") if number.isdigit())


def parse_index(text: str) -> list[Native]:
    """Parse the lines of INDEX. Raises ValueError for a malformed line."""
    rows = (line.split() for line in text.splitlines())
    return [Native(module, parse_version(glibc), sha256, member) for module, glibc, sha256, member in rows]


def pick_native(natives: Sequence[Native], module: str, *, interpreter: Interpreter) -> Native:
    """The file with `module` for `interpreter`. Raises PreflightError if none would work."""
    arch, libc, flags = _parse_suffix(interpreter.suffixes[0])
    if interpreter.implementation != "cpython":
        raise _unfit(
            interpreter,
            "its compiled modules are for CPython",
            remedy="run it with CPython: /usr/bin/python3 kb.pyz",
            code="python-not-cpython",
        )
    if "t" in flags:
        raise _unfit(
            interpreter,
            "this is a free-threaded build, and kb.pyz has modules only for the ordinary build",
            remedy=f"run it with the ordinary python{interpreter.version[0]}.{interpreter.version[1]} or /usr/bin/python3",
            code="python-free-threaded",
        )
    if libc != "gnu" or not interpreter.glibc:
        cause = "its compiled modules need glibc, and the C library here is another one (musl, as on Alpine)"
        raise _unfit(interpreter, cause, code="python-without-glibc")
    of_arch = [native for native in natives if native.module == module and native.arch == arch]
    if not of_arch:
        cause = f"this kb.pyz has compiled modules for {_join(native.arch for native in natives)}, not for {arch}"
        raise _unfit(interpreter, cause, code="python-architecture")
    fitting = [native for native in of_arch if native.suffix in interpreter.suffixes]
    if not fitting:
        raise _unfit(
            interpreter,
            f"this kb.pyz has compiled modules for Python {_join(_minor_of(native.suffix) for native in of_arch)}",
            remedy=f"run it with one of these, or build one for this Python: {_SYSTEM_REMEDY}",
            code="python-minor",
        )
    native = fitting[0]
    if interpreter.glibc < native.glibc:
        cause = f"it needs glibc {_dotted(native.glibc)}, this system has {_dotted(interpreter.glibc)}"
        raise _unfit(interpreter, cause, code="glibc-too-old")
    return native


def _unfit(interpreter: Interpreter, cause: str, *, code: str, remedy: str = "") -> PreflightError:
    from kubeup.errors import PreflightError

    what = f"kb.pyz cannot load cryptography into {interpreter.describe()}"
    return PreflightError(what, cause=cause, remedy=remedy or _SYSTEM_REMEDY, code=code)


def _parse_suffix(suffix: str) -> tuple[str, str, str]:
    """`.cpython-313t-x86_64-linux-gnu.so` -> ("x86_64", "gnu", "t"). For an unknown format, the whole text is the architecture,
    which no file has."""
    parts = suffix[1 : -len(".so")].split("-")
    if len(parts) != 5 or parts[3] != "linux":
        return suffix, "gnu", ""
    return parts[2], parts[4], parts[1].lstrip("0123456789")


def _minor_of(suffix: str) -> str:
    """`.cpython-311-x86_64-linux-gnu.so` -> `3.11`."""
    digits = "".join(char for char in suffix.partition("-")[2].partition("-")[0] if char.isdigit())
    return f"{digits[:1]}.{digits[1:]}" if digits else "3.9+"


def _join(words: Iterable[str]) -> str:
    """`3.9, 3.10, 3.11`: the words without duplicates, in numeric order."""
    return ", ".join(sorted(set(words), key=lambda word: (parse_version(word), word)))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version)


def _damaged(archive: str, problem: str) -> HostError:
    from kubeup.errors import HostError

    return HostError(f"{archive} is damaged", cause=problem, remedy=_COPY_REMEDY, code="zipapp-damaged")


class NativeFinder:
    """Finds MODULES inside the archive, and with KB_CRYPTOGRAPHY=system cryptography itself outside of it."""

    def __init__(self, archive: str, zip_loader: Any) -> None:
        self.archive = archive
        self._zip = zip_loader

    def find_spec(self, name: str) -> Optional[ModuleSpec]:
        if name == "cryptography":
            return self._find_cryptography()
        if name not in MODULES or self._is_system():
            return None
        from importlib.machinery import ModuleSpec

        natives = self._read_index()
        interpreter = read_interpreter()
        # Look for both before loading the first one: with only one, the import would fail without a remedy.
        picked = {module: pick_native(natives, module, interpreter=interpreter) for module in MODULES}[name]
        return ModuleSpec(name, NativeLoader(self, picked), origin=f"{self.archive}/{picked.member}")

    def stream_native(self, native: Native) -> Iterator[bytes]:
        """The bytes of one file, in pieces: reading it at once would cost a dozen milliseconds of page faults. Raises HostError at
        the end if the checksum does not match, so the bytes must not be used before that."""
        import hashlib

        digest = hashlib.sha256()
        for piece in self._stream_member(native.member):
            digest.update(piece)
            yield piece
        if digest.hexdigest() != native.sha256:
            raise _damaged(self.archive, f"the sha256 of {native.member} is {digest.hexdigest()}, not {native.sha256}")

    def _stream_member(self, member: str) -> Iterator[bytes]:
        """Read a member without zipimport, which knows its offset, but can only return it in one piece."""
        import zipimport
        import zlib

        entry = getattr(zipimport, "_zip_directory_cache", {}).get(self.archive, {}).get(member.replace("/", os.sep))
        if entry is None or entry[1] != _DEFLATED:
            yield self._read_member(member)
            return
        left, header_at = entry[2], entry[4]
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            with open(self.archive, "rb") as archive:
                archive.seek(header_at + _NAME_LENGTH_AT)
                lengths = archive.read(4)
                archive.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
                while left > 0:
                    piece = archive.read(min(_PIECE, left))
                    if not piece:
                        raise EOFError("the file ends too early")
                    left -= len(piece)
                    yield inflate.decompress(piece)
            yield inflate.flush()
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(self.archive, f"{member} cannot be read: {error}") from None

    def _read_index(self) -> list[Native]:
        try:
            return parse_index(self._read_member(INDEX).decode())
        except ValueError as error:
            raise _damaged(self.archive, f"{INDEX} cannot be read: {error}") from None

    def _read_member(self, member: str) -> bytes:
        import zlib

        try:
            return bytes(self._zip.get_data(f"{self.archive}{os.sep}{member}"))
        except (OSError, EOFError, ImportError, zlib.error) as error:
            raise _damaged(self.archive, f"{member} cannot be read: {error}") from None

    def _is_system(self) -> bool:
        choice = os.environ.get(CHOICE) or "bundled"
        if choice not in ("bundled", "system"):
            from kubeup.errors import UsageError

            raise UsageError(
                f"{CHOICE}={choice} is not known",
                cause="it is `bundled` (kb.pyz's own cryptography, the default) or `system` (the distribution's)",
                remedy=f"unset {CHOICE}",
                code="cryptography-choice",
            )
        return choice == "system"

    def _find_cryptography(self) -> Optional[ModuleSpec]:
        if not self._is_system():
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec("cryptography", [entry for entry in sys.path if entry != self.archive])
        if spec is None:
            from kubeup.errors import PreflightError

            raise PreflightError(
                f"{CHOICE}=system, and this system has no cryptography for {sys.executable}",
                cause="no folder of sys.path holds it (python3 -I leaves out user folders, -S all site-packages)",
                remedy=f"install python3-cryptography of the distribution, or unset {CHOICE}",
                code="system-cryptography-missing",
            )
        return spec


class NativeLoader(Loader):
    """Unpacks and loads one compiled module."""

    def __init__(self, finder: NativeFinder, native: Native) -> None:
        self._finder = finder
        self._native = native
        self._loaded_from = ""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from importlib.machinery import ExtensionFileLoader, ModuleSpec

        refusals = []
        # A kernel or mount that forbids executable memory refuses at dlopen, not when the file is created.
        for place, unpack in unpackers(self._finder.archive):
            try:
                with unpack(self._finder.stream_native(self._native)) as path:
                    loader = ExtensionFileLoader(spec.name, path)
                    module = loader.create_module(ModuleSpec(spec.name, loader, origin=path))
                    self._loaded_from = path
                    return module
            except (OSError, ImportError) as error:
                refusals.append(f"{place}: {error}")
        from kubeup.errors import HostError

        raise HostError(
            f"{self._native.member} of {self._finder.archive} cannot be loaded",
            cause="; ".join(refusals),
            remedy="set TMPDIR to a folder with 16 MB free on a file system that is mounted without noexec",
            code="native-not-loadable",
        )

    def exec_module(self, module: ModuleType) -> None:
        from importlib.machinery import ExtensionFileLoader

        ExtensionFileLoader(module.__name__, self._loaded_from).exec_module(module)


class _InMemory:
    """A file in memory. It stays open: glibc identifies a library by its name, and /proc/self/fd/3 must not come to mean another
    one."""

    def __init__(self, data: Iterable[bytes]) -> None:
        self._data = data

    def __enter__(self) -> str:
        descriptor = os.memfd_create("kb", os.MFD_CLOEXEC)
        try:
            _write_all(descriptor, self._data)
        except BaseException:
            os.close(descriptor)
            raise
        return f"/proc/self/fd/{descriptor}"

    def __exit__(self, *exception: object) -> None:
        pass


class _InFolder:
    """A file of mode 0600 in its own folder of mode 0700 below `parent`. Both are removed after loading."""

    def __init__(self, parent: str, data: Iterable[bytes]) -> None:
        self._parent = parent
        self._data = data
        self._folder = ""

    def __enter__(self) -> str:
        import stat
        import tempfile

        mode = os.stat(self._parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"anyone may rename files in {self._parent}: it is world-writable and not sticky")
        self._folder = tempfile.mkdtemp(prefix="kb-", dir=self._parent)
        path = os.path.join(self._folder, "native.so")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, self._data)
            finally:
                os.close(descriptor)
        except BaseException:
            self.__exit__()
            raise
        return path

    def __exit__(self, *exception: object) -> None:
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)


def _write_all(descriptor: int, data: Iterable[bytes]) -> None:
    for piece in data:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def unpackers(archive: str) -> Iterator[tuple[str, Any]]:
    """The places to unpack to, best first: a name for messages, and a function that makes a context manager from the pieces."""
    if hasattr(os, "memfd_create"):
        yield "memory", _InMemory
    folders = (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/run", "/dev/shm", os.path.dirname(archive))  # noqa: S108
    for folder in dict.fromkeys(folder for folder in folders if folder):
        yield folder, lambda data, parent=folder: _InFolder(parent, data)
