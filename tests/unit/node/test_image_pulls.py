"""kubeup/node/image_pulls.py: which images are there, and why others do not come."""

from __future__ import annotations

import io
import json

import pytest

from kubeup.errors import HostError
from kubeup.machine.host import CommandResult
from kubeup.node import image_pulls
from kubeup.report import Report
from tests.fake_host import FakeHost
from tests.unit.node.runtime_case import (
    CRICTL,
    CTR,
    IMAGE_REFS,
    RELEASE,
    SOCKET,
    crictl_host,
    failed,
    fatal,
    image_list,
    init_config,
    pulling,
    pulls,
)

# ---- images


def test_a_pull_that_fails_in_crio_is_told_of_crio() -> None:
    host = FakeHost(programs={"crio", "systemctl", "crictl"})
    text = "dial unix /run/crio/crio.sock: connect: connection refused"
    silent = image_pulls.explain_pull_failure(host, "r/a:1", text=text)
    assert silent.remedy == "systemctl restart crio (why: journalctl -u crio -n 20 --no-pager)"
    proxied = image_pulls.explain_pull_failure(host, "r/a:1", text="i/o timeout", env={"HTTPS_PROXY": "http://p"})
    assert "systemctl edit crio" in proxied.remedy and "systemctl restart crio" in proxied.remedy


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("a/b:1", "docker.io/a/b:1"),
        ("localhost/a", "localhost/a:latest"),
        ("r.example:5000/a/b", "r.example:5000/a/b:latest"),
        ("r.example/a@sha256:0", "r.example/a@sha256:0"),
    ],
)
def test_full_image_name(name: str, full: str) -> None:
    assert image_pulls.full_image_name(name) == full


def test_list_images_by_tag_and_digest() -> None:
    rows = {"images": [{"repoTags": ["r/a:1"], "repoDigests": ["r/a@sha256:1"]}, {"repoTags": None}]}
    assert image_pulls.list_images(crictl_host({f"{CRICTL} images -o json": json.dumps(rows)}), SOCKET) == {
        "r/a:1",
        "r/a@sha256:1",
    }


def test_list_images_that_cannot_be_had() -> None:
    with pytest.raises(HostError) as caught:
        image_pulls.list_images(crictl_host({f"{CRICTL} images -o json": failed("boom")}), SOCKET)
    assert (caught.value.code, caught.value.cause) == ("images-unreadable", "boom")
    with pytest.raises(HostError) as caught:
        image_pulls.list_images(FakeHost(), SOCKET)
    assert caught.value.code == "no-cri-client"


HEAD = 'failed to pull and unpack image "r.example/a:1": failed to resolve reference "r.example/a:1": '


@pytest.mark.parametrize(
    ("text", "kind", "cause"),
    [
        (HEAD + "r.example/a:1: not found", "not-found", "r.example has no such image"),
        (HEAD + "unexpected status code 404 Not Found", "not-found", "r.example has no such image"),
        (
            HEAD + "pulling from host r.example failed with status code [manifests 1]: 401 Unauthorized",
            "unauthorized",
            "refuses",
        ),
        ("pull access denied, repository does not exist or may require authorization", "unauthorized", "refuses"),
        (HEAD + "dial tcp: lookup r.example on 10.0.0.2:53: no such host", "dns", "does not resolve"),
        (HEAD + "dial tcp: lookup r.example on 10.0.0.2:53: read udp: i/o timeout", "dns", "does not resolve"),
        (HEAD + "dial tcp 10.0.0.1:443: connect: connection refused", "refused", "nothing at r.example"),
        (HEAD + "dial tcp 10.0.0.1:443: i/o timeout", "timeout", "not reachable"),
        (HEAD + "dial tcp 10.0.0.1:443: connect: network is unreachable", "timeout", "not reachable"),
        (HEAD + "tls: failed to verify certificate: x509: certificate signed by unknown authority", "tls", "TLS"),
        (HEAD + "http: server gave HTTP response to HTTPS client", "tls", "TLS"),
        ("failed to extract layer: write /x: no space left on device", "no-space", "full"),
        (HEAD + "429 Too Many Requests - toomanyrequests: rate limit", "limited", "limits"),
        (
            "validate service connection: dial unix /x: connect: connection refused",
            "runtime",
            "runtime does not answer",
        ),
        ("something new", "other", "gave up"),
    ],
)
def test_pull_failures_are_told_apart(text: str, kind: str, cause: str) -> None:
    with pytest.raises(image_pulls.ImagePullError) as caught:
        image_pulls.pull_image(crictl_host(pulling("r.example/a:1", answer=fatal(text))), SOCKET, image="r.example/a:1")
    error = caught.value
    assert (error.kind, error.image, error.code) == (kind, "r.example/a:1", "image-pull-failed")
    assert cause in error.cause
    assert text in error.cause
    assert "{" not in error.remedy + error.cause


def test_a_proxy_that_only_this_shell_knows_is_named() -> None:
    env = {"https_proxy": "http://user:secret@proxy:3128"}
    error = image_pulls.explain_pull_failure(FakeHost(), "r/a:1", text="dial tcp 1.2.3.4:443: i/o timeout", env=env)
    assert "systemctl edit containerd" in error.remedy
    assert "secret" not in error.remedy
    assert (
        "systemctl edit" not in image_pulls.explain_pull_failure(FakeHost(), "r/a:1", text="not found", env=env).remedy
    )


def test_the_mirror_that_was_asked_is_named() -> None:
    asked = (
        'failed to do request: Head "http://10.0.0.9:5000/v2/a/manifests/1?ns=r.example": connect: connection refused'
    )
    cause = image_pulls.explain_pull_failure(FakeHost(), "r.example/a:1", text=asked).cause
    assert cause.startswith("nothing at 10.0.0.9:5000 (asked for r.example) accepts the connection")
    direct = asked.replace("http://10.0.0.9:5000", "https://r.example")
    assert image_pulls.explain_pull_failure(FakeHost(), "r.example/a:1", text=direct).cause.startswith(
        "nothing at r.example accepts"
    )


def test_ensure_images_pulls_what_is_missing_and_tells() -> None:
    missing = pulling("r.example/b:1", "r.example/c:1")
    host = crictl_host({f"{CRICTL} images -o json": image_list("r.example/a:1"), **missing})
    told: list[str] = []
    result = image_pulls.ensure_images(
        host, SOCKET, names=["r.example/a:1", "r.example/b:1", "r.example/c:1"], tell=told.append
    )
    assert result == image_pulls.ImagesResult(("r.example/a:1",), ("r.example/b:1", "r.example/c:1"), ())
    assert pulls(host) == ["r.example/b:1", "r.example/c:1"]
    assert told == ["pulling r.example/b:1 (1 of 2)", "pulling r.example/c:1 (2 of 2)"]


def test_ensure_images_side_by_side() -> None:
    names = [f"r.example/{index}:1" for index in range(9)]
    host = crictl_host(pulling(*names))
    result = image_pulls.ensure_images(host, SOCKET, names=names, is_serial=False)
    assert result.pulled == tuple(names)
    assert sorted(pulls(host)) == sorted(names)


def test_policies() -> None:
    host = crictl_host({f"{CRICTL} images -o json": image_list("r.example/a:1"), **pulling("r.example/a:1")})
    assert image_pulls.ensure_images(host, SOCKET, names=["r.example/a:1"], policy="Always").pulled == (
        "r.example/a:1",
    )
    host.changes.clear()
    assert (
        image_pulls.ensure_images(host, SOCKET, names=["r.example/b:1"], policy="Never") == image_pulls.ImagesResult()
    )
    assert host.changes == []


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent"])
def test_a_runtime_that_does_not_answer_is_told_before_any_pull(policy: str) -> None:
    host = crictl_host({f"{CRICTL} images -o json": fatal("dial unix /run/x.sock: connect: no such file or directory")})
    with pytest.raises(HostError) as caught:
        image_pulls.ensure_images(host, SOCKET, names=["r.example/a:1"], policy=policy)
    assert caught.value.code == "images-unreadable" and caught.value.remedy.endswith(" info")
    assert pulls(host) == [] and host.ticks == 0


def test_a_pull_that_heals_is_tried_again() -> None:
    ends = [fatal("connection refused"), fatal("connection refused"), CommandResult((), 0)]
    host = crictl_host({f"{CRICTL} pull": lambda argv: ends.pop(0)})
    assert image_pulls.ensure_images(host, SOCKET, names=["r.example/a:1"]).pulled == ("r.example/a:1",)
    assert len(pulls(host)) == 3
    assert host.ticks == 1.5


def test_a_pull_that_cannot_heal_is_tried_once() -> None:
    host = crictl_host(pulling("r.example/a:1", answer=fatal("r.example/a:1: not found")))
    result = image_pulls.ensure_images(host, SOCKET, names=["r.example/a:1"])
    assert [error.kind for error in result.failed] == ["not-found"]
    assert len(pulls(host)) == 1
    assert host.ticks == 0


def test_an_unreachable_registry_is_given_up_for_its_other_images() -> None:
    def answer(argv: tuple[str, ...]) -> CommandResult:
        return CommandResult(argv, 0) if argv[-1].startswith("good") else fatal("lookup r.example: no such host")

    host = crictl_host({f"{CRICTL} pull": answer})
    result = image_pulls.ensure_images(host, SOCKET, names=["r.example/a:1", "r.example/b:1", "good.example/c:1"])
    assert [error.image for error in result.failed] == ["r.example/a:1", "r.example/b:1"]
    assert result.pulled == ("good.example/c:1",)
    assert pulls(host) == ["r.example/a:1"] * 5 + ["r.example/b:1", "good.example/c:1"]


def test_equal_failures_are_one() -> None:
    names = ["r.example/a:1", "r.example/b:1", "s.example/c:1"]
    errors = [image_pulls.explain_pull_failure(FakeHost(), name, text="connection refused") for name in names]
    groups = image_pulls.group_failures(
        [*errors, image_pulls.explain_pull_failure(FakeHost(), "r.example/d:1", text="not found")]
    )
    assert [group.what for group in groups] == [
        "cannot pull r.example/a:1, r.example/b:1",
        "cannot pull s.example/c:1",
        "cannot pull r.example/d:1",
    ]


def test_pull_through_ctr_uses_the_mirrors_of_the_cri() -> None:
    pull = f"{CTR} images pull --hosts-dir /etc/containerd/certs.d docker.io/library/busybox:1"
    host = FakeHost(programs={"ctr"}, accepts={pull}, dirs={"/etc/containerd/certs.d"})
    image_pulls.pull_image(host, SOCKET, image="busybox:1")
    assert host.changes == [f"run {pull}"]


def test_pull_images_for_config_images_pull() -> None:
    report = Report(io.StringIO(), verbosity=1)
    host = crictl_host(pulling(*IMAGE_REFS))
    names = image_pulls.pull_images(host, init_config(), release=RELEASE, report=report)
    assert names == IMAGE_REFS
    assert pulls(host) == list(names)
    assert isinstance(report.stream, io.StringIO)
    assert "pulling registry.k8s.io/etcd:3.6.6-0 (7 of 7)" in report.stream.getvalue()


def test_pull_images_names_all_that_did_not_come() -> None:
    host = crictl_host(pulling(*IMAGE_REFS, answer=fatal("not found")))
    with pytest.raises(HostError) as caught:
        image_pulls.pull_images(host, init_config(), release=RELEASE, report=Report(io.StringIO()))
    assert caught.value.code == "images-not-pulled"
    assert caught.value.what == "7 of 7 images could not be pulled"
    assert len(caught.value.details) == 7
