"""kubeup/diagnosis/chain.py: the first link that is broken."""

from __future__ import annotations

from tests.unit.diagnosis.signs_case import find, make_host, run_containers


def test_a_node_that_is_well_has_no_broken_link() -> None:
    host = make_host()
    run_containers(host, {"name": "etcd", "state": "running"})
    assert find(host, "etcd") is None


# ---- the runtime


def test_a_stopped_runtime_is_final_and_a_restarting_one_is_not() -> None:
    host = make_host()
    host.programs.add("containerd")
    del host.files["/var/run/containerd/containerd.sock"]
    host.answers["systemctl is-active containerd"] = "inactive\n"
    link = find(host)
    assert link is not None
    assert (link.link, link.is_final) == ("runtime", True)
    assert "containerd is installed but does not run" in link.cause
    host.answers["systemctl is-active containerd"] = "activating\n"
    link = find(host)
    assert link is not None and not link.is_final


def test_a_final_trouble_goes_before_one_that_may_heal() -> None:
    host = make_host()
    rows = [{"name": "etcd", "state": "exited"}, {"name": "kube-apiserver", "state": "exited"}]
    run_containers(host, *rows, logs={"etcd": ["panic: new"], "kube-apiserver": ["Error: unknown flag: --foo"]})
    link = find(host, "etcd", "kube-apiserver")
    assert link is not None
    assert link.what.startswith("kube-apiserver exited")
