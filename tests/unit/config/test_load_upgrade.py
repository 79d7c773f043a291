"""kubeup/config/load_upgrade.py: file and flags of an upgrade under the name kubeadm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubeup.config.load_upgrade import load_upgrade_config
from kubeup.errors import UsageError
from tests.fake_host import FakeHost

FILE = Path("/root/upgrade.yaml")
CONFIG = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: UpgradeConfiguration
apply:
  kubernetesVersion: v1.36.3
  certificateRenewal: false
  ignorePreflightErrors: [SystemVerification]
  skipPhases: [addon]
  patches: {directory: /root/patches}
node:
  etcdUpgrade: false
"""


def load(text: str, section: str, **flags: Any) -> Any:
    host = FakeHost(files={str(FILE): text.encode()})
    named = {name.replace("_", "-"): value for name, value in flags.items()}
    return load_upgrade_config(host, config_file=FILE if text else None, flags=named, section=section)


def test_a_file_says_all() -> None:
    found = load(CONFIG, "apply", dry_run=True, ignore_preflight_errors=["CreateJob"])
    assert found.apply.kubernetes_version == "v1.36.3" and not found.apply.certificate_renewal
    assert found.apply.dry_run and found.apply.skip_phases == ("addon",)
    assert found.apply.patches_directory == "/root/patches"
    assert {name.lower() for name in found.apply.ignore_preflight_errors} == {"systemverification", "createjob"}
    assert not found.node.etcd_upgrade and found.node.certificate_renewal


def test_flags_say_all_without_a_file() -> None:
    found = load("", "node", etcd_upgrade="false", certificate_renewal="true", skip_phases=["preflight"], dry_run=True)
    assert (found.node.etcd_upgrade, found.node.certificate_renewal, found.node.dry_run) == (False, True, True)
    assert found.node.skip_phases == ("preflight",)
    assert load("", "apply").apply.etcd_upgrade is True
    assert load("", "diff", context_lines=5).diff.context_lines == 5


@pytest.mark.parametrize(
    ("text", "flags", "code"),
    [
        (CONFIG, {"etcd_upgrade": "false"}, "mixed-flags"),
        (CONFIG, {"patches": "/x"}, "mixed-flags"),
        ("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ResetConfiguration\n", {}, "invalid-config"),
        (CONFIG.replace("v1.36.3", "[1]"), {}, "invalid-config"),
    ],
)
def test_what_kubeadm_refuses_is_refused(text: str, flags: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text, "apply", **flags)
    assert caught.value.code == code
