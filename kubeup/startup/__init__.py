"""How kb.pyz loads: native modules, the head start of keys, the version."""
