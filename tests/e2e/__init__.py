"""End-to-end tests of kb: real nodes on one machine. Start with README.md in this folder."""
