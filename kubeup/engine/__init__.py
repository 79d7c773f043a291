"""What runs the phases: the runner, the state, the journal, undo."""
