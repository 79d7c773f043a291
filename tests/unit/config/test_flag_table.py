"""A flag is one row, and its row agrees with the documents, the commands and kubeadm."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import kb
from kubeup.config import flags, schema
from kubeup.config.flag_table import BY_NAME, EVERYWHERE, FLAGS, WORDS, Flag, flags_of
from kubeup.config.flags import INIT_FIELDS, JOIN_FIELDS, RESET_FIELDS, check_mixing
from kubeup.errors import UsageError
from kubeup.kubeadm import program
from tests import make_docs

PLACES = [(flag, *place.split(".", 1)) for flag in (*FLAGS, *WORDS) for place in flag.sets]

OF_NODE = {
    "apiserver-advertise-address", "apiserver-bind-port", "certificate-key", "config", "cri-socket", "dry-run",
    "ignore-preflight-errors", "node-name", "patches", "skip-phases", "token",
}  # fmt: skip
OF_INIT = {
    *OF_NODE, "apiserver-cert-extra-sans", "cert-dir", "control-plane-endpoint", "feature-gates", "image-repository",
    "kubernetes-version", "pod-network-cidr", "service-cidr", "service-dns-domain", "skip-certificate-key-print",
    "skip-token-print", "token-ttl", "upload-certs",
}  # fmt: skip
OF_PHASES = {
    "kubeconfig", "kubeconfig-dir", "apiserver-extra-args", "controller-manager-extra-args", "scheduler-extra-args",
}  # fmt: skip
OF_JOIN = {
    *OF_NODE, "control-plane", "discovery-file", "discovery-token", "discovery-token-ca-cert-hash",
    "discovery-token-unsafe-skip-ca-verification", "tls-bootstrap-token",
}  # fmt: skip
KUBEADM = {
    "init": OF_INIT,
    "init phase": OF_INIT | OF_PHASES,
    "join": OF_JOIN,
    "join phase": OF_JOIN,
    "reset": {
        "cert-dir", "cleanup-tmp-dir", "config", "cri-socket", "dry-run", "force", "ignore-preflight-errors", "kubeconfig",
        "skip-phases",
    },
    "token create": {
        "kubeconfig", "config", "certificate-key", "description", "groups", "print-join-command", "ttl", "usages", "dry-run",
    },
    "token list": {"kubeconfig", "dry-run", "output", "show-managed-fields", "allow-missing-template-keys"},
    "config images list": {
        "config", "feature-gates", "image-repository", "kubernetes-version", "output", "kubeconfig", "show-managed-fields",
        "allow-missing-template-keys",
    },
    "config images pull": {"config", "cri-socket", "feature-gates", "image-repository", "kubernetes-version", "kubeconfig"},
    "kubeconfig user": {"client-name", "config", "org", "token", "validity-period", "cert-dir", "server"},
}  # fmt: skip
"""kubeadm's flags, by its own --help."""


def test_a_flag_has_one_row() -> None:
    names = Counter(flag.name for flag in (*FLAGS, *EVERYWHERE, *WORDS))
    assert max(names.values()) == 1
    assert len(BY_NAME) == len(FLAGS) + len(EVERYWHERE)


def test_every_command_of_a_row_is_there_and_takes_it() -> None:
    commands = {command.name: command.options for command in kb.COMMANDS}
    commands.update({f"kubeadm {one.name}": one.options for one in program.kubeadm_commands(kb.COMMANDS)})
    for flag in FLAGS:
        for name in {*flag.of, *flag.added_to}:
            assert flag.name in commands[name]
    assert {flag.name for flag in FLAGS if not (flag.of or flag.added_to)} == {
        "vmodule", "rootfs", "show-managed-fields", "allow-missing-template-keys",
    }  # fmt: skip


def test_a_command_has_no_letter_twice() -> None:
    """But for backup: -o names its file, as everywhere where a file is written, and the form of its report is --output, as everywhere
    else. The first flag of the table has the letter (parser.py)."""
    for command in kb.COMMANDS:
        if command.name == "backup":
            assert command.options.index("output-file") < command.options.index("output")
            continue
        letters = [BY_NAME[name].short for name in command.options if BY_NAME[name].short]
        assert len(letters) == len(set(letters)), command.name


@pytest.mark.parametrize(("flag", "kind", "path"), PLACES, ids=lambda value: getattr(value, "name", value))
def test_a_row_takes_what_its_field_is(flag: Flag, kind: str, path: str) -> None:
    found = flags._type_at(kind, path)  # KeyError where the schema has no such field
    if flag.name in ("endpoint", "token-ttl", "soak"):
        assert flag.takes == "text"
    elif found is schema.BOOL or isinstance(found, schema.Struct):
        assert flag.takes == "flag"
    elif found is schema.NUMBER:
        assert flag.takes == "int"
    elif isinstance(found, schema.ListOf):
        assert flag.takes == "list"
    else:
        assert flag.takes == "text" and found in (
            schema.TEXT,
            schema.SECRET,
            *map(schema.MapOf, (schema.TEXT, schema.BOOL)),
        )


def test_a_flag_says_one_field_of_a_kind() -> None:
    for flag in FLAGS:
        kinds = [place.partition(".")[0] for place in flag.sets]
        assert len(kinds) == len(set(kinds)), flag.name


@pytest.mark.parametrize("fields", [INIT_FIELDS, JOIN_FIELDS, RESET_FIELDS])
def test_beside_a_file_stand_kubeadm_s_few_and_kb_s_own(fields: flags.Fields) -> None:
    """ValidateMixedArguments of cmd/kubeadm/app/apis/kubeadm/validation/validation.go"""
    few = {"cleanup-tmp-dir", "dry-run", "force", "ignore-preflight-errors", "node-name", "skip-phases"}
    for name, (kind, path) in fields.items():
        if name in few or kind == "KbConfiguration":
            check_mixing("f.yaml", {name: "x"}, fields=fields)
            continue
        with pytest.raises(UsageError) as caught:
            check_mixing("f.yaml", {name: "x"}, fields=fields)
        assert caught.value.code == "mixed-flags" and f"--{name} is {path} of {kind}" in caught.value.cause


@pytest.mark.parametrize("name", KUBEADM)
def test_kubeadm_s_commands_have_kubeadm_s_flags(name: str) -> None:
    has = {command.name: set(command.options) for command in program.kubeadm_commands(kb.COMMANDS)}
    assert has[name] - {"vmodule", "rootfs"} == KUBEADM[name]


def test_what_kb_adds_to_a_command_is_not_kubeadm_s_as_well() -> None:
    assert not [flag.name for flag in FLAGS if set(flag.of) & set(flag.added_to)]
    assert set(flags_of("init")) - set(KUBEADM["init"]) == {flag.name for flag in FLAGS if "init" in flag.added_to}


def test_the_page_of_flags_has_them_all() -> None:
    page = (Path(kb.__file__).parent / "docs/flags.md").read_text()
    assert page == make_docs.render_flags()
    assert all(f"| `--{flag.name}` |" in page for flag in FLAGS if not flag.is_hidden)
