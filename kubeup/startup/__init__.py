"""How kb.pyz starts: compiled modules, early work in the background, the version."""
