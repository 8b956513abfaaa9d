"""The rules of each resource, one short transaction each. No HTTP."""
