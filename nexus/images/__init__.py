"""Making and keeping images: kernels, initial RAM disks, root file systems, config drives."""
