"""HTTP in, a service called, HTTP out: one file a resource."""
