"""The configuration: turns documents and flags into one frozen value.

Owns kubeadm's config API (v1beta4, v1beta3), the component configs that are passed through, and kb's own document.
Knows no phases and changes no files.
"""
