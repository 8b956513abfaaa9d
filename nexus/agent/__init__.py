"""The host daemon: it is told which machines are wanted, and sees to it that they are."""
