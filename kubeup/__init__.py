"""kubeup: the helpers behind kb.py, the story. Each folder is one part of kb; the modules next to the folders are used
by all of them. A folder imports only from folders below it in this list (enforced by pyproject.toml):

    kubeadm     the mask: kb under the name kubeadm
    commands    one module per command
    cli         options, parser, completion
    drift       what was changed on a finished node since kb left it
    doctor      diagnosis of a running node, and the support bundle
    phases      what a step of kb.py does
    upgrade     what an upgrade knows: which version may follow, what would differ, what is kept of before
    swap        replaces running static pods, and brings the former ones back
    engine      runs the steps, remembers them and undoes them
    backup      a cluster in one file: its archive, its content, its rehearsal
    diagnosis   what is wrong, told from the machine alone
    airgap      bundles, images, the mirror, programs and packages
    network     the pod network, and a node's load balancer
    cluster     what the API and etcd hold
    node        what is on a node: keys, kubeconfigs, static pods, the kubelet's files, the runtime
    config      turns documents and flags into one frozen value
    machine     the one seam to the machine
    startup     how kb.pyz loads
"""

__version__ = "0.1.0"

from kubeup.startup import native_hook

native_hook.install()
