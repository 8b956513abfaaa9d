"""Every call of the API as a value, one file a resource.

The two clients only move these values; nothing about a route is written twice.
"""
