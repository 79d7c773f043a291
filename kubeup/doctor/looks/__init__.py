"""What kb doctor checks: one module per subject, and one table (table.py).

A check ("look") takes the node as described by its files (kubeup/doctor/node_files.py), so that it works when the API
server does not, and returns notes; it changes nothing.
"""
