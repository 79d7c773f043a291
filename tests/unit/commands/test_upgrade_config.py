"""kubeup/commands/upgrade_config.py: an UpgradeConfiguration says what flags say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from kubeup.cli.program import Invocation
from kubeup.commands import launcher, upgrade_config
from kubeup.errors import UsageError
from kubeup.report import Report
from tests.fake_host import FakeHost

FILE = "/root/upgrade.yaml"
HEAD = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: UpgradeConfiguration\n"


def read(
    text: str, section: str, monkeypatch: pytest.MonkeyPatch, *, words: list[str] | None = None, **flags: Any
) -> tuple[Invocation, str]:
    host = FakeHost(files={FILE: (HEAD + text).encode()})
    monkeypatch.setattr(launcher, "open_host", lambda call: host)
    out = io.StringIO()
    command: Any = None
    named = {name.replace("_", "-"): value for name, value in flags.items()}
    call = Invocation(command, (), {"config": FILE, **named}, words or [], Report(out))
    return upgrade_config.with_config(call, section), out.getvalue()


APPLY = """\
apply:
  kubernetesVersion: v1.36.3
  certificateRenewal: false
  forceUpgrade: true
  skipPhases: [addon/coredns]
  patches: {directory: /root/patches}
  ignorePreflightErrors: [SystemVerification]
node: {etcdUpgrade: false}
"""


def test_each_section_says_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    call, told = read(APPLY, "apply", monkeypatch, no_drain=True)
    assert call.words == ["v1.36.3"]
    assert call.flags == {
        "no-drain": True, "certificate-renewal": "false", "force": True, "skip-phases": ["addon/coredns"], "patches": "/root/patches",
    }  # fmt: skip
    assert "systemverification" in told.lower() and "--force" in told
    call, told = read(APPLY, "node", monkeypatch)
    assert call.words == [] and call.flags == {"etcd-upgrade": "false"} and told == ""


def test_a_version_on_the_command_line_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    call, _ = read(
        "plan: {kubernetesVersion: v1.36.3, allowRCUpgrades: true}\n", "plan", monkeypatch, words=["v1.36.2"]
    )
    assert call.words == ["v1.36.2"] and call.flags == {"allow-release-candidate-upgrades": True}
    call, _ = read("diff: {contextLines: 7}\n", "diff", monkeypatch)
    assert call.flags == {"context-lines": 7}


@pytest.mark.parametrize(
    ("text", "flags", "code"),
    [
        (APPLY, {"certificate_renewal": "true"}, "mixed-flags"),
        ("apply: {kubernetesversion: v1.36.3}\n", {}, "invalid-config"),
    ],
)
def test_what_is_wrong(text: str, flags: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled field is no warning here, as in every document that kb reads under its own name."""
    with pytest.raises(UsageError) as caught:
        read(text, "apply", monkeypatch, **flags)
    assert caught.value.code == code
    assert Path(FILE).name in caught.value.remedy or "kubernetesVersion" in str(caught.value)
