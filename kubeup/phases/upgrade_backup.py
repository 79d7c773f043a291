"""The phase `backup` of an upgrade: the cluster as it was before, in one file, for what no swap takes back.

The file is what `kb backup` writes, and `kb restore` reads. It stays beside what else is kept of the upgrade: until `kb upgrade finish`, or
for seven days. kubeadm copies the folder of the running etcd instead (cmd/kubeadm/app/phases/upgrade/staticpods.go), which is no consistent
state.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kubeup.engine.run import Outputs
from kubeup.engine.story import Act
from kubeup.lazy_modules import lazily
from kubeup.phases.upgrade_run import UpgradeRun

with lazily:
    from kubeup.backup import encryption, making
    from kubeup.cluster import etcd
    from kubeup.machine import local_host
    from kubeup.swap import proof
    from kubeup.upgrade import kept

STEP = "backup"


def backup_file(run: UpgradeRun) -> Path:
    return kept.folder(run.paths) / f"before-{run.config.cluster.kubernetes_version}.tar"


def back_up(ctx: UpgradeRun) -> Outputs:
    """Back up this control plane, once: a run that goes on keeps the backup of before.

    Raises HostError: disk-full, file-unreadable; ClusterError (no-snapshot). Nothing has been stopped then."""
    run = replace(ctx, host=ctx.machine or ctx.host)
    path = backup_file(run)
    found = kept.begin(run.host, run.paths, former=run.former, wanted=run.config.cluster.kubernetes_version)
    if found.has_done(STEP) and run.host.exists(path):
        run.report.note(f"{path} is the backup of before this upgrade: it is kept")
        return None
    source = _find_source(run)
    planned = making.plan_backup(source)
    made = making.write_backup(
        source,
        planned,
        target=making.find_target(source.host, run.paths, name=str(path), is_encrypted=False),
        recipients=encryption.Recipients(),
        tell=run.report.waiting,
    )
    kept.note_done(run.host, run.paths, step=STEP)
    run.report.note(
        f"backup: {path}, {made.size >> 20} MiB, {made.about.objects} objects; if all else fails: kb restore {path}"
    )
    for words in made.about.missing:
        run.report.warn(f"not in the backup: {words}")
    return None


def _find_source(run: UpgradeRun) -> making.Source:
    host = run.host
    assert isinstance(host, local_host.LocalHost)  # never reached in a dry run or with a folder as host
    external = run.config.cluster.external_etcd
    client = (
        etcd.Etcd(host, external.endpoints, tls=etcd.read_external_tls(host, external))
        if external
        else proof.own_etcd(run)
    )
    return making.Source(
        host=host,
        paths=run.paths,
        node=run.config.node.name,
        kubernetes=run.former,
        client=client,
        etcd_kind="external" if external else "local",
        api=proof.own_api(run),
    )


def foretell_backup(ctx: UpgradeRun) -> Outputs:
    """Dry run: say where it would be."""
    ctx.report.note(f"a backup would be written: {backup_file(ctx)}")
    return None


BACKUP = Act(do=back_up, foretell=foretell_backup, live="node", always=True)
