"""The commands and their options, one file a group.

Each file makes a Typer named ``commands``, which ``nexus.cli.app`` joins to the command line. What
a command does is imported when it runs, so that the command line starts fast.
"""
