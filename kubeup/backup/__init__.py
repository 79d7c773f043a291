"""Backups of a cluster: their archive, what goes into one, and the rehearsal that boots one."""
