"""The command line: words, flags, help, errors, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import kb
from kubeup import __version__
from kubeup.cli import entry, parser, program
from kubeup.config.flag_table import EVERYWHERE, FLAGS
from kubeup.errors import UsageError
from kubeup.secret import Secret
from tests.make_docs import REPO


def parse(*words: str) -> program.Invocation:
    return parser.parse_command_line(kb.COMMANDS, words)


def test_only_given_flags_are_there_and_lists_are_split() -> None:
    call = parse("init", "--skip-phases", "a,b", "--skip-phases=c", "--node-name=n", "--apiserver-bind-port", "6444")
    assert call.flags == {"skip-phases": ["a", "b", "c"], "node-name": "n", "apiserver-bind-port": 6444}


@pytest.mark.parametrize(
    ("words", "flags"),
    [(["--dry-run"], {"dry-run": True}), (["--dry-run=true"], {"dry-run": True}), (["--dry-run=false"], {})],
)
def test_switches_have_go_s_form(words: list[str], flags: dict[str, Any]) -> None:
    assert parse("init", *words).flags == flags


@pytest.mark.parametrize(
    ("words", "verbosity"),
    [([], 0), (["-v"], 1), (["-v", "2"], 2), (["--v=5"], 5), (["-v5"], 5), (["-v", "--soak=0"], 1)],
)
def test_v_stands_alone_or_with_a_level(words: list[str], verbosity: int) -> None:
    assert parse("init", *words).report.verbosity == verbosity


@pytest.mark.parametrize(
    ("words", "flags", "positional"),
    [
        (["token", "create", "--ttl", "-1h"], {"ttl": "-1h"}, []),
        (["token", "create", "--ttl", "--"], {"ttl": "--"}, []),
        (["token", "create", "--", "abc"], {}, ["abc"]),
        (["token", "create", "abc", "--"], {}, ["abc"]),
        (["init", "--dry-run", "--dry-run=false"], {}, []),
        (["init", "--dry-run=false", "--dry-run"], {"dry-run": True}, []),
        (["init", "--apiserver-bind-port", "0x1F"], {"apiserver-bind-port": 31}, []),
        (["init", "--apiserver-bind-port=010"], {"apiserver-bind-port": 8}, []),
        (["init", "--apiserver-bind-port=1_0"], {"apiserver-bind-port": 10}, []),
        (["config", "images", "list", "-o=json"], {"output": "json"}, []),
        (["-o", "json", "config", "images", "list"], {"output": "json"}, []),
        (["config", "-ojson", "images", "list"], {"output": "json"}, []),
        (["config", "images", "list", "--kubernetes-version", ""], {"kubernetes-version": ""}, []),
        (["config", "images", "list", "--image-repository=a=b"], {"image-repository": "a=b"}, []),
    ],
)
def test_flags_are_taken_as_pflag_takes_them(words: list[str], flags: dict[str, Any], positional: list[str]) -> None:
    call = parse(*words)
    assert (call.flags, call.words) == (flags, positional)


@pytest.mark.parametrize(
    ("words", "cause", "remedy"),
    [
        (["config", "images", "lst"], "config images has: list, pull", "config images list"),
        (["config", "prnt", "init-defaults"], "config has: print init-defaults", "config print init-defaults"),
        (["tokn"], "no such word", "kb token"),
    ],
)
def test_an_unknown_subcommand_is_answered_from_its_own_group(words: list[str], cause: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert cause in caught.value.cause and remedy in caught.value.remedy


@pytest.mark.parametrize(
    "words",
    [
        ["help", "init"],
        ["init", "--help=true"],
        ["help", "config", "images"],
        ["config", "images"],
        ["config", "print", "-h"],
    ],
)
def test_help_is_of_what_was_asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    entry.main(kb.COMMANDS, words)
    told = capsys.readouterr().out
    assert " ".join(word for word in words if word != "help" and not word.startswith("-")) in told
    assert "kb doctor" not in told and "\n  doctor" not in told


def test_the_longest_command_wins_and_words_stay() -> None:
    call = parse("init", "phase", "certs", "apiserver", "--cert-dir=/x")
    assert call.command.name == "init phase"
    assert call.words == ["certs", "apiserver"]
    assert call.flags == {"cert-dir": "/x"}


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["inti"], "unknown-command", "kb init"),
        (["config", "images", "lst"], "unknown-command", "config images list"),
        (["init", "--pod-network-cdir", "x"], "usage", "--pod-network-cidr"),
        (["init", "--apiserver-bind-port", "x"], "usage", "--help"),
        (["init", "--dry-run=maybe"], "usage", "--dry-run"),
        (["init", "--output", "xml"], "usage", "--help"),
        (["init", "--output=--"], "usage", ""),
        (["init", "--apiserver-bind-port=--"], "usage", ""),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest_right_one(words: list[str], code: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert caught.value.code == code
    assert hint in caught.value.remedy


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "kb.py", *words], cwd=REPO, capture_output=True, text=True, timeout=60)


def test_help_and_its_status() -> None:
    assert "init phase" in run("--help").stdout
    assert run().returncode == 2
    shown = run("init", "--help")
    assert shown.returncode == 0
    assert "certs/apiserver" in shown.stdout and "--ignore-preflight-errors" in shown.stdout


def test_a_group_without_a_word_shows_its_words() -> None:
    shown = run("config")
    assert shown.returncode == 2
    assert "config images pull" in shown.stdout and "kubeconfig user" not in shown.stdout


def test_version_forms() -> None:
    assert run("version", "-o", "short").stdout == f"{__version__}\n"
    assert json.loads(run("version", "-o", "json").stdout)["kb"]["version"] == __version__
    assert run("version", "-o", "yaml").stdout == f"kb:\n  version: {__version__}\n"
    assert run("--version").stdout == f"kb {__version__}\n"
    assert run("version", "-o", "xml").returncode == 2


def test_version_imports_neither_cryptography_nor_yaml_nor_what_touches_a_machine() -> None:
    heavy = ("cryptography", "yaml", "ssl", "subprocess", "kubeup.machine.local_host")
    code = f"import sys, kb; kb.main(['version']); print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_phases() -> None:
    names = [line.split()[0] for line in run("init", "--list").stdout.splitlines()]
    assert names == [phase.name for phase in kb.INIT]
    assert json.loads(run("init", "--list", "-o", "json").stdout)[0]["name"] == "install/bundle"


def test_an_unknown_phase_ends_with_two_and_a_hint() -> None:
    done = run("init", "phase", "certs/apisever", "--root", "/nonexistent")
    assert done.returncode == 2
    assert "did you mean certs/apiserver?" in done.stderr
    assert "unknown-phase" in done.stderr


def test_a_bundle_is_no_folder() -> None:
    done = run("bundle", "create", "--output-file=/", "--kubernetes-version=v1.35.6")
    assert done.returncode == 2 and "--output-file kb-bundle.tar" in done.stderr


def test_an_error_as_json() -> None:
    done = run("init", "phase", "nonsense", "-o", "json", "--root", "/nonexistent")
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "unknown-phase" and error["remedy"]


@pytest.mark.parametrize("form", [("-o", "yaml"), ("-oyaml",), ("--output=yaml",), ("--output", "yaml")])
def test_an_error_as_yaml(form: tuple[str, ...]) -> None:
    done = run("init", "phase", "nonsense", *form, "--root", "/nonexistent")
    assert yaml.safe_load(done.stdout)["error"]["code"] == "unknown-phase"


def test_a_bug_is_told_in_one_line_and_shown_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(call: program.Invocation) -> int:
        raise RuntimeError("oops")

    commands = (program.Command("x", "X", fail),)
    assert entry.main(commands, ["x"]) == 70
    said = capsys.readouterr().err
    assert "kb has a bug: RuntimeError: oops (test_parser.py:" in said and "Traceback" not in said
    with pytest.raises(RuntimeError):
        entry.main(commands, ["x", "--debug"])


COMPLETIONS = (
    ("kb in", {"init"}),
    ("kb config print jo", {"join-defaults"}),
    ("kb init phase certs/ap", {"certs/apiserver", "certs/apiserver-kubelet-client", "certs/apiserver-etcd-client"}),
    ("kb join phase kubelet-s", {"kubelet-start"}),
    ("kb init --config x.yaml --kubernetes-v", {"--kubernetes-version"}),
    ("kb init phase certs/ca --cert-", {"--cert-dir"}),
    ("kb.pyz token gen", {"generate"}),
)


def complete_in_bash(script: str, line: str) -> set[str]:
    words = line.split()
    ask = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _kb_complete; echo ${{COMPREPLY[@]}}"
    return set(subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=10).stdout.split())


def complete_in_zsh(script: str, line: str) -> set[str]:
    """zsh takes the script through its bashcompinit, which calls the function as sh would and leaves the choice among
    its words by what is typed to zsh itself."""
    words = line.split()
    ask = (
        f"autoload -U +X compinit && compinit -u -D\n{script}\nemulate sh\nCOMP_WORDS=({line}); "
        f"COMP_CWORD={len(words) - 1}; _kb_complete; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["zsh", "-f", "-c", ask], capture_output=True, text=True, timeout=20)
    return {word for word in done.stdout.split() if word.startswith(words[-1])}


def complete_in_fish(script: str, line: str) -> set[str]:
    ask = f"{script}\ncomplete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", ask], capture_output=True, text=True, timeout=20)
    assert not done.stderr, done.stderr
    return {row.partition("\t")[0] for row in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """Asked of the shell itself where it is there."""
    done = run("completion", shell)
    assert done.returncode == 0
    assert "kubernetes-version" in done.stdout and "certs/apiserver" in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    complete = {"bash": complete_in_bash, "zsh": complete_in_zsh, "fish": complete_in_fish}[shell]
    for line, wanted in COMPLETIONS:
        assert complete(done.stdout, line) == wanted, line


def test_a_secret_never_shows() -> None:
    assert f"{Secret('x')}" == "***" and repr([Secret("x")]) == "[***]"
    assert Secret("x") == Secret("x") and Secret("x") != Secret("y")


@pytest.mark.parametrize("command", ["doctor", "support-bundle"])
def test_a_look_at_everything_needs_root(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program.make_local_host(Path("/"))  # loaded first: Python itself may lie where only root reads
    os.seteuid(65534)
    try:
        code = kb.main([command])
    finally:
        os.seteuid(0)
    assert code == 4
    assert f"sudo kb {command}" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "names"), [((), "kb kb.pyz"), (("--as-kubeadm",), "kubeadm")])
def test_completion_is_registered_for_the_name_in_use(
    words: tuple[str, ...], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kb.main([*words, "completion", "bash"]) == 0
    assert f"complete -o default -F _kb_complete {names}\n" in capsys.readouterr().out


def test_no_library_s_warning_reaches_the_terminal(tmp_path: Path) -> None:
    """A name of 60 characters makes a longer one in a certificate, of which cryptography warns whoever programs with it."""
    config = tmp_path / "c.yaml"
    config.write_text(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.10}\n"
        f"nodeRegistration: {{name: {'n' * 60}}}\n"
    )
    for phase in (["certs", "ca"], ["kubeconfig", "kubelet"]):
        where = ("--root", str(tmp_path / "r"), "--config", str(config))
        argv = [sys.executable, str(REPO / "kb.py"), "init", "phase", *phase, *where]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "Warning" not in done.stderr
    assert (tmp_path / "r/etc/kubernetes/kubelet.conf").exists()


def test_help_lists_commands_by_task_and_what_systemd_runs_last() -> None:
    shown = parser.render_help(kb.COMMANDS)
    tasks = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert tasks[0] == "Set up a cluster" and tasks[-1] == "Run by systemd, not by you"
    assert len(tasks) == len(set(tasks))
    assert [command.name for command in kb.COMMANDS if command.task == tasks[-1]] == [
        "routes", "load-balancer", "node returned", "reconfigure wait"
    ]  # fmt: skip
    rows = [line for line in shown.splitlines() if line.startswith("  ")]
    assert [row.split("  ")[1] for row in rows] == [command.name for command in kb.COMMANDS]


def test_kubeadm_s_help_is_one_list() -> None:
    shown = run("--as-kubeadm", "--help").stdout
    assert "\ncommands:\n  init " in shown and "systemd" not in shown


def test_help_says_what_it_is_in_the_same_manner_everywhere() -> None:
    """A capital first, no full stop: what a flag gives is a noun, what a switch or a command does is a verb."""
    names = ("kubeadm", "ed25519", "local:")
    flags = [flag for flag in (*FLAGS, *EVERYWHERE) if not flag.is_hidden]
    texts = [flag.help for flag in flags] + [command.does for command in kb.COMMANDS]
    assert not [text for text in texts if text.endswith(".") or not (text[0].isupper() or text.startswith(names))]
    assert not [text for text in texts if len(text) > 90]
    nouns = ("the ", "a ", "an ")
    assert not [text for text in texts if text.lower().startswith(nouns)]
