"""The one seam to the machine: all looks, commands, files and connections go through Host."""
