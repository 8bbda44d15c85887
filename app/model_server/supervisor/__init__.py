"""The process that owns the listening sockets: follows the registry, downloads, starts and ends generations."""
