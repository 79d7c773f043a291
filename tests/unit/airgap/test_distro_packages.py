"""kubeup/airgap/distro_packages.py, for an upgrade: fetched ahead, held again whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.airgap import distro_packages
from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.machine.http import HttpResponse
from tests.fake_host import FakeHost

KEY = "https://pkgs.k8s.io/core:/stable:/v1.36/deb/Release.key"
NAMES = ("kubelet", "kubectl")


def make_host(**answers: CommandResult) -> FakeHost:
    host = FakeHost(programs={"apt-get", "dnf"}, urls={KEY: HttpResponse(200, b"-----BEGIN PGP PUBLIC KEY BLOCK-----")})
    host.answers = {
        "apt-mark showhold": "kubelet\n",
        "apt-get": lambda words: answers.get("apt", CommandResult(words, 0)),
    }
    host.answers |= {
        "dnf": lambda words: CommandResult(words, 0),
        "apt-mark unhold": lambda words: CommandResult(words, 0),
    }
    host.answers |= {"apt-mark hold": lambda words: CommandResult(words, 0)}
    return host


def commands(host: FakeHost) -> list[str]:
    return [change[len("run ") :] for change in host.changes if change.startswith("run ")]


def test_apt_fetches_the_exact_version_and_installs_nothing() -> None:
    host = make_host()
    distro_packages.fetch(host, "apt", names=NAMES, version="v1.36.3", preset_name="")
    assert commands(host) == [
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends --allow-change-held-packages --reinstall --download-only kubelet=1.36.3-* kubectl=1.36.3-*",
    ]
    assert b"/v1.36/deb/ /" in host.files[str(distro_packages.APT_LIST)]


def test_what_was_fetched_is_installed_without_a_network_and_held_again() -> None:
    """apt drops the hold of what it installs."""
    host = make_host()

    def install(words: tuple[str, ...]) -> CommandResult:
        host.answers["apt-mark showhold"] = ""
        return CommandResult(words, 0)

    host.answers["apt-get"] = install
    distro_packages.install_fetched(host, "apt", names=NAMES, version="v1.36.3")
    first, second = commands(host)
    assert "--no-download" in first and second == "apt-mark hold kubelet kubectl"


def test_a_package_that_is_held_already_is_not_touched() -> None:
    host = make_host()
    distro_packages.hold(host, "apt", names=NAMES)
    assert commands(host) == ["apt-mark hold kubectl"]
    distro_packages.hold(host, "dnf", names=NAMES)
    assert len(commands(host)) == 1


def test_a_package_whose_program_was_taken_back_is_installed_once_more() -> None:
    """apt and dnf would have nothing to do: they have the package, and another program is in its place."""
    host = make_host()
    distro_packages.install_fetched(host, "apt", names=NAMES, version="v1.36.3")
    assert "--reinstall" in commands(host)[0]
    host = make_host()
    host.answers["rpm --query --queryformat %{VERSION} kubelet"] = "1.36.3"
    distro_packages.fetch(host, "dnf", names=NAMES, version="v1.36.3", preset_name="")
    first, second = commands(host)
    assert first.startswith("dnf install ") and first.endswith("--downloadonly kubectl-1.36.3")
    assert second.startswith("dnf reinstall ") and second.endswith("--downloadonly kubelet-1.36.3")


@pytest.mark.parametrize(
    ("name", "text", "is_theirs"),
    [
        (
            "kubernetes.list",
            "deb [signed-by=/etc/apt/keyrings/k.gpg] https://pkgs.k8s.io/core:/stable:/v1.36/deb/ /\n",
            True,
        ),
        ("kubernetes.sources", "Types: deb\nURIs: https://pkgs.k8s.io/core:/stable:/v1.36/deb\nSuites: /\n", True),
        ("kubernetes.sources", "Enabled: no\nURIs: https://pkgs.k8s.io/core:/stable:/v1.36/deb\n", False),
        ("kubernetes.list", "# deb https://pkgs.k8s.io/core:/stable:/v1.36/deb/ /\n", False),
        ("kubernetes.list", "deb https://pkgs.k8s.io/core:/stable:/v1.35/deb/ /\n", False),
        ("kubernetes.list.save", "deb https://pkgs.k8s.io/core:/stable:/v1.36/deb/ /\n", False),
    ],
)
def test_a_repository_that_the_admin_has_already_is_not_added_again(name: str, text: str, is_theirs: bool) -> None:
    """Two entries with different keys: apt then refuses to read any source, for everything on the machine."""
    host = make_host()
    host.files[str(distro_packages.APT_LIST)] = b"deb https://pkgs.k8s.io/core:/stable:/v1.35/deb/ /\n"
    host.files[str(distro_packages.APT_LIST.parent / name)] = text.encode()
    distro_packages.fetch(host, "apt", names=NAMES, version="v1.36.3", preset_name="")
    assert (str(distro_packages.APT_LIST) in host.files) is not is_theirs


def test_packages_are_held_again_after_a_failure() -> None:
    host = make_host(apt=CommandResult(("apt-get",), 100, "", "E: dpkg was interrupted"))
    with pytest.raises(HostError) as caught:
        distro_packages.install_fetched(host, "apt", names=NAMES, version="v1.36.3")
    assert caught.value.code == "packages-not-installed" and "dpkg was interrupted" in caught.value.cause
    assert commands(host)[-1] == "apt-mark hold kubectl"
    assert caught.value.remedy == "finish what was interrupted: dpkg --configure -a"


def test_dnf_takes_from_its_cache_what_it_has_fetched() -> None:
    host = make_host()
    distro_packages.fetch(host, "dnf", names=NAMES, version="v1.36.3", preset_name="")
    distro_packages.install_fetched(host, "dnf", names=NAMES, version="v1.36.3")
    first, second = commands(host)
    assert "--downloadonly" in first and "--refresh" in first and first.endswith("kubelet-1.36.3 kubectl-1.36.3")
    assert "--cacheonly" in second and "--refresh" not in second


def test_a_machine_without_the_manager_is_told() -> None:
    host = make_host()
    host.programs.discard("apt-get")
    with pytest.raises(HostError) as caught:
        distro_packages.fetch(host, "apt", names=NAMES, version="v1.36.3", preset_name="")
    assert caught.value.code == "no-package-manager"


@pytest.mark.parametrize(
    ("program", "searched", "verified", "is_so"),
    [
        ("dpkg-query", "kubelet: /usr/bin/kubelet\n", "", True),
        ("dpkg-query", "kubelet:amd64, other: /usr/bin/kubelet\n", "??5?????? c /etc/default/kubelet\n", True),
        ("dpkg-query", "diversion by x from: /usr/bin/kubelet\nkubelet: /usr/bin/kubelet\n", "??5??????   /usr/bin/kubelet\n", False),
        ("dpkg-query", "", "", False),
        ("rpm", "kubelet-1.35.6-1.x86_64\n", ".......T.    /usr/bin/kubelet\n", True),
        ("rpm", "kubelet-1.35.6-1.x86_64\n", "S.5....T.    /usr/bin/kubelet\n", False),
        ("rpm", "", "", False),
    ],
)  # fmt: skip
def test_what_a_package_brought_is_so_until_somebody_changes_it(
    program: str, searched: str, verified: str, is_so: bool
) -> None:
    host = FakeHost(programs={program})
    search = (
        "dpkg-query --search /usr/bin/kubelet" if program == "dpkg-query" else "rpm --query --file /usr/bin/kubelet"
    )
    host.answers = {search: lambda words: CommandResult(words, 0 if searched else 1, searched)}
    host.answers |= {
        verb: lambda words: CommandResult(words, 1, verified) for verb in ("dpkg --verify", "rpm --verify")
    }
    assert distro_packages.is_intact(host, Path("/usr/bin/kubelet")) is is_so
