"""The verbs of the command line: a module each, all started by launcher.py."""
