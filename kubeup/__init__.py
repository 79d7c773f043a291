"""kubeup: the helpers behind kb.py, the story.

Layers, imports go downward only: cli -> phases -> workflow, state -> domain (pki, manifests, ...) and config
-> host, render -> errors, paths, releases, report, secret, lazy.
"""

__version__ = "0.1.0"

from kubeup.startup import native_hook

native_hook.install()
