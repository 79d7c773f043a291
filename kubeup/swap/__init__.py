"""Replaces running static pods: what is to be swapped, how a pod is stopped and started, and what proves that it works."""
