"""Makes the last member of etcd the only one, from its own data: the order of the steps, and the way back.

    API server and etcd out; a copy of the data
    etcd in with --force-new-cluster, once; a read with quorum; a member list of one; out
    etcd in, named as the only member; a read with quorum
    API server in; the controllers

A member that was started with --force-new-cluster forgets the others and what was not committed. The flag must not stay: at each start it
would drop whoever has joined since. Each step is written down when it is done, and may be done again, so that the same command
continues a recovery that was cut off. If a step fails before an API server has served, the former data and manifests come back.
Source: server/etcdserver/bootstrap.go (ForceNewCluster)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kubeup.engine.run import Run
from kubeup.errors import ClusterError, KbError
from kubeup.machine import services
from kubeup.node import etcd_data
from kubeup.swap import etcd_return, manifests, proof, recovery_record, wake
from kubeup.swap.recovery_record import ALONE, BEGUN, COPIED, DONE, GOING_BACK, SERVED, TAKEN_BACK, Record
from kubeup.yaml_files import containers_of_pod, dump_yaml, load_mapping

SERVER = "kube-apiserver"
START_S = 60.0
"""How long a pod may take to serve: after a long outage its image and files are no longer in memory."""
FORCE = "--force-new-cluster"


def with_force(text: str) -> str:
    """etcd's manifest with --force-new-cluster."""
    pod = load_mapping(text, "etcd.yaml")
    own = containers_of_pod(pod)[0]
    own["command"] = [*(word for word in own["command"] if not str(word).startswith(FORCE)), FORCE]
    return dump_yaml(pod)


@dataclass
class Recovery:
    """One recovery on this node, from wherever an earlier run was cut off."""

    run: Run
    record: Record
    peer_url: str

    def carry_out(self) -> None:
        """Afterwards this member is the only one, and the API server serves. Raises KbError, after the way back."""
        try:
            self._go_forward()
        except BaseException as error:
            self._go_back_after(error)
            raise

    def go_back(self) -> None:
        """Bring the data and the manifests of before back. They may not work: the quorum was lost. Raises KbError."""
        copy = Path(self.record.copy)
        self._write_down(status=GOING_BACK)  # from here on the data may be half of this and half of that
        manifests.keep_kubelet(self.run)
        self._take_out()
        if self.record.stage != BEGUN and etcd_data.has_copy(self.run.host, self.run.paths.etcd_data, copy_dir=copy):
            etcd_data.restore_data(self.run.host, self.run.paths.etcd_data, copy_dir=copy)
        self._write_down(stage=BEGUN)  # from here on the copy is no way back: etcd may write, and the copy is removed
        manifests.put_in(self.run, "etcd", text=self.record.etcd)
        if self.record.server:
            manifests.put_in(self.run, SERVER, text=self.record.server)
        self._start_kubelet()
        etcd_data.remove_copy(self.run.host, self.run.paths.etcd_data, copy_dir=copy)
        self._end(TAKEN_BACK)

    def _names(self) -> list[str]:
        return [SERVER, "etcd"] if self.record.server else ["etcd"]

    def _take_out(self) -> None:
        self.run.report.waiting("the API server and etcd stop")
        if self.record.stage == SERVED and self.record.server:
            self._stop([SERVER])  # it serves, and would answer 5xx without its etcd
        self._stop(self._names())

    def _stop(self, names: list[str]) -> None:
        if manifests.can_ask_kubelet(self.run):
            manifests.take_out(self.run, names)
        else:
            manifests.take_out_stopped(self.run, names)

    def _write_down(self, *, stage: str = "", status: str = "") -> None:
        self.record = replace(self.record, stage=stage or self.record.stage, status=status or self.record.status)
        recovery_record.save(self.run.host, self.run.paths, record=self.record)

    def _end(self, status: str) -> None:
        manifests.remove_leftovers(self.run.host, self.run.paths, names=self._names())
        self._write_down(status=status)

    # ---- forward

    def _go_forward(self) -> None:
        manifests.keep_kubelet(self.run)
        if self.record.stage == BEGUN:
            self._take_out()
            copy = Path(self.record.copy)
            if not etcd_data.has_copy(self.run.host, self.run.paths.etcd_data, copy_dir=copy):
                self.run.report.waiting("etcd's data are copied")
                etcd_data.copy_data(self.run.host, self.run.paths.etcd_data, copy_dir=copy)
            self._write_down(stage=COPIED)
        if self.record.stage == COPIED:
            self._stand_alone()
            self._write_down(stage=ALONE)
        if self.record.stage == ALONE:
            rows = [(self.record.member, self.peer_url)]
            self._start("etcd", etcd_return.with_initial_cluster(self.record.etcd, rows))
            self._write_down(
                stage=SERVED
            )  # before: whoever is killed in between must not lose what is written from here on
        if self.record.server:
            self._start(SERVER, self.record.server)
        self._wake_controllers()
        self._end(DONE)

    def _stand_alone(self) -> None:
        """Start etcd once so that it forgets the others, and stop it again."""
        if self._is_any_left():  # an earlier run was cut off here
            self._take_out()
        self.run.report.waiting("etcd starts alone, once")
        self._start("etcd", with_force(self.record.etcd))
        client = proof.own_etcd(self.run)
        members = client.at(client.endpoints[0]).list_members()
        if len(members) != 1:
            raise ClusterError(
                "etcd still lists other members",
                cause="; ".join(member.describe() for member in members),
                remedy="see etcd's log: crictl logs of the container etcd",
                code="etcd-not-alone",
            )
        self._stop(["etcd"])

    def _is_any_left(self) -> bool:
        is_in = any(self.run.host.exists(self.run.paths.manifest(name)) for name in self._names())
        newest = [proof.find_newest(self.run, name) for name in self._names()]
        return is_in or any(one is not None and one.state != "exited" for one in newest)

    def _start(self, name: str, text: str) -> None:
        """Put a manifest in, and wait until the pod serves; at once if an earlier run has put it in. Raises NotProven."""
        known = proof.list_ids(self.run, [name], only_ended=self._is_in(name, text))
        manifests.put_in(self.run, name, text=text)
        # the wait starts a kubelet that is stopped, and gives it a minute more; with the longer time, it would restart it once more
        is_stopped = not services.is_active(self.run.host, "kubelet")
        longest_s = proof.START_S if is_stopped else START_S
        proof.wait_until_works(self.run, name, text=text, known=known, timeout_s=longest_s)

    def _start_kubelet(self) -> None:
        if not services.is_active(self.run.host, "kubelet"):
            services.run(self.run.host, "start", unit="kubelet")

    def _is_in(self, name: str, text: str) -> bool:
        path = self.run.paths.manifest(name)
        return self.run.host.exists(path) and self.run.host.read_text(path) == text

    def _wake_controllers(self) -> None:
        """Start those again that wait for their next try. They are no reason to go back: the API serves."""
        texts = {name: text for name in wake.CONTROLLERS if (text := self._read_manifest(name))}
        for name, text in texts.items():  # somebody may have taken them out
            manifests.put_in(self.run, name, text=text)
        manifests.remove_leftovers(self.run.host, self.run.paths, names=list(texts))
        if not wake.wake(self.run, list(texts)):
            self.run.report.warn(f"{' and '.join(texts)} do not work yet. Remedy: see why: kb doctor")

    def _read_manifest(self, name: str) -> str:
        """The manifest of a pod, also while it is out; "" if there is none."""
        for path in (self.run.paths.manifest(name), manifests.former_path(self.run, name)):
            if self.run.host.exists(path):
                return self.run.host.read_text(path)
        return ""

    # ---- back

    def _go_back_after(self, error: BaseException) -> None:
        """Raises ClusterError (recovery-not-taken-back) if the way back fails too."""
        if self.record.stage == SERVED:
            self.run.report.note("an API server may have written already, so nothing is taken back")
            return
        why = str(error) if isinstance(error, KbError) else "kb was told to stop"
        self.run.report.note(f"{why}. Bringing the former data and manifests back")
        try:
            self.go_back()
        except KbError as worse:
            raise ClusterError(
                why,
                cause=f"the way back failed too: {worse}",
                remedy=f"{worse.remedy}; then: kb etcd recover --undo",
                code="recovery-not-taken-back",
                details=worse.details,
            ) from error
