"""The commands: one module each, all started by launcher.py."""
