"""Nexus: a self-hosted control plane for Firecracker microVMs."""
