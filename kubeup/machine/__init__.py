"""The one interface to the machine: all reads, commands, files and connections go through Host."""
