"""The engine that runs phases: the Runner, plans, state, journal and undo."""
