"""All of Nexus on one machine: ``nexus up`` and ``nexus down``."""
