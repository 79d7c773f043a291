"""The command line itself: options, parser, completion."""
