"""kubeup/backup/destination.py: folders, and what the field's programs keep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from kubeup.backup import destination
from kubeup.errors import KbError
from kubeup.machine.filters import ProgramFailed
from kubeup.machine.host import Argv, CommandResult, shown_argv
from tests.unit.commands.test_launcher import Machine

NAME = "kb-cp1-20261129T231407Z.tar"


class Remote(Machine):
    """A machine with rclone, aws and mc, and what they were told."""

    has: tuple[str, ...] = ("rclone", "aws", "mc")
    fails = False

    def which(self, program: str) -> Path | None:
        return Path("/usr/bin") / program if program in self.has else None

    def filter(self, argv: Argv, chunks: Iterable[bytes]) -> Iterator[bytes]:
        data = b"".join(chunks)
        if self.fails:
            raise ProgramFailed("rclone", status=1, said="403 Forbidden")
        self.commands.append(f"{' '.join(shown_argv(argv))} < {data.decode()}")
        yield b""


def code_of(host: Machine, to: str) -> str:
    with pytest.raises(KbError) as caught:
        destination.find_destination(host, to)
    return caught.value.code


def test_a_folder(tmp_path: Path) -> None:
    host = Remote(tmp_path)
    assert code_of(host, "/backup") == "destination-missing"
    host.make_dir(Path("/backup"))
    found = destination.find_destination(host, "/backup")
    found.write(NAME, [b"a", b"b"])
    assert found.names() == [NAME] and host.read_bytes(Path("/backup") / NAME) == b"ab"
    found.remove(NAME)
    assert found.names() == []


@pytest.mark.parametrize(
    ("to", "place", "lists", "shown", "writes", "removes"),
    [
        ("rclone:vault:k8s", "vault:k8s/", "rclone lsf --files-only vault:k8s/", f"{NAME}\n", "rclone rcat", "rclone deletefile"),
        ("rclone:vault:", "vault:", "rclone lsf --files-only vault:", f"{NAME}\n", "rclone rcat", "rclone deletefile"),
        ("s3://bucket/k8s/", "s3://bucket/k8s/", "aws s3 ls s3://bucket/k8s/", f"2026-11-29 23:14:07  1000 {NAME}\n",
         "aws s3 cp --only-show-errors -", "aws s3 rm --only-show-errors"),
        ("mc:minio/bucket", "minio/bucket/", "mc ls --json minio/bucket/", json.dumps({"key": NAME}) + "\n", "mc --quiet pipe", "mc rm --quiet"),
    ],
)  # fmt: skip
def test_what_a_program_keeps(
    tmp_path: Path, to: str, place: str, lists: str, shown: str, writes: str, removes: str
) -> None:
    host = Remote(tmp_path)
    host.answers.update({lists: shown, f"{removes} {place}{NAME}": ""})
    found = destination.find_destination(host, to)
    assert found.place_of(NAME) == place + NAME
    assert found.names() == [NAME]
    found.write(NAME, [b"ab"])
    assert host.commands[-1] == f"{writes} {place}{NAME} < ab"
    found.remove(NAME)


def test_what_a_program_says_when_it_fails(tmp_path: Path) -> None:
    host = Remote(tmp_path)
    found = destination.find_destination(host, "s3://bucket")
    host.answers["aws s3 ls"] = CommandResult((), 1)
    assert found.names() == []  # nothing is there yet
    host.answers["aws s3 ls"] = CommandResult((), 254, stderr="AccessDenied")
    host.fails = True
    for act in (found.names, lambda: found.write(NAME, [b""])):
        with pytest.raises(KbError) as caught:
            act()
        assert caught.value.code == "destination-failed"


def test_midnight_commander_is_not_minio_s_mc(tmp_path: Path) -> None:
    host = Remote(tmp_path)
    host.answers["mc --version"] = "GNU Midnight Commander 4.8.29\nBuilt with GLib 2.74.6\n"
    with pytest.raises(KbError) as caught:
        destination.find_destination(host, "mc:minio/bucket")
    assert caught.value.code == "destination-missing" and "Midnight Commander" in caught.value.cause
    host.answers["mc --version"] = "mc version RELEASE.2025-08-13T08-35-41Z\n"
    assert destination.find_destination(host, "mc:minio/bucket").place_of("x") == "minio/bucket/x"


def test_what_is_no_destination(tmp_path: Path) -> None:
    host = Remote(tmp_path)
    assert {code_of(host, to) for to in ("backup", "ftp://x", "s3:", "rclone:")} == {"usage"}
    host.has = ()
    assert {code_of(host, to) for to in ("s3://b/c", "rclone:v:k", "mc:a/b")} == {"destination-missing"}
