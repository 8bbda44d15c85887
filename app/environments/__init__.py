"""Makes Python environments for models and projects with uv, for the services that run them.

A caller names requirements; it gets the digest of an environment on a volume that it reads. Only this service has a way
out to a package index, and nothing that is installed runs here.
"""
