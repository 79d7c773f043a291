"""The configuration: documents and flags in, one frozen value out.

Owns kubeadm's config API (v1beta4, v1beta3), the component configs that pass through, and kb's own document.
Knows no phase and changes no file.
"""
