"""Background work: fetch with a lease, do, apply under the lease. See docs/pipelines.md."""
