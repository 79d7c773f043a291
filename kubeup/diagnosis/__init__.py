"""Diagnosis of a node from the machine alone."""
