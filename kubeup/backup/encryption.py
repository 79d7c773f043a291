"""Encrypts a backup for others, and opens an encrypted one, with the field's own programs: age and gpg.

kb has no cryptography of its own here. The plain backup passes through a pipe, and is never on a disk that an encrypted one goes to.
Recipients are public; a key is only named by its file, or is in root's keyring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from kubeup.errors import HostError, UsageError
from kubeup.frozen_values import frozen
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.local_host import LocalHost
from kubeup.node.crictl import install_command

_PACKAGES = {"age": "age", "gpg": "gnupg"}
_WRONG_KEY = (
    "no identity matched",
    "no secret key",
    "bad session key",
    "bad passphrase",
    "incorrect passphrase",
    "no identities found",
)
"""What age and gpg say, in lower case, if a key does not fit."""


@frozen
class Recipients:
    """Who may open the backup. age: public keys (age1..., ssh-...), or files of them; gpg: keys in root's keyring."""

    age: tuple[str, ...] = ()
    gpg: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """`age`, `gpg`, or "" if the backup stays plain."""
        return "age" if self.age else "gpg" if self.gpg else ""


def check_recipients(local: LocalHost, recipients: Recipients) -> None:
    """Encrypt nothing for them, before anything is done. Raises UsageError (usage), (recipient-refused); HostError
    (encryption-missing)."""
    if recipients.age and recipients.gpg:
        raise UsageError(
            "--age and --gpg are both given",
            cause="a backup is encrypted once",
            remedy="give one of them; each may be repeated",
            code="usage",
        )
    if recipients.program:
        require_program(local, recipients.program)
        for _ in encrypt(local, recipients, chunks=()):
            pass


def require_program(local: LocalHost, program: str) -> None:
    """Raises HostError (encryption-missing)."""
    if not local.which(program):
        raise HostError(
            f"there is no {program} on this machine",
            cause=f"backups are encrypted and opened with {program}: kb has no cryptography of its own",
            remedy=f"{install_command(local, _PACKAGES[program])}; or pass the backup through a program that is there: "
            "kb backup -o - | PROGRAM",
            code="encryption-missing",
        )


def encrypt(local: LocalHost, recipients: Recipients, *, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The encrypted chunks; the chunks themselves if there is no recipient. Raises UsageError (recipient-refused), and what `chunks`
    raises."""
    if not recipients.program:
        yield from chunks
        return
    argv = ["age", "--encrypt"]
    for word in recipients.age:
        argv += ["-R" if word.startswith(("/", "./")) else "-r", word]
    if recipients.program == "gpg":
        # the recipient is named by the operator: whether others trust that key does not matter
        argv = ["gpg", "--batch", "--no-tty", "--trust-model", "always", "--compress-algo", "none", "--encrypt"]
        argv += [word for one in recipients.gpg for word in ("--recipient", one)]
    try:
        yield from local.filter(argv, chunks)
    except ProgramFailed as error:
        raise UsageError(
            f"{error.what}, so nothing is encrypted",
            cause=error.cause,
            remedy="give a recipient that it knows: --age age1..., --age FILE, or for --gpg a key that gpg --list-keys shows",
            code="recipient-refused",
            details=error.details,
        ) from error


def decrypt(local: LocalHost, by: str, *, identity: str, chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The plain bytes of what age or gpg encrypted. identity: the file of age's key; gpg finds its own.

    Raises HostError: encryption-missing, backup-key-wrong, backup-damaged.
    """
    require_program(local, by)
    if by == "age" and not local.exists(Path(identity).absolute()):
        raise HostError(
            f"{what} cannot be opened",
            cause=f"there is no file {identity}, which has to hold age's key",
            remedy="name the file of the key: --identity FILE",
            code="backup-key-wrong",
        )
    argv = ["age", "--decrypt", "-i", identity] if by == "age" else ["gpg", "--batch", "--no-tty", "--decrypt"]
    try:
        yield from local.filter(argv, chunks)
    except ProgramFailed as error:
        _refuse(error, by, what=what)


def _refuse(error: ProgramFailed, by: str, *, what: str) -> NoReturn:
    if any(words in error.said.lower() for words in _WRONG_KEY):
        raise HostError(
            f"{what} cannot be opened with this key",
            cause=f"{by} says: {error.cause}",
            remedy="give the key that belongs to the recipient: --identity FILE"
            if by == "age"
            else "import the secret key that belongs to the recipient: gpg --import FILE",
            code="backup-key-wrong",
            details=error.details,
        ) from error
    raise HostError(
        f"{what} is damaged, or cut off",
        cause=f"{by} says: {error.cause}",
        remedy="copy it again from where it was made, or take the backup before it",
        code="backup-damaged",
        details=error.details,
    ) from error
