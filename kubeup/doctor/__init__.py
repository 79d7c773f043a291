"""Diagnosis of a running node from everything that is known about it, and the support bundle."""
