"""kubeup: the helpers behind kb.py, the story. Each folder is one part of what kb is made of; what lies beside them are the
words that everybody uses. A folder imports only from those that stand after it here (pyproject.toml holds it):

    kubeadm     the mask: kb under the name kubeadm
    commands    one module a verb
    cli         options, parser, completion
    doctor      what is wrong with a node that lives, and how to hand that on
    phases      what a step of kb.py does
    engine      what runs the steps, remembers them and undoes them
    diagnosis   what is wrong, told from the machine alone
    airgap      bundles, images, the mirror, programs and packages
    network     the pods' network, and the load balancer of a node
    cluster     what the API and etcd hold
    node        what lies on a node: keys, kubeconfigs, static pods, the kubelet's files, the runtime
    config      documents and flags, made into one frozen value
    machine     the one seam to the machine
    startup     how kb.pyz loads
"""

__version__ = "0.1.0"

from kubeup.startup import native_hook

native_hook.install()
