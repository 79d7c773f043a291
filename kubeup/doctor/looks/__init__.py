"""What kb doctor looks at: one module a subject, and one table (table.py).

A look takes the node as its files describe it (kubeup/doctor/patient.py), so that it works when the API server does not, and
gives notes; it changes nothing.
"""
