"""The processes that answer requests with one model version, under a Gunicorn of their own."""
